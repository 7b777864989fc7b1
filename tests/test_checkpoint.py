from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoint import EpochMetrics, load_progress, save_checkpoint
from config import ORIGINAL
from errors import UserError

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
