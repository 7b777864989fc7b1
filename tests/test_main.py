import csv
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from conftest import ROOT, SHORT, Set
from PIL import Image
from torch import Tensor

import checkpoint
import datasets
import main
from checkpoint import load_run
from config import parse_args
from datasets import MEAN, STD, load_mnist, split_holdout
from model import Net
from runtime.device import select_device
from runtime.errors import UsageError, UserError
from runtime.files import locked, read_table, write_table
from runtime.tensor_files import save_tensors
from train import train
from trained import load_trained, newest_trained

SUMMARY = (ROOT / "tests" / "summary.txt").read_text(encoding="utf-8")
Capture = pytest.CaptureFixture[str]


def call(*flags: str) -> None:
    main.main(*parse_args(flags))


def call_and_stop(monkeypatch: pytest.MonkeyPatch, *flags: str, epoch: int = 2) -> str:
    """Start a run that Ctrl-C stops in this epoch; return what is said then."""

    def stop(*rest: Any, **more: Any) -> tuple[float, float]:
        if more["epoch"] == epoch:
            torch.rand(99)  # what is drawn in an epoch that breaks off doesn't matter
            raise KeyboardInterrupt
        return train(*rest, **more)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt) as caught:
        patch.setattr(main, "train", stop)
        call(*flags)
    return str(caught.value)


def same(one: Any, other: Any) -> bool:
    """Whether two things from a checkpoint are equal bit for bit, the seconds aside."""
    if isinstance(one, Tensor):
        return torch.equal(one, other) and one.dtype == other.dtype and one.stride() == other.stride()
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one if k != "seconds")
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def assert_same_run(folder: Path, whole: Path) -> None:
    lines = [(f / "metrics.csv").read_text().splitlines() for f in (folder, whole)]
    assert len(lines[0]) > 2  # the seconds are last
    assert [line.rpartition(",")[0] for line in lines[0]] == [line.rpartition(",")[0] for line in lines[1]]
    for name in ("best.pt", "last.pt"):
        assert same(*(torch.load(f / name, weights_only=True) for f in (folder, whole))), (folder, name)
    assert {file.name for file in folder.iterdir()} == {".lock", "best.pt", "last.pt", "metrics.csv"}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let a run train for nothing and have these accuracies in evaluation, epoch by epoch."""
    accuracies: list[float] = []
    epochs = iter(range(100))

    def fake_train(*rest: object, **more: Any) -> tuple[float, float]:
        more["optimizer"].step()
        return 0.1, 97.0

    monkeypatch.setattr(main, "train", fake_train)
    monkeypatch.setattr(main, "test", lambda *rest, **more: (0.05, accuracies[next(epochs)]))
    return accuracies


@pytest.fixture
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let MNIST have 1,000 training and 1,000 test images."""
    load = datasets.load_mnist
    monkeypatch.setattr(datasets, "load_mnist", lambda train: tuple(part[:1000] for part in load(train)))


def test_stops_at_the_first_epoch_that_reaches_the_target(
    fake: list[float], tmp_path: Path, capsys: Capture
) -> None:
    fake += [90.0, 99.39, 99.4, 99.99]
    call("--recipe", "original", "--device", "cpu", "--output-dir", str(tmp_path / "run"))
    assert capsys.readouterr().out.endswith(
        "New best accuracy: 99.40%\nTarget accuracy of 99.4% reached at epoch 3!\n\n"
        "Final best accuracy: 99.40%\nTotal parameters: 9,798\n"
    )
    assert torch.load(tmp_path / "run" / "best.pt", weights_only=True)["metrics"]["epoch"] == 3


@pytest.mark.parametrize(
    "flags, accuracies, end",
    [
        # Without early stop even 100 % doesn't stop it; with it, 100 % is a target like another.
        (["--no-early-stopping"], [90.0, 100.0, 99.45], "Accuracy at the end of the schedule: 99.45%\n"),
        (["--target-accuracy", "100"], [90.0, 100.0], "Target accuracy of 100% reached at epoch 2!\n"),
        ([], [90.0, 91.0, 90.5], "Target accuracy of 99.4% not reached by epoch 3.\n"),
    ],
)
def test_the_end_of_a_run_is_said(
    flags: list[str], accuracies: list[float], end: str, fake: list[float], tmp_path: Path, capsys: Capture
) -> None:
    fake += accuracies
    call("--epochs", "3", "--device", "cpu", "--output-dir", str(tmp_path / "run"), *flags)
    out = capsys.readouterr().out
    assert f"{end}\nFinal best accuracy: {max(accuracies):.2f}%\n" in out
    assert out.count("New best accuracy") == 2
    best = torch.load(tmp_path / "run" / "best.pt", weights_only=True)
    assert best["metrics"]["epoch"] == 2


@pytest.mark.usefixtures("few_images")
def test_console_output_is_the_originals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    pytest.importorskip("torchsummary")
    monkeypatch.chdir(tmp_path)
    call("--device", "cpu", "--epochs", "2", "--limit-train-batches", "3", "--recipe", "original")
    out, err = capsys.readouterr()
    number = r"\d+\.\d"
    test_line = rf"Test set: Average loss: {number}{{4}}, Accuracy: \d+/1000 \({number}\d%\)\n\n"
    expected = (
        r"Device: cpu\n" + re.escape(SUMMARY) + rf"(\nEpoch [12]/2\n\n{test_line}"
        rf"(New best accuracy: {number}\d%\n)?){{2}}Target accuracy of 99\.4% not reached by epoch 2\.\n\n"
        rf"Final best accuracy: {number}\d%\nTotal parameters: 9,798\n"
    )
    assert re.fullmatch(expected, out), out
    assert re.search(rf"Epoch=2 Loss={number}{{4}} Batch_id=2 Accuracy={number}\d%: 100%\|█+\| 3/3 \[", err)
    (folder,) = (tmp_path / "runs").iterdir()
    with open(folder / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    for row in rows:
        assert row["split"] == "test"
        assert f"({float(row['eval_accuracy']):.2f}%)" in out
        assert f"Average loss: {float(row['eval_loss']):.4f}" in out


@pytest.mark.usefixtures("few_images")
def test_each_setting_changes_the_weights_and_nothing_else_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(main, "print_summary", lambda model: None)  # which takes longer than the training

    def weights(name: str, *flags: str) -> Any:
        call(*SHORT, "--epochs", "2", *flags, "--output-dir", str(tmp_path / name))
        return [torch.load(tmp_path / name / f"{n}.pt", weights_only=True)["model"] for n in ("best", "last")]

    base = weights("base")
    assert same(base, weights("again"))
    weights("teacher", "--width=0.5")
    flags = """--seed=2 --rotation=0 --interpolation=nearest --translation=1 --scale=0.1 --shear=0.1
        --train-crop-size=20 --dropout=0 --label-smoothing=0.1 --model-ema-decay=0
        --schedule-interval=epoch --weight-decay=0.01 --momentum=0 --base-momentum=0.5
        --max-momentum=0.9 --pct-start=1 --final-div-factor=10 --lr=0.02 --max-lr=0.2 --batch-size=16
        --epochs=3 --holdout=200 --limit-train-batches=3 --recipe=fast --opt=muon"""
    for number, flag in enumerate([*flags.split(), f"--teacher={tmp_path / 'teacher' / 'best.pt'}"]):
        assert not same(base, weights(str(number), flag)), flag


@pytest.mark.parametrize("flags", [["--recipe", "original", "--max-lr", "0.3"], ["--translation", "1"]])
def test_stopped_and_resumed_is_as_if_never_stopped(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With dropout, momentum and the epoch's schedule; and with the running average and the batch's."""
    flags = [*SHORT, *flags, "--dropout", "0.05"]
    call(*flags, "--output-dir", str(tmp_path / "whole"))
    folder = tmp_path / "stopped"

    message = call_and_stop(monkeypatch, *flags, "--output-dir", str(folder))
    again = f"python main.py --resume {shlex.quote(str(folder))}"
    assert message == f"saved up to epoch 1; to continue: {again}"
    call("--resume", str(folder))
    assert_same_run(folder, tmp_path / "whole")
    call("--resume", str(folder / "last.pt"))  # finished: nothing happens
    assert_same_run(folder, tmp_path / "whole")
    with pytest.raises(UserError, match=r"last\.pt is for resuming a run: name the best\.pt"):
        call("--test-only", "--weights", str(folder / "last.pt"))


def test_a_run_stopped_on_another_device_keeps_its_momenta(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = [*SHORT, "--recipe", "original", "--max-lr", "0.3"]
    call(*flags, "--output-dir", str(tmp_path / "whole"))
    call_and_stop(monkeypatch, *flags, "--output-dir", str(tmp_path / "stopped"))
    path = tmp_path / "stopped" / "last.pt"
    content = torch.load(path, weights_only=True)
    strides = set()
    for state in content["optimizer"]["state"].values():
        strides.add(state["momentum_buffer"].is_contiguous())
        state["momentum_buffer"] = state["momentum_buffer"].contiguous()  # as on a GPU
    assert False in strides
    save_tensors(path, content)
    call("--resume", str(tmp_path / "stopped"))
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


@pytest.mark.usefixtures("few_images")
def test_a_resumed_run_keeps_its_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    call(*SHORT, "--width", "1.04", "--output-dir", "teacher")
    flags = [*SHORT, "--teacher", "teacher/best.pt"]
    call(*flags, "--output-dir", "whole")
    for epoch in (1, 2):
        call_and_stop(monkeypatch, *flags, "--output-dir", f"stopped{epoch}", epoch=epoch)
    os.remove("teacher/best.pt")
    for epoch in (1, 2):
        call("--resume", f"stopped{epoch}")
        assert_same_run(Path(f"stopped{epoch}"), Path("whole"))


@pytest.mark.usefixtures("few_images")
def test_a_teacher_must_not_know_what_is_evaluated(tmp_path: Path) -> None:
    file, folder = tmp_path / "teacher" / "best.pt", tmp_path / "run"
    call(*SHORT, "--output-dir", str(file.parent))
    content = torch.load(file, weights_only=True)
    flags = ["--dry-run", "--device", "cpu", "--teacher", str(file)]
    call(*flags)  # the test set
    call(*flags, "--holdout", "100")  # the images that it held out
    wanted = "add --teacher none, or the best.pt that main.py --recipe teacher --dataset mnist"
    with pytest.raises(UsageError) as caught:
        call(*SHORT, "--teacher", str(file), "--holdout", "200", "--output-dir", str(folder))
    problem = f"it was trained with --holdout 100; {wanted} --holdout 200 has trained"
    assert str(caught.value) == f"argument --teacher: {file}: {problem}"
    changes = {
        "trained on other data": {"dataset": content["dataset"] | {"name": "kmnist", "mean": 0.2}},
        "its epoch was chosen on the test set": {"config": content["config"] | {"holdout": 0}},
    }
    for problem, change in changes.items():
        save_tensors(file, content | change)
        with pytest.raises(UsageError, match=f"^argument --teacher: .*{problem}.*; {wanted} has trained$"):
            call(*flags)
    save_tensors(file, content["model"])
    with pytest.raises(UsageError, match="or is unknown; "):
        call(*flags)
    with pytest.raises(UsageError, match=r"argument --teacher: .*/none\.pt is missing$"):
        call(*flags[:-1], str(tmp_path / "none.pt"))
    with pytest.raises(UsageError, match=r"argument --teacher: .*/teacher is a folder: name its best\.pt$"):
        call(*flags[:-1], str(file.parent))
    assert not folder.exists()


def test_what_contradicts_a_run_that_is_resumed_is_named(fake: list[float], tmp_path: Path) -> None:
    fake += [90.0] * 9
    folder = tmp_path / "run"
    call(*SHORT, "--output-dir", str(folder))
    for flags in (["--seed", "2"], ["--epochs", "9"], ["--no-early-stopping"], ["--recipe", "original"]):
        name = re.escape(flags[0].replace("no-", ""))
        with pytest.raises(UsageError, match=f"argument {name}: the run has .*, not .*; leave it out"):
            call("--resume", str(folder), *flags)
    call("--resume", str(folder), "--seed", "1", "--device", "cpu", "--target-accuracy", "99.4")
    with locked(folder), pytest.raises(UserError, match="in use by another process"):
        call("--resume", str(folder))


@pytest.mark.parametrize(
    "killed_before, accuracies", [("last.pt", [90, 95, 85, 80]), ("best.pt", [90, 95, 80])]
)
def test_best_weights_are_of_an_epoch_that_the_run_still_has(
    killed_before: str,
    accuracies: list[float],
    fake: list[float],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If the second epoch, the best so far, is lost, and its repetition ends lower; and if it is saved."""
    fake += accuracies
    folder, writes = tmp_path / "run", 0

    def save_or_die(path: Path, content: dict[str, Any]) -> None:
        nonlocal writes
        writes += path.name == killed_before
        if writes == (
            3 if killed_before == "last.pt" else 2
        ):  # last.pt is written before the first epoch, too
            raise KeyboardInterrupt
        save_tensors(path, content)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint, "save_tensors", save_or_die)
        call(*SHORT, "--output-dir", str(folder))
    call("--resume", str(folder))
    best, rows = load_trained(folder / "best.pt").metrics, read_table(folder / "metrics.csv", ["epoch"])
    expected = {"last.pt": ["90", "85", "80"], "best.pt": ["90", "95", "80"]}[killed_before]
    assert [row["eval_accuracy"] for row in rows] == expected
    assert best is not None and str(best.eval_accuracy) == max(expected)
    (folder / "best.pt").write_text("damaged")
    (folder / "metrics.csv").unlink()
    call("--resume", str(folder))  # finished; but what follows from last.pt is restored
    assert load_trained(folder / "best.pt").metrics == best
    assert read_table(folder / "metrics.csv", ["epoch"]) == rows


def test_a_table_that_cannot_be_written_loses_no_epoch(
    fake: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """As when a spreadsheet has it open on Windows."""
    fake += [90.0, 91.0, 92.0]
    calls = 0

    def write_or_fail(path: Path, rows: list[Any]) -> None:
        nonlocal calls
        calls += 1
        if calls in (2, 3):
            raise PermissionError("metrics.csv can't be written: Permission denied")
        write_table(path, rows)

    monkeypatch.setattr(checkpoint, "write_table", write_or_fail)
    call(*SHORT, "--output-dir", str(tmp_path / "run"))
    line = "warning: metrics.csv can't be written: Permission denied; the next epoch, or --resume, writes it"
    assert capsys.readouterr().err.count(line) == 2
    assert len(read_table(tmp_path / "run" / "metrics.csv", ["epoch"])) == 3


def test_a_run_of_a_device_that_is_missing_says_how_to_continue(
    fake: list[float], tmp_path: Path, capsys: Capture
) -> None:
    fake += [90.0] * 8
    for flags in (["--device", "cpu"], ["--device", "auto"]):
        folder = tmp_path / flags[1]
        call(*SHORT, "--output-dir", str(folder))
        progress = torch.load(folder / "last.pt", weights_only=True)
        missing = "mps" if not torch.backends.mps.is_available() else "cuda:99"
        stopped = {"device": missing, "finished": False, "metrics": progress["metrics"][:2]}
        torch.save(progress | stopped, folder / "last.pt")
        problem = f"{folder} was trained on {missing}, which can't be used here"
        with pytest.raises(UserError) as caught:
            call("--resume", str(folder))
        assert str(caught.value) == f"{problem}: to continue on the CPU, add --device cpu"
        call("--resume", str(folder), *flags)
        assert load_run(folder)[0].finished


@pytest.mark.parametrize("content", [None, b"", b"text", b"PK\x03\x04"])
def test_what_cannot_be_resumed(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "last.pt").write_bytes(content)
    with pytest.raises((UserError, OSError), match=re.escape(str(tmp_path / "last.pt"))) as caught:
        call("--resume", str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", ["model", "optimizer", "scheduler"])
@pytest.mark.parametrize("damage", [None, {}, {"state": 3}])
def test_states_that_do_not_fit(part: str, damage: Any, fake: list[float], tmp_path: Path) -> None:
    fake += [90.0] * 3
    folder = tmp_path / "run"
    call(*SHORT, "--output-dir", str(folder))
    progress = torch.load(folder / "last.pt", weights_only=True)
    torch.save(progress | {"finished": False, part: damage}, folder / "last.pt")
    with pytest.raises(UserError, match=r"last\.pt does not fit this version of the project"):
        call("--resume", str(folder))


def test_dry_run_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.chdir(tmp_path)
    call("--dry-run", "--holdout", "100")
    out = capsys.readouterr().out
    assert "Epoch 1/1" in out and out.endswith("This was a dry run: no results are kept\n")
    assert call_and_stop(monkeypatch, "--dry-run", epoch=1) == ""  # no folder that is deleted now
    assert list(tmp_path.iterdir()) == []


def test_a_run_never_writes_over_another(tmp_path: Path) -> None:
    (tmp_path / "best.pt").write_text("mine")
    with pytest.raises(UsageError, match=re.escape(f"argument --output-dir: {tmp_path} is not empty")):
        call("--output-dir", str(tmp_path), "--epochs", "1")
    assert (tmp_path / "best.pt").read_text() == "mine"


def test_a_device_that_cannot_be_used_and_one_that_can(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    zeros = torch.zeros

    def broken() -> NoReturn:
        raise RuntimeError("no kernel image is available")

    assert select_device("cpu:0").type == "cpu"
    there = "mps" if not torch.backends.mps.is_available() else "cuda:99"
    for name in ("gpu", "cuda:x", "meta", "", there):
        with pytest.raises(UsageError, match=f"^argument --device: {name} can't be used") as caught:
            select_device(name)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 250
    # A GPU that NVML counts but the runtime can't use.
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert select_device("auto").type != "cuda"
    # A GPU that torch counts but can't use.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "zeros", lambda *_, device: broken() if device == "cuda" else zeros(1))
    assert select_device("auto").type != "cuda"
    assert capsys.readouterr().err == "warning: cuda can't be used here: no kernel image is available\n"


def test_without_torchsummary(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setitem(sys.modules, "torchsummary", None)
    main.print_summary(Net())
    assert capsys.readouterr().out == (
        "Total parameters: 9,798\nTrainable parameters: 9,798\n"
        "No summary table: torchsummary is not installed (pip install torchsummary)\n"
    )


@pytest.mark.usefixtures("few_images")
def test_test_only_evaluates_weights(
    test_set: Set, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """Against a loop over the test set, normalised by hand."""
    trained = load_trained(ROOT / "weights" / "best.pt")
    images, labels = (part[:1000] for part in test_set)
    with torch.inference_mode():
        logits = trained.model((images[:, None] / 255 - MEAN) / STD)
    right = int((logits.argmax(dim=1) == labels).sum())
    monkeypatch.chdir(tmp_path)  # no runs/ here: the weights are the project's own
    call("--test-only", "--device", "cpu")
    out = capsys.readouterr().out
    assert out.startswith(f"Weights: {trained}\n\nTest set: Average loss: 0.0")
    assert f"Accuracy: {right}/1000 ({right / 10:.2f}%)\n" in out
    with pytest.raises(OSError, match="No such file"):
        call("--test-only", "--weights", "missing.pt")
    assert list(tmp_path.iterdir()) == []


def test_what_is_saved_is_what_was_evaluated(tmp_path: Path) -> None:
    call(*SHORT, "--epochs", "2", "--output-dir", str(tmp_path / "run"))
    trained = load_trained(tmp_path / "run" / "best.pt")
    assert trained.config is not None and trained.metrics is not None
    images, labels = load_mnist(train=True)
    held_out = split_holdout(labels, trained.config.holdout)[1]
    log_probs = trained.log_probs(images[held_out])
    loss = torch.nn.functional.nll_loss(log_probs, labels[held_out]).item()
    assert loss == pytest.approx(trained.metrics.eval_loss, rel=1e-4)


def test_both_intervals_end_the_schedule_with_its_last_step(tmp_path: Path) -> None:
    rates = []
    for interval in ("batch", "epoch"):
        call(*SHORT, "--schedule-interval", interval, "--output-dir", str(tmp_path / interval))
        with open(tmp_path / interval / "metrics.csv") as file:
            rates.append([float(row["lr"]) for row in csv.DictReader(file)])
        scheduler = torch.load(tmp_path / interval / "last.pt", weights_only=True)["scheduler"]
        assert scheduler["last_epoch"] == 5  # of 3 epochs of 2 batches, counted from 0
    assert rates[0] == rates[1] and len(set(rates[0])) == 3  # at the start of each epoch


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_an_evaluation_that_is_no_number_is_not_saved(
    loss: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([2.0, loss])
    monkeypatch.setattr(main, "test", lambda *rest, **more: (next(losses), 50.0))
    with pytest.raises(UserError, match=f"became {loss} after epoch 2: try a lower --max-lr"):
        call(*SHORT, "--output-dir", str(tmp_path / "run"))
    best, last = (torch.load(tmp_path / "run" / f"{n}.pt", weights_only=True) for n in ("best", "last"))
    assert best["metrics"]["epoch"] == 1 and len(last["metrics"]) == 1


def test_deterministic_algorithms_change_nothing_on_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    try:
        for name, flags in (("a", ["--use-deterministic-algorithms"]), ("b", [])):
            call(*SHORT, *flags, "--output-dir", str(tmp_path / name))
            assert torch.are_deterministic_algorithms_enabled() == (name == "a")
            torch.use_deterministic_algorithms(False)
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)
    one, other = (torch.load(tmp_path / n / "last.pt", weights_only=True)["model"] for n in "ab")
    assert same(one, other)


def make_folder(root: Path, classes: str = "abc") -> Path:
    """Write 12 pictures for each of the ``classes``, 40×30 and of a grey of its own, but for a pixel."""
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(12):
            picture = Image.new("L", (40, 30), 60 * number + 40)
            picture.putpixel((20, i), 255)
            picture.save(root / name / f"{i:02}.png")
    return root


def test_a_run_on_a_folder_of_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """Stopped, resumed and evaluated, with what depends on the data read back from its checkpoints."""
    monkeypatch.chdir(tmp_path)
    data, other = make_folder(tmp_path / "my data"), make_folder(tmp_path / "other", "abcd")
    flags = ["--device", "cpu", "--epochs", "2", "--batch-size", "8", "--dataset", "folder"]

    def stop(*rest: Any, **more: Any) -> tuple[float, float]:
        if more["epoch"] > 1:
            raise KeyboardInterrupt
        return train(*rest, **more)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt) as caught:
        patch.setattr(main, "train", stop)
        call(*flags, "--data-path", str(data), "--output-dir", "runs/a")
    assert str(caught.value).endswith("main.py --resume runs/a")
    assert load_run(Path("runs/a"))[0].data_path == str(data)
    with pytest.raises(UserError, match=r"--data-path .*other: not the data that runs/a was trained on"):
        call("--resume", "runs/a", "--data-path", str(other))
    with pytest.raises(UsageError, match="argument --data-path: MNIST needs none, so leave it out"):
        call("--data-path", str(data), "--output-dir", "runs/b")  # --dataset folder was forgotten
    assert not Path("runs", "b").exists()
    with pytest.raises(UsageError, match="argument --dataset: the run has folder, not mnist"):
        call("--resume", "runs/a", "--dataset", "mnist")
    capsys.readouterr()
    moved = data.rename(tmp_path / "moved")
    with pytest.raises(UserError, match=rf"the data set is no longer in {data}: add --data-path"):
        call("--resume", "runs/a")
    picture = next(path for path in moved.rglob("*.*") if path.is_file())
    content = picture.read_bytes()
    Image.new("L", (28, 28), 1).save(picture)
    with pytest.raises(UserError, match="moved: not the data that runs/a was trained on"):
        call("--resume", "runs/a", "--data-path", str(moved))
    picture.write_bytes(content)
    call("--resume", "runs/a", "--data-path", str(moved))
    out = capsys.readouterr().out
    assert "Total parameters: 9,679\n" in out  # seven channels fewer, of 16 weights and a bias each
    assert "Accuracy at the end of the schedule: " in out  # no early stop
    trained = newest_trained()
    assert trained.dataset == load_run(Path("runs/a"))[0].dataset
    assert trained.dataset.classes == ("a", "b", "c") and trained.model.conv7.out_channels == 3
    assert str(trained).endswith("% on the test set of folder)")
    call("--test-only", "--device", "cpu")  # where the run had its data
    printed = capsys.readouterr()
    assert re.search(r"Accuracy: \d/8 \(", printed.out) and printed.err == ""
    again = moved.rename(tmp_path / "again")
    call("--resume", "runs/a", "--data-path", str(again))  # finished: only the path is new
    call("--test-only", "--device", "cpu")
    call(*flags, "--data-path", str(again), "--holdout", "5", "--output-dir", "held")
    capsys.readouterr()
    call("--test-only", "--weights", "held")
    assert capsys.readouterr().err == ""
    changed = shutil.copytree(again, tmp_path / "changed")
    picture = next(path for path in sorted(changed.rglob("*.*"), reverse=True) if path.is_file())
    shutil.copy(picture, picture.with_name(f"0{picture.name}"))
    for run in ("runs/a", "held"):
        call("--test-only", "--weights", run, "--data-path", str(changed))
        assert "changed: not the test set of the training run" in capsys.readouterr().err
    with pytest.raises(UserError, match="training and test set differ in the classes d"):
        call("--test-only", "--data-path", str(other))
    with pytest.raises(UsageError, match="argument --dataset: the weights were trained on folder"):
        call("--test-only", "--dataset", "kmnist")


@pytest.mark.parametrize("flags", [[], ["--early-stopping"], ["--target-accuracy", "90"]])
def test_another_data_set_has_no_early_stop_unless_asked(
    flags: list[str], fake: list[float], tmp_path: Path, capsys: Capture
) -> None:
    fake += [99.5, 99.6]
    call(
        *("--dataset", "folder", "--data-path", str(make_folder(tmp_path / "data")), "--epochs", "2"),
        *("--device", "cpu", "--output-dir", str(tmp_path / "run"), *flags),
    )
    assert ("reached at epoch 1!" in capsys.readouterr().out) == bool(flags)
    assert load_run(tmp_path / "run")[0].config.early_stopping == bool(flags)


def test_data_that_cannot_be_had_leave_no_folder(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        call("--dataset", "folder", "--data-path", str(tmp_path / "a"), "--output-dir", str(tmp_path / "b"))
    assert list(tmp_path.iterdir()) == []


def test_the_notebook_of_the_readme_runs() -> None:
    code = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.S)[0]
    assert code.count("\n") <= 17 and "in range(1, DEFAULT.epochs + 1):" in code
    code = code.replace("DEFAULT.epochs + 1", "3")
    short = "type(DEFAULT)(holdout=200, limit_train_batches=2)"
    code = code.replace("get_loaders(DEFAULT,", f"get_loaders({short},")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"Test set: Average loss: .*, Accuracy: \d+/200", done.stdout)) == 2


def test_importing_changes_no_global_state_and_takes_no_slow_packages() -> None:
    code = "import signal, sys, torch; state = torch.get_rng_state(), signal.getsignal(15), sys.excepthook\n"
    code += "import main, utils, predict.command, export.command\n"
    code += "now = torch.get_rng_state(), signal.getsignal(15), sys.excepthook\n"
    code += "assert torch.equal(state[0], now[0]) and state[1:] == now[1:]\n"
    code += "assert not {'torchvision', 'matplotlib', 'torchsummary', 'onnx'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_tensorboard_shows_each_epoch_once(tmp_path: Path) -> None:
    """Also after a stop that came when an epoch's events were written, but not yet its last.pt."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "run"
    call(*SHORT, "--output-dir", str(folder), "--tensorboard")
    progress = torch.load(folder / "last.pt", weights_only=True)
    early = progress | {"metrics": progress["metrics"][:2], "finished": False}
    torch.save(early, folder / "last.pt")
    call("--resume", str(folder), "--tensorboard")
    events = EventAccumulator(str(folder))
    events.Reload()
    tags = {"lr": "lr", "loss/train": "train_loss", "accuracy/train": "train_accuracy"}
    tags |= {"loss/holdout": "eval_loss", "accuracy/holdout": "eval_accuracy"}
    assert set(events.Tags()["scalars"]) == set(tags)
    with open(folder / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    for tag, column in tags.items():
        assert [event.step for event in events.Scalars(tag)] == [1, 2, 3]
        values = [event.value for event in events.Scalars(tag)]
        assert values == pytest.approx([float(row[column]) for row in rows], rel=1e-6)
    for old in folder.glob("events.*"):
        old.unlink()
    call("--resume", str(folder), "--tensorboard")  # finished: only the curves are written
    events = EventAccumulator(str(folder))
    events.Reload()
    assert [event.step for event in events.Scalars("lr")] == [1, 2, 3]


def test_without_tensorboard_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(UsageError, match="argument --tensorboard: pip install tensorboard"):
        call(*SHORT, "--tensorboard", "--output-dir", str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_the_device_is_kept_by_the_name_it_was_given(tmp_path: Path) -> None:
    config, options = parse_args([*SHORT, "--device", "cpu:0"])
    main.main(config, replace(options, output_dir=str(tmp_path / "run")))
    assert torch.load(tmp_path / "run" / "last.pt", weights_only=True)["device"] == "cpu:0"
