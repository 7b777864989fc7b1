import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT

from benchmarks import pipeline
from model import Net
from runtime.errors import UserError


def run_pipeline(*flags: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(ROOT / "benchmarks" / "pipeline.py"), *flags]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_medians_and_ratios_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    seconds = {"slow": [0.9, 0.9, 0.9], "fast": [0.4, 0.6, 0.8], "ours": [0.2, 0.2, 0.1]}
    result = pipeline.compare("step", seconds, ["slow", "fast"], batches=20)
    assert result["ratios"] == pytest.approx([2, 3, 8]) and result["ratio"] == pytest.approx(3)
    assert (result["fast"], result["ours"]) == pytest.approx((30, 10)) and result["unit"] == "ms a batch"
    assert capsys.readouterr().out == "step  fast 30.00, ours 10.00 ms a batch; ratio 3.00 (2.00 to 8.00)\n"


def test_a_pipeline_that_fails_ends_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "child.py").write_text("import sys\nsys.argv[-1] == 'bad' or sys.stdin.read()\n")
    monkeypatch.setattr(pipeline, "__file__", str(tmp_path / "child.py"))
    started: list[subprocess.Popen[str]] = []
    popen = subprocess.Popen

    def start(*arguments: Any, **options: Any) -> subprocess.Popen[str]:
        started.append(popen(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", start)
    with pytest.raises(UserError, match="the pipeline bad failed"):
        pipeline.take_turns(["good", "bad"], [], turns=1)
    assert started[0].wait(timeout=60) != 0  # it was killed


def test_only_one_of_the_two_steps_is_sped_up(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[torch.nn.Module] = []
    monkeypatch.setattr(pipeline, "speed_up", calls.append)
    cpu = torch.device("cpu")
    parts = [
        pipeline.make_parts(name, cpu, batches=1) for name in ("conventional, workers=0", "plain", "ours")
    ]
    assert len(calls) == 1 and isinstance(calls[0], Net)
    assert all(set(part) == set(pipeline.PARTS) for part in parts)


@pytest.mark.slow
def test_pipelines_are_compared(tmp_path: Path) -> None:
    done = run_pipeline(
        *("--turns", "2", "--batches", "1", "--device", "cpu", "--output", str(tmp_path / "out.json"))
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out.json").read_text())
    lines = done.stdout.splitlines()[-4:]
    assert [line.split()[0] for line in lines] == ["data", "step", "epoch", "step"]
    for part, line in zip(("data", "step", "epoch", "speed_up"), lines, strict=True):
        (rival,) = result[part].keys() - {"ours", "unit", "ratio", "ratios"}
        assert rival == "plain" if part == "speed_up" else rival.startswith("conventional, workers=")
        assert result[part]["ours"] > 0 and result[part][rival] > 0
        assert len(result[part]["ratios"]) == 2 and f" {rival} " in line


@pytest.mark.parametrize(
    "flag", ["--turn=2", "--turns=0", "--batches=0", "--batches=470", "--output=none/a.json", "--output=."]
)
def test_a_mistake_is_one_line(flag: str) -> None:
    done = run_pipeline(flag)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("pipeline.py: error: ")
