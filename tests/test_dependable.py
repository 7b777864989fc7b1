"""What a machine or a person does to a run: kills, signals, full disks. Nothing is lost; one line says so."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, SHORT, Command
from torch import Tensor

import main
from arguments import parse_args
from checkpoint import load_net, locked, replace_file
from test import test as evaluate
from train import train
from utils import DeviceLoader

posix = pytest.mark.skipif(os.name != "posix", reason="signals and fork are POSIX's")


def same(one: Any, other: Any) -> bool:
    """Whether two things from a checkpoint are equal bit for bit, times and folders aside."""
    if isinstance(one, Tensor):
        return torch.equal(one, other) and one.dtype == other.dtype and one.stride() == other.stride()
    if isinstance(one, dict):
        keys = one.keys() - {"seconds", "output_dir", "given"}
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in keys)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def metrics(folder: Path) -> list[str]:
    """The lines of metrics.csv without the seconds, which are last."""
    return [line.rpartition(",")[0] for line in (folder / "metrics.csv").read_text().splitlines()]


def assert_same_run(folder: Path, whole: Path) -> None:
    assert metrics(folder) == metrics(whole) and len(metrics(folder)) > 2
    for name in ("best.pt", "last.pt"):
        one, other = (torch.load(f / name, weights_only=True) for f in (folder, whole))
        assert same(one, other), (folder, name)
    assert {file.name for file in folder.iterdir()} == {"best.pt", "last.pt", "metrics.csv"}


@posix
def test_killed_and_resumed_is_as_if_never_interrupted(data_path: str, tmp_path: Path) -> None:
    by_chance, placed = 10, 14  # three kills each, and one each
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "killer.py", data_path, tmp_path, str(by_chance), str(placed)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    hits = json.loads(done.stdout)["kills"]
    print(f"{hits} kills, {by_chance + placed} runs compared")
    assert hits >= 20
    for number in range(by_chance + placed):
        assert_same_run(tmp_path / str(number), tmp_path / f"whole-{number % 2}")
    assert not same(torch.load(tmp_path / "0" / "last.pt"), torch.load(tmp_path / "1" / "last.pt"))


@pytest.fixture
def flags(data_path: str, tmp_path: Path) -> list[str]:
    return [*SHORT, "--data-path", data_path, "--output-dir", str(tmp_path / "run")]


def errors(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines on stderr, progress bars aside."""
    return [line for line in capsys.readouterr().err.splitlines() if line and "%|" not in line]


def test_a_finished_run_says_so(flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(parse_args(flags)) == 0
    before = {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()}
    capsys.readouterr()
    for path in (tmp_path / "run", tmp_path / "run" / "last.pt"):
        assert main.main(parse_args(["--resume", str(path)])) == 0
        out, err = capsys.readouterr()
        assert re.fullmatch(r".*run is finished after epoch 3: best accuracy \d+\.\d\d%\n", out) and err == ""
    assert main.main(parse_args(["--resume", str(tmp_path / "run"), "--seed", "2", "--epochs", "9"])) == 2
    assert errors(capsys) == [
        "main.py: error: the run has --seed 1, not 2; --epochs 3, not 9: leave that out, or start a new run"
    ]
    assert {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()} == before


@pytest.mark.parametrize(
    "name, content", [("nothing", None), ("empty", b""), ("text", b"text"), ("half", b"PK\x03\x04")]
)
def test_what_cannot_be_resumed(
    name: str, content: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / name).mkdir()
        (tmp_path / name / "last.pt").write_bytes(content)
    assert main.main(parse_args(["--resume", str(tmp_path / name)])) == 1
    (line,) = errors(capsys)
    assert line.startswith("main.py: error: ") and str(tmp_path / name) in line


@pytest.mark.parametrize("part", ["optimizer", "scheduler", "random", "rows"])
@pytest.mark.parametrize("damage", [None, {}, {"state": 3}])
def test_states_that_do_not_fit(
    part: str, damage: Any, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = parse_args(flags)
    assert main.main(args) == 0
    progress = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    torch.save(progress | {"epoch": 2, "finished": False, part: damage}, tmp_path / "run" / "last.pt")
    capsys.readouterr()
    assert main.main(parse_args(["--resume", str(tmp_path / "run")])) == 1
    (line,) = errors(capsys)
    assert "last.pt does" in line


def test_a_run_in_progress_is_left_alone(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("fcntl")
    assert main.main(parse_args(flags)) == 0
    capsys.readouterr()
    with locked(tmp_path / "run"):
        assert main.main(parse_args(["--resume", str(tmp_path / "run")])) == 1
    (line,) = errors(capsys)
    assert "in use by another process" in line


# Files


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder with 200 kB of space."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(folder)]
    try:
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("a small tmpfs can't be mounted here")
    except FileNotFoundError:
        pytest.skip("no mount here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(full_disk: Path, data_path: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [*SHORT, "--data-path", data_path, "--output-dir", str(full_disk / "run")]
    # There is room for last.pt at first; best.pt and a second last.pt beside the first are too much.
    assert main.main(parse_args(flags)) == 1
    (line,) = errors(capsys)
    assert re.fullmatch(r"main.py: error: .*(best|last)\.pt can't be written: No space left on device", line)
    progress = torch.load(full_disk / "run" / "last.pt", weights_only=True)
    assert len(metrics(full_disk / "run")) in (0, progress["epoch"] + 1, progress["epoch"] + 2)
    assert not list((full_disk / "run").glob(".*"))


def test_a_file_stays_whole_on_a_full_disk(full_disk: Path) -> None:
    replace_file(full_disk / "file", b"old" * 1000)
    for size in (150_000, 198_000, 300_000, 10**6):
        if size > 190_000:
            with pytest.raises(OSError, match="file can't be written: No space left on device"):
                replace_file(full_disk / "file", bytes(size))
            assert (full_disk / "file").stat().st_size == 150_000
        else:
            replace_file(full_disk / "file", bytes(size))
        assert [file.name for file in full_disk.iterdir()] == ["file"]


def test_a_read_only_folder(full_disk: Path, data_path: str, capsys: pytest.CaptureFixture[str]) -> None:
    (full_disk / "run").mkdir()
    subprocess.run(["mount", "-o", "remount,ro", str(full_disk)], check=True)
    for folder in (full_disk / "run", full_disk / "new"):
        assert main.main(parse_args([*SHORT, "--data-path", data_path, "--output-dir", str(folder)])) == 1
        (line,) = errors(capsys)
        assert line.startswith("main.py: error: ") and "Read-only file system" in line and str(folder) in line


def test_a_file_in_place_of_the_folder(
    data_path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        assert main.main(parse_args([*SHORT, "--data-path", data_path, "--output-dir", str(folder)])) == 1
        (line,) = errors(capsys)
        assert line.startswith("main.py: error: ") and str(tmp_path / "file") in line
    assert (tmp_path / "file").read_text() == "mine"


@posix
def test_output_that_nobody_takes(command: Command, data_path: str, tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, ROOT / "main.py", *SHORT, "--data-path", data_path],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == "main.py: error: No space left on device\n"


# Numbers


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_evaluation_that_is_no_number_is_not_saved(
    value: float,
    flags: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    losses = iter([2.0, value])
    monkeypatch.setattr(main, "test", lambda *rest: (next(losses), 99))
    assert main.main(parse_args([*flags, "--target-accuracy", "100"])) == 1
    (line,) = errors(capsys)
    assert f"became {value} after epoch 2, at learning rate" in line
    assert torch.load(tmp_path / "run" / "best.pt", weights_only=True)["epoch"] == 1
    assert torch.load(tmp_path / "run" / "last.pt", weights_only=True)["epoch"] == 1
    assert len(metrics(tmp_path / "run")) == 2


def test_a_loss_that_explodes_is_not_saved(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def explode(*rest: Any) -> tuple[float, float]:
        rest[0].layers[0][0].weight.data.fill_(float("nan"))
        return train(*rest)

    monkeypatch.setattr(main, "train", explode)
    assert main.main(parse_args(flags)) == 1
    (line,) = errors(capsys)
    assert re.search(r"became nan in epoch 1, batch 0, at learning rate 0\.\d+", line)
    assert not (tmp_path / "run" / "best.pt").exists()


def test_accuracy_depends_on_nothing_but_weights_and_images(
    flags: list[str], tmp_path: Path, train_set: tuple[Tensor, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(parse_args([*flags, "--limit-train-batches", "12", "--batch-size", "64"])) == 0
    model, _ = load_net(tmp_path / "run" / "best.pt")
    images, labels = train_set[0][:400], train_set[1][:400]
    cpu = torch.device("cpu")
    with torch.inference_mode():
        (batch, _), *_ = DeviceLoader(images, labels, 400)
        top = model(batch).topk(2).values
    ties = int((top[:, 0] - top[:, 1] < 1e-5).sum())
    loss, correct = evaluate(model, cpu, DeviceLoader(images, labels, 400))
    assert 0 < correct < 400
    for size in (1, 2, 7, 64, 100, 128, 250, 399, 1000):
        model.train()  # what ran before: a training pass in another mode, other random numbers
        torch.manual_seed(size)
        found_loss, found = evaluate(model, cpu, DeviceLoader(images, labels, size))
        assert abs(found - correct) <= ties and abs(found_loss - loss) < 1e-4 * loss


def test_deterministic_algorithms_work_and_change_nothing_on_a_cpu(
    data_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    benchmark = torch.backends.cudnn.benchmark
    try:
        for name, more in (("a", ["--use-deterministic-algorithms"]), ("b", [])):
            flags = [*SHORT, "--data-path", data_path, "--output-dir", str(tmp_path / name), *more]
            assert main.main(parse_args(flags)) == 0
            assert torch.are_deterministic_algorithms_enabled() == (name == "a")
            torch.use_deterministic_algorithms(False)
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.benchmark = benchmark
    one, other = (torch.load(tmp_path / n / "last.pt", weights_only=True) for n in "ab")
    assert same(one["model"], other["model"]) and metrics(tmp_path / "a") == metrics(tmp_path / "b")
