import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from runtime.errors import UserError
from runtime.files import locked, replace_file, write_table


@pytest.mark.skipif(os.name != "posix", reason="the messages are POSIX's")
def test_replace_file_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder can't be written: Is a directory"):
        replace_file(tmp_path / "folder", b"new")
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(OSError, match="file/x can't be written: Not a directory"):
        replace_file(tmp_path / "file" / "x", b"new")
    assert (tmp_path / "file").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 2
    replace_file(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new" and len(list(tmp_path.iterdir())) == 2


@pytest.mark.skipif(os.name != "posix", reason="the files are POSIX's")
def test_replace_file_keeps_links_and_devices(tmp_path: Path) -> None:
    link, target, pipe = tmp_path / "link", tmp_path / "target", tmp_path / "pipe"
    target.write_bytes(b"old")
    link.symlink_to(target)
    replace_file(link, b"new")
    assert link.is_symlink() and target.read_bytes() == b"new"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    replace_file(pipe, b"new")
    assert pipe.is_fifo() and os.read(reader, 9) == b"new"
    os.close(reader)


@pytest.mark.skipif(os.name != "posix", reason="the permissions are POSIX's")
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444, 0o755, 0o666])
def test_replace_file_keeps_the_mode(mode: int, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(mode)
    (tmp_path / "link").symlink_to(path)
    for name in ("file", "link"):
        replace_file(tmp_path / name, name.encode())
        assert path.read_bytes() == name.encode() and path.stat().st_mode & 0o7777 == mode
    write_table(path, [{"a": 1}])
    assert path.stat().st_mode & 0o7777 == mode
    old = os.umask(0o027)
    try:
        replace_file(tmp_path / "new", b"new")
    finally:
        os.umask(old)
    assert (tmp_path / "new").stat().st_mode & 0o7777 == 0o640


HOLD = """
import sys
from pathlib import Path
from runtime.files import locked
with locked(Path(sys.argv[1])):
    print("here", flush=True)
    sys.stdin.read()
"""


def test_only_one_process_is_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / ".best.pt.123.tmp").write_bytes(b"half")
    (tmp_path / ".notes.tmp").write_bytes(b"mine")
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdin is not None and other.stdout is not None
        assert other.stdout.readline().strip() == b"here"
        assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", ".notes.tmp"]
        line = f"^{re.escape(str(tmp_path))} is in use by another process"
        with pytest.raises(UserError, match=line), locked(tmp_path):
            pass
        other.kill()  # as a power cut: nothing is tidied up
    with locked(tmp_path), pytest.raises(UserError, match="in use"), locked(tmp_path):
        pass
    with pytest.raises(ZeroDivisionError), locked(tmp_path):
        raise ZeroDivisionError
    with locked(tmp_path):
        pass
