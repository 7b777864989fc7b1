"""The comparison with other networks: what is trained, and the table that it continues."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from runs import read_table

pytest.importorskip("matplotlib")

from benchmarks import peers
from benchmarks.summary import Row
from benchmarks.sweep import make_row
from checkpoint import EpochMetrics
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
    for make_parts in (None, peers.conventional, peers.large):
        monkeypatch.setitem(peers.PEERS, "short", (config, make_parts))
        row = peers.run("short", 1, "cpu")
        assert (row["name"], row["seed"]) == ("short", "1") and row["device"].startswith("CPU with ")
        seconds = [*map(float, row["seconds_by_epoch"].split())]
        assert len(seconds) == 3 and seconds[0] > 0 and seconds == sorted(seconds)
        assert float(row["last"]) > 30  # chance is 10; it reaches 50 to 80


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

    def run(name: str, seed: int, device: str) -> Row:
        calls.append((name, seed))
        if len(calls) == 12:
            raise KeyboardInterrupt
        config = replace(peers.PEERS[name][0], seed=seed)
        nan = float("nan")
        metrics = [
            EpochMetrics(epoch, nan, nan, nan, "test", nan, 99 + seed / 10, 1.5)
            for epoch in range(1, config.epochs + 1)
        ]
        return make_row(name, config, 99.4, metrics, "cpu")

    monkeypatch.setattr(peers, "run_in_process", run)
    with pytest.raises(KeyboardInterrupt, match="the same command continues"):
        start(tmp_path, seeds=2)
    start(tmp_path, seeds=2)
    assert sorted({*calls}) == sorted((name, seed) for name in peers.PEERS for seed in (1, 2))
    assert len(calls) == 2 * len(peers.PEERS) + 1
    rows = read_table(tmp_path / "peers.csv")
    assert len(rows) == 2 * len(peers.PEERS)
    for row in rows:
        epochs = peers.PEERS[row["name"]][0].epochs
        assert row["seconds"] == f"{1.5 * epochs:.2f}"
    assert {row["torch"].partition("+")[0] for row in rows} == {torch.__version__.partition("+")[0]}
    assert "| `default` | 2 | 99.150 | 0.071 |" in capsys.readouterr().out
    assert (tmp_path / "peers.png").read_bytes().startswith(b"\x89PNG")
    assert RECIPES.keys() < peers.PEERS.keys()
    start(tmp_path, seeds=1)
    assert "| `default` | 1 | 99.100 | – |" in capsys.readouterr().out
    # Rows stay, whether they are asked for or not.
    monkeypatch.setattr(peers, "PEERS", {"default": peers.PEERS["default"], "new": (ORIGINAL, None)})
    start(tmp_path, seeds=1)
    kept = read_table(tmp_path / "peers.csv")
    assert [row for row in kept if row["name"] != "new"] == rows and len(kept) == len(rows) + 1
    changed = replace(RECIPES["default"], rotation=9.0)  # by a later version
    monkeypatch.setitem(peers.PEERS, "default", (changed, None))
    with pytest.raises(UserError, match=r"peers\.csv has another target or settings of default"):
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


@pytest.mark.slow  # processes
def test_a_mistake_is_one_line() -> None:
    command = [sys.executable, "-m", "benchmarks.peers", "--seeds=0", "--output-dir=x"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stderr) == (
        2,
        "peers.py: error: argument --seeds: must be at least 1\n",
    )
