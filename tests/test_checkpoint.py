import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

import checkpoint
from checkpoint import EpochMetrics, load_progress, replace_file, save_checkpoint
from config import ORIGINAL, UserError

ROW = EpochMetrics(1, 0.1, 2.0, 50.0, "test", 1.0, 60.0, 9.5)


def test_progress_of_an_earlier_version_is_refused_in_one_line_that_says_so(tmp_path: Path) -> None:
    torch.save({"settings": {"recipe": "reliable"}, "epoch": 1, "rows": []}, tmp_path / "last.pt")
    with pytest.raises(UserError, match="not written by this version"):
        load_progress(tmp_path)


@pytest.mark.parametrize("name", ["config", "metrics", "device", "versions", "finished"])
@pytest.mark.parametrize("value", [None, "text", 3, [1, 2], {"a": 1}, [{"epoch": 1}]])
def test_progress_of_another_kind_is_refused(name: str, value: Any, tmp_path: Path) -> None:
    progress: dict[str, Any] = {"config": asdict(ORIGINAL), "metrics": [asdict(ROW)], "device": "cpu"}
    progress |= {"versions": {}, "finished": False}
    save_checkpoint(tmp_path / "last.pt", progress)
    assert load_progress(tmp_path).metrics == [ROW]
    save_checkpoint(tmp_path / "last.pt", progress | {name: value})
    if (name, value) in [("device", "text"), ("versions", {"a": 1})]:
        return
    with pytest.raises(UserError, match=r"last\.pt"):
        load_progress(tmp_path)


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
    with checkpoint.locked(tmp_path):
        assert list(tmp_path.iterdir()) == []
        with pytest.raises(UserError, match="in use"), checkpoint.locked(tmp_path):
            pass
    with checkpoint.locked(tmp_path):
        pass
