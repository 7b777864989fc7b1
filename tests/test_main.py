import argparse
import csv
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Command
from torch import nn

import main
from arguments import parse_args
from model import Net
from recipes import DEFAULT_RECIPE, RECIPES
from train import make_optimizer

ROOT = Path(__file__).parent.parent
SUMMARY = (ROOT / "tests" / "summary.txt").read_text()


def test_schedule_of_the_original() -> None:
    """The learning rate and momentum at each of the 19 × 469 steps, from the formula of the paper's cycle."""
    args = parse_args(["--recipe", "original"])
    optimizer, scheduler = make_optimizer(Net(), args, 469)
    total, warm = 19 * 469, 0.2 * 19 * 469 - 1

    def between(start: float, end: float, share: float) -> float:
        return end + (start - end) * (1 + math.cos(math.pi * share)) / 2

    rates = []
    for epoch in range(19):
        step = epoch * 469  # the quirk: 469 steps at once, after each epoch
        if step <= warm:
            rate, momentum = between(0.0015, 0.015, step / warm), between(0.95, 0.85, step / warm)
        else:
            share = (step - warm) / (total - 1 - warm)
            rate, momentum = between(0.015, 0.000015, share), between(0.85, 0.95, share)
        rates.append(rate)
        assert math.isclose(optimizer.param_groups[0]["lr"], rate, rel_tol=1e-9)
        assert math.isclose(optimizer.param_groups[0]["momentum"], momentum, rel_tol=1e-9)
        if epoch < 18:
            for _ in range(469):
                optimizer.step()
                scheduler.step()
    assert math.isclose(rates[0], 0.0015) and 0.0149 < max(rates) < 0.015
    assert optimizer.param_groups[0]["weight_decay"] == 1e-4 and not optimizer.param_groups[0]["nesterov"]


@pytest.mark.parametrize("epochs, steps", [(1, 1), (1, 5), (5, 1), (1, 3), (2, 5)])
def test_schedule_of_any_length(epochs: int, steps: int) -> None:
    optimizer, scheduler = make_optimizer(Net(), parse_args(["--epochs", str(epochs)]), steps)
    for _ in range(epochs * steps):
        optimizer.step()
        scheduler.step()


def fake_run(monkeypatch: pytest.MonkeyPatch, correct: list[int]) -> list[float]:
    """Let ``main.run`` train for nothing and find ``correct`` images right, epoch by epoch."""
    rates: list[float] = []

    def train(model: nn.Module, *rest: object, **more: object) -> tuple[float, float]:
        optimizer = next(item for item in rest if isinstance(item, torch.optim.SGD))
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        return 0.1, 97.0

    def test(*rest: object) -> tuple[float, int]:
        return 0.05, correct[len(rates) - 1]

    monkeypatch.setattr(main, "train", train)
    monkeypatch.setattr(main, "test", test)
    return rates


Run = Callable[..., argparse.Namespace]


@pytest.fixture
def arguments(data_path: str, tmp_path: Path) -> Run:
    def parse(*flags: str) -> argparse.Namespace:
        return parse_args(
            ["--data-path", data_path, "--device", "cpu", "--output-dir", str(tmp_path / "run"), *flags]
        )

    return parse


def test_stops_at_the_first_epoch_that_reaches_the_target(
    arguments: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rates = fake_run(monkeypatch, [9000, 9939, 9940, 9999])
    assert main.main(arguments("--recipe", "original")) == 0
    assert len(rates) == 3
    out = capsys.readouterr().out
    assert out.endswith(
        "New best accuracy: 99.40%\nTarget accuracy of 99.4% reached at epoch 3!\n\n"
        "Final best accuracy: 99.40%\nTotal parameters: 9,798\n"
    )
    assert torch.load(tmp_path / "run" / "best.pt", weights_only=True)["epoch"] == 3


def test_without_early_stop_the_last_epoch_is_told(
    arguments: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_run(monkeypatch, [9000, 9950, 9945])
    assert main.main(arguments("--epochs", "3", "--target-accuracy", "100")) == 0
    end = "\nAccuracy at the end of the schedule: 99.45%\n\nFinal best accuracy: 99.50%\n"
    out = capsys.readouterr().out
    assert end in out and "Target" not in out


def test_says_so_when_the_epochs_run_out_and_a_tie_is_no_new_best(
    arguments: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    fake_run(monkeypatch, [9000, 9100, 9100, 9050])
    assert main.main(arguments("--epochs", "4")) == 0
    out = capsys.readouterr().out
    assert out.count("New best accuracy") == 2
    assert "\nTarget accuracy of 99.4% not reached in 4 epochs.\n\nFinal best accuracy: 91.00%\n" in out
    assert torch.load(tmp_path / "run" / "best.pt", weights_only=True)["epoch"] == 2


def test_console_output_has_the_original_format(command: Command, data_path: str, tmp_path: Path) -> None:
    flags = ["--device", "cpu", "--epochs", "2", "--limit-train-batches", "3", "--recipe", "original"]
    done = command(*flags, "--data-path", data_path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    number = r"\d+\.\d"
    test_line = rf"Test set: Average loss: {number}{{4}}, Accuracy: \d+/10000 \({number}\d%\)\n\n"
    expected = (
        r"Device: cpu\n" + re.escape(SUMMARY) + rf"(\nEpoch [12]/2\n\n{test_line}"
        rf"(New best accuracy: {number}\d%\n)?){{2}}Target accuracy of 99\.4% not reached in 2 epochs\.\n\n"
        rf"Final best accuracy: {number}\d%\nTotal parameters: 9,798\n"
    )
    assert re.fullmatch(expected, done.stdout), done.stdout
    assert re.search(
        rf"Epoch=2 Loss={number}{{4}} Batch_id=2 Accuracy={number}\d%: 100%\|█+\| 3/3 \[", done.stderr
    )
    (folder,) = (tmp_path / "runs").iterdir()
    with open(folder / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    for row in rows:
        assert f"({float(row['test_accuracy']):.2f}%)" in done.stdout
        assert f"Average loss: {float(row['test_loss']):.4f}" in done.stdout
        assert set(row) == {
            *("epoch", "lr", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "seconds")
        }


def test_the_seed_determines_the_weights(command: Command, data_path: str, tmp_path: Path) -> None:
    weights = []
    for name, seed in [("one", "1"), ("again", "1"), ("other", "2")]:
        flags = ["--device", "cpu", "--epochs", "1", "--limit-train-batches", "5", "--seed", seed]
        done = command(*flags, "--data-path", data_path, "--output-dir", name, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        weights.append(torch.load(tmp_path / name / "best.pt", weights_only=True)["model"])
    one, again, other = weights
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["layers.0.0.weight"], other["layers.0.0.weight"])


def test_dry_run_keeps_nothing(command: Command, data_path: str, tmp_path: Path) -> None:
    done = command("--dry-run", "--data-path", data_path, cwd=tmp_path)
    assert done.returncode == 0 and "Epoch 1/1" in done.stdout, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_run_never_writes_over_another(command: Command, data_path: str, tmp_path: Path) -> None:
    (tmp_path / "best.pt").write_text("mine")
    done = command("--data-path", data_path, "--output-dir", str(tmp_path), "--epochs", "1")
    assert done.returncode == 1 and (tmp_path / "best.pt").read_text() == "mine"
    assert done.stderr.count("\n") == 1 and str(tmp_path) in done.stderr


def test_a_device_that_is_not_there(command: Command) -> None:
    name = "mps" if not torch.backends.mps.is_available() else "cuda:99"
    done = command("--device", name)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and name in done.stderr and "cpu" in done.stderr


def test_without_torchsummary(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "torchsummary", None)
    main.print_summary(Net())
    assert capsys.readouterr().out == (
        "Total parameters: 9,798\nTrainable parameters: 9,798\n"
        "No summary table: torchsummary is not installed (pip install torchsummary)\n"
    )


def test_help_is_quick_and_names_every_hyperparameter(command: Command) -> None:
    done = command("--help")
    assert done.returncode == 0
    for name, value in RECIPES[DEFAULT_RECIPE].items():
        assert f"--{name.replace('_', '-')}" in done.stdout, name
        assert str(value) in done.stdout
    # It answers before torch is imported.
    code = "import sys, arguments; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
