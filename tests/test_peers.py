"""The comparison with other networks: what is trained, and the table that it continues."""

import csv
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import ROOT

pytest.importorskip("scipy")
pytest.importorskip("matplotlib")

from benchmarks import peers
from benchmarks.summary import Curve
from config import ORIGINAL, RECIPES, Config
from runtime.errors import UserError
from utils import DeviceLoader, get_loaders

CPU = torch.device("cpu")


def test_the_large_network_is_as_described() -> None:
    network = peers.large_network()
    shapes: list[tuple[int, ...]] = []
    for module in network:
        module.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape[1:])))
    assert network(torch.zeros(2, 1, 28, 28)).exp().sum(dim=1).tolist() == pytest.approx([1, 1])
    assert shapes[0] == (24, 24, 24) and shapes[3] == (32, 10, 10) and shapes[6] == (800,)
    assert f"{sum(p.numel() for p in network.parameters()):,}" in (peers.__doc__ or "")


@pytest.mark.arithmetic
def test_each_is_trained_and_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a few images of MNIST, in three epochs, all three learn."""
    whole = get_loaders(ORIGINAL, CPU)

    def few(config: Config, device: torch.device, data_path: str = "") -> list[DeviceLoader]:
        return [
            DeviceLoader(loader.images[:600], loader.labels[:600], 32, config=own)
            for loader, own in zip(whole, (config, None), strict=True)
        ]

    monkeypatch.setattr("main.get_loaders", few)
    monkeypatch.setattr("benchmarks.peers.get_loaders", few)
    monkeypatch.setattr("benchmarks.peers.conventional_loaders", lambda device: few(ORIGINAL, CPU))
    config = replace(ORIGINAL, epochs=3, schedule_interval="batch", lr=0.1, div_factor=5)
    for train in (peers.train_recipe, peers.train_conventional, peers.train_large):
        monkeypatch.setitem(peers.RUNS, "short", (config, train))
        curve = peers.run("short", 1, CPU)
        seconds = [time for time, _ in curve]
        assert len(curve) == 3 and seconds[0] >= 0 and seconds == sorted(seconds)
        assert curve[-1][1] > 30  # chance is 10; it reaches 50 to 80


def start(folder: Path, seeds: int) -> None:
    """Do in this process what the command does."""
    with pytest.MonkeyPatch.context() as patch:
        flags = [f"--output-dir={folder}", f"--seeds={seeds}", "--device=cpu"]
        patch.setattr(sys, "argv", ["peers.py", *flags])
        peers.main()


def test_a_comparison_continues_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[tuple[str, int]] = []

    def run(name: str, seed: int, device: str) -> Curve:
        calls.append((name, seed))
        if len(calls) == 12:
            raise KeyboardInterrupt
        epochs = peers.RUNS[name][0].epochs
        return [(1.5, 98.0)] * (epochs - 1) + [(3.25, 99.0 + seed / 10)]

    monkeypatch.setattr(peers, "run_in_process", run)
    with pytest.raises(KeyboardInterrupt, match="the same command continues"):
        start(tmp_path, seeds=2)
    start(tmp_path, seeds=2)
    assert sorted({*calls}) == sorted((name, seed) for name in peers.RUNS for seed in (1, 2))
    assert len(calls) == 2 * len(peers.RUNS) + 1
    rows = list(csv.DictReader((tmp_path / "peers.csv").open()))
    assert len(rows) == 2 * len(peers.RUNS)
    for row in rows:
        epochs = peers.RUNS[row["name"]][0].epochs
        assert row["seconds"].split() == ["1.50"] * (epochs - 1) + ["3.25"]
    assert {row["torch"].partition("+")[0] for row in rows} == {torch.__version__.partition("+")[0]}
    assert "| default | 99.150 ± 0.071 | 3 |" in capsys.readouterr().out
    assert (tmp_path / "peers.png").read_bytes().startswith(b"\x89PNG")
    assert RECIPES.keys() < peers.RUNS.keys()
    start(tmp_path, seeds=1)
    assert "| default | 99.100 | 3 |" in capsys.readouterr().out
    # Rows stay, whether they are asked for or not.
    monkeypatch.setattr(
        peers, "RUNS", {"default": peers.RUNS["default"], "new": (ORIGINAL, peers.train_recipe)}
    )
    start(tmp_path, seeds=1)
    kept = list(csv.DictReader((tmp_path / "peers.csv").open()))
    assert [row for row in kept if row["name"] != "new"] == rows and len(kept) == len(rows) + 1
    changed = replace(RECIPES["default"], rotation=9.0)  # by a later version
    monkeypatch.setitem(peers.RUNS, "default", (changed, peers.train_recipe))
    with pytest.raises(UserError, match=r"peers\.csv has other settings of default"):
        start(tmp_path, seeds=2)


def test_a_damaged_table_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "peers.csv").write_text("name,seed,seconds\nnew,1,1.0\n")  # a column is missing
    with pytest.raises(UserError, match=r"peers\.csv is damaged"):
        start(tmp_path, seeds=1)


@pytest.mark.slow
def test_each_run_has_a_process_of_its_own(tmp_path: Path) -> None:
    """A real start, stopped once it trains: one line, and no process is left."""
    command = [sys.executable, "-m", "benchmarks.peers", f"--output-dir={tmp_path}"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    stderr = process.stderr
    assert stderr is not None
    while (text := stderr.read(40)) and "Epoch=1" not in text:
        pass
    process.terminate()
    rest = stderr.read()  # until the last process has closed it
    assert process.wait() == 143
    assert rest.endswith("peers.py: stopped by SIGTERM: the same command continues from here\n")
    assert "Traceback" not in rest


def test_a_mistake_is_one_line() -> None:
    command = [sys.executable, "-m", "benchmarks.peers", "--seeds=0", "--output-dir=x"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stderr) == (2, "peers.py: error: argument --seeds: must be at least 1\n")
