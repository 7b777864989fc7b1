import os
from pathlib import Path

import pytest

from runtime.errors import UserError
from runtime.files import locked, replace_file


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


def test_only_one_process_is_in_a_folder(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    (tmp_path / ".best.pt.123.tmp").write_bytes(b"half")
    with locked(tmp_path):
        assert list(tmp_path.iterdir()) == []
        with pytest.raises(UserError, match="in use"), locked(tmp_path):
            pass
    with locked(tmp_path):
        pass
