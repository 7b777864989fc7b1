import argparse
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


seeds = load("seeds")


def test_student_is_the_tables() -> None:
    for freedom, quantile in [(1, 12.706), (2, 4.303), (9, 2.262), (30, 2.042), (99, 1.984)]:
        assert abs(seeds.student(freedom) - quantile) < 2e-3


def row(seed: int, *accuracies: float) -> dict[str, Any]:
    reached = next((i for i, accuracy in enumerate(accuracies, 1) if accuracy >= 99.4), None)
    return {
        "seed": str(seed),
        "evaluated_on": "test",
        "epoch_reached": str(reached or "none"),
        "seconds_to_target": f"{10 * reached:.2f}" if reached else "none",
        "best": f"{max(accuracies):.2f}",
        "last": f"{accuracies[-1]:.2f}",
        "best_on_test": f"{max(accuracies) + 0.01:.2f}",
        "seconds": f"{10 * len(accuracies):.2f}",
        "device": "CPU",
        "torch": "2",
        "accuracy_by_epoch": " ".join(f"{accuracy:.2f}" for accuracy in accuracies),
    }


def test_summary_by_hand() -> None:
    rows = [row(1, 99.3, 99.41, 99.39), row(2, 99.2, 99.3, 99.35), row(3, 99.1, 99.39, 99.46)]
    text = seeds.summarise(rows)
    assert "2 of 3 = 67 %" in text and "21 to 94 %" in text
    # mean 99.4, deviation sqrt((0.01² + 0.05² + 0.06²) / 2) = 0.0557, half-width 4.303 · 0.0557 / √3 = 0.138
    assert "mean 99.400 %, standard deviation 0.056, 95 % interval 99.262 to 99.538 %" in text
    assert "median epoch 2.5, median 25.0 s" in text
    assert "best epoch" not in text
    text = seeds.summarise([made | {"evaluated_on": "holdout"} for made in rows])
    assert "last epoch (holdout)    mean 99.400 %" in text
    assert "best epoch, on test set mean 99.417 %, standard deviation 0.055" in text  # 99.42, 99.36, 99.47


def test_plot_is_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    seeds.plot([row(1, 99.3, 99.41), row(2, 99.2, 99.3)], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_a_seed_that_has_its_row_is_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[int] = []

    def run_seed(args: argparse.Namespace, seed: int) -> dict[str, Any]:
        ran.append(seed)
        assert args.data_path == str(tmp_path / "here")  # main.py runs in another folder
        return row(seed, 99.3, 99.41)

    monkeypatch.setattr(seeds, "run_seed", run_seed)
    monkeypatch.chdir(tmp_path)
    for count in ("2", "4"):
        flags = ["--recipe", "original", "--seeds", count, "--jobs", "1", "--output-dir", str(tmp_path)]
        flags += ["--data-path", "here"]
        monkeypatch.setattr(sys, "argv", ["seeds.py", *flags])
        seeds.main()
    assert ran == [1, 2, 3, 4]
    assert "4 of 4 = 100 %" in capsys.readouterr().out


def test_pipelines_are_compared(data_path: str, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "pipeline.py"), "--turns", "2", "--batches", "1"]
    flags = ["--device", "cpu", "--data-path", data_path, "--output", str(tmp_path / "out.json")]
    done = subprocess.run([*command, *flags], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out.json").read_text())
    for part in ("data", "step", "epoch"):
        assert result[part]["ours"] > 0 and result[part]["conventional"] > 0
        assert len(result[part]["ratios"]) == 2 and f"{part} " in done.stdout
    assert min(result["peak_host_bytes"].values()) > 50 << 20  # more than the dataset alone
