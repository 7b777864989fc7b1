import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_pipelines_are_compared(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "pipeline.py"), "--turns", "2", "--batches", "1"]
    flags = ["--device", "cpu", "--output", str(tmp_path / "out.json")]
    done = subprocess.run([*command, *flags], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out.json").read_text())
    for part in ("data", "step", "epoch"):
        assert result[part]["ours"] > 0 and result[part]["conventional"] > 0
        assert len(result[part]["ratios"]) == 2 and f"{part} " in done.stdout


@pytest.mark.parametrize("flag", ["--turn=2", "--turns=0", "--batches=0", "--batches=470"])
def test_a_mistake_is_one_line(flag: str) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "pipeline.py"), flag]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (
        done.returncode == 2
        and done.stderr.startswith("pipeline.py: error: ")
        and done.stderr.count("\n") == 1
    )
