import errno
import os
from pathlib import Path

import pytest

from runtime.errors import UserError
from runtime.files import locked, read_table, replace_file, write_table


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


def test_a_lock_is_on_a_file_that_is_open_for_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On NFS, other machines respect only such a lock."""
    fcntl = pytest.importorskip("fcntl")
    modes: list[int] = []
    monkeypatch.setattr(fcntl, "flock", lambda file, _: modes.append(fcntl.fcntl(file, fcntl.F_GETFL)))
    with locked(tmp_path):
        assert [mode & os.O_ACCMODE for mode in modes] in ([os.O_WRONLY], [os.O_RDWR])


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EIO])
def test_a_file_system_without_locks(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fcntl = pytest.importorskip("fcntl")

    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", fail)
    if code == errno.EIO:
        with pytest.raises(OSError, match="Input/output error"), locked(tmp_path):
            pass
        return
    with locked(tmp_path):
        assert capsys.readouterr().err.startswith(f"warning: {tmp_path} can't be locked here")


@pytest.mark.parametrize(
    "content",
    [
        "seed,last\n1,99\n2\n",
        "seed,last\n1,99,5\n",
        "seed\n1\n",
        "these\nare words\n",
        b"\xff\xfe\x00",
        'seed,last\n"1,2\n',
    ],
)
def test_a_damaged_or_foreign_table_is_named(content: str | bytes, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=r"table\.csv is damaged, or"):
        read_table(path, ["seed", "last"])
    path.write_text("seed,last,more\n1,99,x\n")
    rows = read_table(path, ["seed", "last"])
    assert rows == [{"seed": "1", "last": "99", "more": "x"}]
    write_table(path, [{"seed": 0, "last": 98}, *rows])  # a new row before one with a column of the user's
    assert path.read_text() == "seed,last,more\n0,98,\n1,99,x\n"


def test_only_one_process_is_in_a_folder(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    (tmp_path / ".best.pt.123.tmp").write_bytes(b"half")
    with locked(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
        with pytest.raises(UserError, match="in use"), locked(tmp_path):
            pass
    with locked(tmp_path):
        pass
