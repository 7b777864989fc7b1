"""The experiment as a whole, and the files that it leaves."""

import csv
import errno
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, Set
from PIL import Image
from runs import SHORT, assert_same_run, call, call_and_stop, load, read_table, same

import checkpoint
import main
import train as train_module
import utils
from checkpoint import load_run, save_tensors
from datasets import MNIST, load_mnist, split_holdout
from model import Net
from runtime.errors import UsageError, UserError
from runtime.files import locked, write_table
from trained import load_trained
from utils import affine

SUMMARY = (ROOT / "tests" / "summary.txt").read_text(encoding="utf-8")
MISSING = "mps" if not torch.backends.mps.is_available() else "cuda:99"  # a device that isn't here
Capture = pytest.CaptureFixture[str]


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


def test_stops_at_the_first_epoch_that_reaches_the_target(
    fake: list[float], tmp_path: Path, capsys: Capture
) -> None:
    fake += [90.0, 99.39, 99.4, 99.99]
    folder = tmp_path / "my run"
    call("--recipe", "original", "--device", "cpu", "--output-dir", str(folder))
    quoted = shlex.quote(str(folder))
    assert capsys.readouterr().out.endswith(
        "New best accuracy: 99.40%\nTarget accuracy of 99.4% reached at epoch 3!\n\n"
        "Final best accuracy: 99.40%\nTotal parameters: 9,798\n\n"
        f"The results are in {quoted}. To look at them, and to use the network:\n"
        f"    python -m report {quoted}\n"
        f"    python -m predict --weights {quoted} IMAGE\n"
        f"    python -m export --weights {quoted}\n"
    )
    best = load_run(folder / "best.pt").best
    assert best is not None and best.epoch == 3


@pytest.mark.parametrize(
    "target, accuracies, end",
    [
        # Without a target even 100 % doesn't stop it; otherwise, 100 % is a target like another.
        ("0", [90.0, 100.0, 99.45], "Accuracy at the end of the schedule: 99.45%\n"),
        ("100", [90.0, 100.0], "Target accuracy of 100% reached at epoch 2!\n"),
        ("99.4", [90.0, 91.0, 90.5], "Target accuracy of 99.4% not reached by epoch 3.\n"),
    ],
)
def test_the_end_of_a_run_is_said(
    target: str, accuracies: list[float], end: str, fake: list[float], tmp_path: Path, capsys: Capture
) -> None:
    fake += accuracies
    folder = tmp_path / "run"
    call(*SHORT, "--output-dir", str(folder), "--target-accuracy", target)
    out = capsys.readouterr().out
    assert f"{end}\nFinal best accuracy: {max(accuracies):.2f}%\n" in out
    assert out.count("New best accuracy") == 2
    best = load_run(folder / "best.pt").best
    assert best is not None and best.epoch == 2


@pytest.mark.usefixtures("few_images")
def test_console_output_is_the_originals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    pytest.importorskip("torchsummary")
    monkeypatch.chdir(tmp_path)
    flags = ["--device", "cpu", "--epochs", "2", "--limit-train-batches", "3", "--recipe", "original"]
    call(*flags, summary=True)
    out, err = capsys.readouterr()
    (folder,) = Path("runs").iterdir()
    number = r"\d+\.\d"
    test_line = rf"Test set: Average loss: {number}{{4}}, Accuracy: \d+/1000 \({number}\d%\)\n\n"
    expected = (
        r"Device: cpu\n" + re.escape(SUMMARY) + rf"(\nEpoch [12]/2\n\n{test_line}"
        rf"(New best accuracy: {number}\d%\n)?){{2}}Target accuracy of 99\.4% not reached by epoch 2\.\n\n"
        rf"Final best accuracy: {number}\d%\nTotal parameters: 9,798\n\n"
        rf"The results are in {folder}\. To look at them, and to use the network:\n(    python -m .*\n){{3}}"
    )
    assert re.fullmatch(expected, out), out
    assert re.search(rf"Epoch=2 Loss={number}{{4}} Batch_id=2 Accuracy={number}\d%: 100%\|█+\| 3/3 \[", err)
    rows = read_table(folder / "metrics.csv")
    assert [row["epoch"] for row in rows] == ["1", "2"]
    for row in rows:
        assert row["split"] == "test"
        assert f"({float(row['eval_accuracy']):.2f}%)" in out
        assert f"Average loss: {float(row['eval_loss']):.4f}" in out


def seed_of(seed: int, epoch: int, stream: int) -> int:
    """Return the seed of the weights (stream 0), of an epoch's images (1) and of its dropout (2)."""
    return int(np.random.SeedSequence([seed, epoch, stream]).generate_state(1)[0])


@pytest.mark.arithmetic
@pytest.mark.usefixtures("few_images")
@pytest.mark.parametrize("interval", ["batch", "epoch"])
def test_a_run_is_this_loop(interval: str, tmp_path: Path, train_set: Set) -> None:
    """A short run, with torch's own layers, optimizer and schedule, and each random number drawn here."""
    rotation, shift, scale, decay = 10.0, 2.0, 0.1, 0.9
    flags = (
        f"--epochs 3 --batch-size 200 --limit-train-batches 2 --seed 7 --rotation {rotation} --translation 2"
    )
    flags += f" --scale {scale} --dropout 0 --lr 0.02 --model-ema-decay {decay} --train-crop-size 20"
    flags += f" --target-accuracy 0 --device cpu --schedule-interval {interval}"
    call(*flags.split(), "--output-dir", str(tmp_path / "run"))

    images, labels = (part[:1000] for part in train_set)
    torch.manual_seed(seed_of(7, 0, 0))
    model = Net(dropout=0.0)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    average = dict(start)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.95, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        *(optimizer, 0.02, 6), pct_start=2 / 6, div_factor=20, final_div_factor=100
    )
    rates = []
    for epoch in (1, 2, 3):
        generator = torch.Generator().manual_seed(seed_of(7, epoch, 1))
        order = torch.randperm(1000, generator=generator)
        for step in range(2):
            rates.append(optimizer.param_groups[0]["lr"])
            index = order[step * 200 : (step + 1) * 200]
            draws = torch.rand(200, 6, generator=generator) * 2 - 1
            batch = affine(
                *(images[index, None].float(), draws[:, 0] * rotation),
                shift=draws[:, 1:3] * shift,
                scale=1 + draws[:, 3:5] * scale,
                interpolation="bilinear",
            )
            batch = batch[:, :, 4:24, 4:24] if epoch == 1 else batch
            optimizer.zero_grad()
            F.nll_loss(model((batch / 255 - 0.1307) / 0.3081), labels[index]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if interval == "batch":
                schedule.step()
            keep = min(decay, (1 + len(rates) - 1) / (10 + len(rates) - 1))
            for name, value in model.state_dict().items():
                average[name] = average[name] * keep + value * (1 - keep)
        if interval == "epoch":
            for _ in range(2):
                schedule.step()

    run = load(tmp_path / "run" / "last.pt")
    assert [row["lr"] for row in run["metrics"]] == pytest.approx(rates[::2])
    assert run["training"]["scheduler"]["last_epoch"] == 6
    # Speed_up rounds otherwise, which decides ties in pooling: some 2 % of how far the weights have moved.
    for part, expected in (("model", model.state_dict()), ("ema", average)):
        found = run["training"][part]
        names = [name for name, value in start.items() if value.is_floating_point()]
        moved = torch.cat([(expected[name] - start[name]).flatten() for name in names])
        apart = torch.cat([(expected[name] - found[name]).flatten() for name in names])
        assert apart.norm() < 0.2 * moved.norm(), part  # with other random numbers, it is 1


@pytest.mark.usefixtures("few_images")
def test_each_setting_changes_the_weights_and_nothing_else_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)

    def weights(name: str, *flags: str) -> Any:
        call(*SHORT, "--epochs", "2", *flags, "--output-dir", str(tmp_path / name))
        return load(tmp_path / name / "best.pt")["best_weights"], load(tmp_path / name / "last.pt")[
            "training"
        ]["model"]

    base = list(weights("base", "--device", "cpu"))
    assert same(base, list(weights("again", "--target-accuracy", "100")))
    try:
        assert same(base, list(weights("deterministic", "--use-deterministic-algorithms")))
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)
    flags = """--seed=2 --rotation=0 --interpolation=nearest --translation=1 --scale=0.1
        --train-crop-size=20 --dropout=0 --label-smoothing=0.1 --model-ema-decay=0
        --schedule-interval=epoch --weight-decay=0.01 --div-factor=10 --lr=0.2 --batch-size=16
        --epochs=3 --holdout=200 --limit-train-batches=3 --recipe=fast --opt=muon"""
    known = {entry.partition("=")[0] for entry in flags.split()}
    other = {"--dataset", "--target-accuracy", "--use-deterministic-algorithms"}
    assert known | other == {
        "--" + name.replace("_", "-") for name in load(tmp_path / "base" / "last.pt")["config"]
    }
    for number, flag in enumerate(flags.split()):
        assert not same(base, list(weights(str(number), flag))), flag


@pytest.mark.parametrize(
    "flags", ["--recipe original --lr 0.3", "--translation 1 --dropout 0.05", "--opt muon"]
)
def test_stopped_and_resumed_is_as_if_never_stopped(flags: str, tmp_path: Path) -> None:
    """With dropout and the epoch's schedule; with the running average and the batch's schedule; with Muon."""
    whole, folder = tmp_path / "whole", tmp_path / "stopped"
    call(*SHORT, *flags.split(), "--output-dir", str(whole))
    message = call_and_stop(*SHORT, *flags.split(), "--output-dir", str(folder))
    assert message == f"to continue: python main.py --resume {shlex.quote(str(folder))}"
    assert load_run(folder / "last.pt").epoch == 1
    call("--resume", str(folder))
    assert_same_run(folder, whole)
    call("--resume", str(folder / "last.pt"))  # finished: nothing happens
    assert_same_run(folder, whole)


def test_a_run_stopped_on_another_device_keeps_its_momenta(tmp_path: Path) -> None:
    flags = [*SHORT, "--recipe", "original", "--lr", "0.3"]
    call(*flags, "--output-dir", str(tmp_path / "whole"))
    call_and_stop(*flags, "--output-dir", str(tmp_path / "stopped"))
    path = tmp_path / "stopped" / "last.pt"
    content = load(path)
    strides = set()
    for state in content["training"]["optimizer"]["state"].values():
        strides.add(state["momentum_buffer"].is_contiguous())
        state["momentum_buffer"] = state["momentum_buffer"].contiguous()  # as on a GPU
    assert False in strides
    save_tensors(path, content)
    call("--resume", str(tmp_path / "stopped"))
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


def test_looking_at_the_images_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a notebook, before the training and in it."""
    get_loaders, train = utils.get_loaders, train_module.train

    def look(*rest: Any) -> Any:
        loaders = get_loaders(*rest)
        next(iter(loaders[0]))
        return loaders

    def train_and_look(*rest: Any, **more: Any) -> tuple[float, float]:
        result = train(*rest, **more)
        list(rest[2])
        return result

    call(*SHORT, "--output-dir", str(tmp_path / "a"))
    monkeypatch.setattr(main, "get_loaders", look)
    monkeypatch.setattr(main, "train", train_and_look)
    call(*SHORT, "--output-dir", str(tmp_path / "b"))
    assert_same_run(tmp_path / "a", tmp_path / "b")


def test_only_what_contradicts_a_run_is_refused_when_it_is_resumed(
    fake: list[float], tmp_path: Path, capsys: Capture
) -> None:
    fake += [90.0] * 9
    folder = tmp_path / "run"
    call(*SHORT, "--recipe", "original", "--lr", "0.0004", "--output-dir", str(folder))
    for flags in (["--seed", "2"], ["--epochs", "9"], ["--target-accuracy", "0"], ["--recipe", "default"]):
        with pytest.raises(UsageError, match=f"argument {flags[0]}: the run has .*, not .*; leave it out"):
            call("--resume", str(folder), *flags)
    with pytest.raises(UsageError, match=r"argument --lr: the run has 0\.0004, not 0\.3; leave it out"):
        call("--resume", str(folder), "--lr", "0.3")  # default's, which is given all the same
    # These agree, though some are neither default's nor original's.
    call("--resume", str(folder), "--lr", "4e-4", "--seed", "1", "--device", "cpu", "--div-factor=10")
    call("--resume", str(folder), "--recipe", "original", "--schedule-interval", "epoch", "--dropout=0.05")
    capsys.readouterr()
    call("--resume", str(folder), "--data-path", str(tmp_path))
    assert capsys.readouterr().err == "warning: --data-path is not used: MNIST is included\n"
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
    deadly = {"last.pt": 3, "best.pt": 2}[killed_before]  # last.pt is written before the first epoch, too

    def save_or_die(path: Path, content: dict[str, Any]) -> None:
        nonlocal writes
        writes += path.name == killed_before
        if writes == deadly:
            raise KeyboardInterrupt
        save_tensors(path, content)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint, "save_tensors", save_or_die)
        call(*SHORT, "--output-dir", str(folder))
    call("--resume", str(folder))
    best, rows = load_run(folder / "best.pt").best, read_table(folder / "metrics.csv")
    expected = {"last.pt": ["90", "85", "80"], "best.pt": ["90", "95", "80"]}[killed_before]
    assert [row["eval_accuracy"] for row in rows] == expected
    assert best is not None and str(best.eval_accuracy) == max(expected)
    (folder / "best.pt").write_text("damaged")
    (folder / "metrics.csv").unlink()
    call("--resume", str(folder))  # finished; but what follows from last.pt is restored
    assert load_run(folder / "best.pt").best == best
    assert read_table(folder / "metrics.csv") == rows


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
    assert len(read_table(tmp_path / "run" / "metrics.csv")) == 3


def test_a_run_continues_on_another_device_if_that_is_given(fake: list[float], tmp_path: Path) -> None:
    fake += [90.0] * 8
    folder = tmp_path / "run"
    call(*SHORT, "--device", "cpu:0", "--output-dir", str(folder))
    run = load(folder / "last.pt")
    assert run["device"] == "cpu:0"  # by the name it was given
    save_tensors(folder / "last.pt", run | {"device": MISSING, "metrics": run["metrics"][:2]})
    with pytest.raises(
        UsageError, match=f"^argument --device: {MISSING} can't be used here.*; cpu always works"
    ):
        call("--resume", str(folder))
    call("--resume", str(folder), "--device", "auto")
    run = load_run(folder / "last.pt")
    assert run.finished and run.device != MISSING


@pytest.mark.parametrize("content", [None, b"", b"text", b"PK\x03\x04"])
def test_what_cannot_be_resumed(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "last.pt").write_bytes(content)
    with pytest.raises(UserError, match=re.escape(str(tmp_path / "last.pt"))) as caught:
        call("--resume", str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("few_images")
def test_a_dry_run_is_one_epoch_of_three_batches_and_keeps_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--dry-run", "--epochs", "10000", "--limit-train-batches", "9", "--device", "cpu"]
    call(*flags)
    out, err = capsys.readouterr()
    assert out.count("Epoch ") == 1 and "\nEpoch 1/1\n" in out and " 3/3 [" in err
    assert out.endswith("This was a dry run: no results are kept\n")
    assert call_and_stop(*flags, epoch=1) == ""  # no folder that is deleted now
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["best.pt", "thesis.txt", "a folder/x"])
def test_nothing_of_a_folder_that_is_not_empty_is_touched(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError, match=re.escape(f"argument --output-dir: {tmp_path} is not empty")):
        call(*SHORT, "--output-dir", str(tmp_path))
    assert sorted(tmp_path.rglob("*")) == before and file.read_text() == "mine"


def test_what_an_earlier_process_left_in_a_folder_does_not_matter(fake: list[float], tmp_path: Path) -> None:
    """One that was killed before it had saved anything leaves a lock that nobody holds."""
    fake += [90.0] * 3
    (tmp_path / ".lock").touch()
    (tmp_path / ".last.pt.123.tmp").write_bytes(b"half")
    call(*SHORT, "--output-dir", str(tmp_path))
    assert load_run(tmp_path / "last.pt").finished and not list(tmp_path.glob("*.tmp"))


def refusal(*flags: str) -> str:
    """Return the one line in which a run ends that can't have its folder."""
    with pytest.raises(UserError) as caught:
        call(*SHORT, *flags)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.skipif(os.name != "posix", reason="the messages are POSIX's")
def test_a_folder_that_cannot_be_made_is_one_line_that_names_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link to what isn't mounted, a circle of links, a file in its place, a file system for reading."""
    monkeypatch.chdir(tmp_path)
    runs, solution = Path("runs"), ": name a folder for the results by --output-dir"
    runs.symlink_to("/not/mounted")
    assert refusal() == f"runs: File exists{solution}"
    assert refusal("--output-dir", "runs/a").startswith("runs: File exists: ")
    runs.unlink()
    runs.symlink_to("runs")
    assert "Too many levels of symbolic links" in refusal() or "File exists" in refusal()
    runs.unlink()
    runs.write_text("mine")
    assert refusal().endswith(solution) and runs.read_text() == "mine"
    runs.unlink()

    def read_only(path: Path, *rest: object, **more: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", read_only)
        assert re.fullmatch(rf"runs/\d+-\d+-default-seed1: Read-only file system{solution}", refusal())
    assert list(tmp_path.iterdir()) == []


def test_a_tilde_is_the_home_folder(
    fake: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake += [90.0] * 4
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))  # on Windows
    call(*SHORT, "--output-dir=~/x")
    call("--resume=~/x")
    assert (tmp_path / "home" / "x" / "best.pt").exists() and not (tmp_path / "~").exists()


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
        logits = trained.model((images[:, None] / 255 - MNIST.mean) / MNIST.std)
    right = int((logits.argmax(dim=1) == labels).sum())
    monkeypatch.chdir(tmp_path)
    call("--test-only", "--device", "cpu")
    out, err = capsys.readouterr()
    assert out.startswith(f"Weights: {trained}\n\nTest set: Average loss: 0.0") and err == ""
    assert f"Accuracy: {right}/1000 ({right / 10:.2f}%)\n" in out
    call("--test-only", "--device", "cpu", "--data-path", "somewhere")
    assert capsys.readouterr().err == "warning: --data-path is not used: MNIST is included\n"
    with pytest.raises(UserError, match=r"missing\.pt is missing: name a file of weights"):
        call("--test-only", "--weights", "missing.pt")
    assert list(tmp_path.iterdir()) == []


def test_what_is_saved_is_what_was_evaluated(tmp_path: Path) -> None:
    call(*SHORT, "--epochs", "2", "--output-dir", str(tmp_path / "run"))
    trained = load_trained(tmp_path / "run")
    assert trained.run is not None and trained.run.best is not None
    images, labels = load_mnist(train=True)
    held_out = split_holdout(labels, 100)[1]
    log_probs = trained.log_probs(images[held_out])
    loss = F.nll_loss(log_probs, labels[held_out]).item()
    assert loss == pytest.approx(trained.run.best.eval_loss, rel=1e-4)


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_an_evaluation_that_is_no_number_is_not_saved(
    loss: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([2.0, loss])
    monkeypatch.setattr(main, "test", lambda *rest, **more: (next(losses), 50.0))
    with pytest.raises(UserError, match=f"became {loss} after epoch 2: try a lower --lr"):
        call(*SHORT, "--output-dir", str(tmp_path / "run"))
    for name in ("best.pt", "last.pt"):
        assert load_run(tmp_path / "run" / name).epoch == 1


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
    flags += ["--target-accuracy", "0"]
    call_and_stop(*flags, "--data-path", "my data", "--output-dir", "runs/a")
    assert load_run(Path("runs/a/last.pt")).dataset.path == str(data)
    with pytest.raises(UserError, match=r"--data-path .*other: not the data that runs/a was trained on"):
        call("--resume", "runs/a", "--data-path", str(other))
    with pytest.raises(UsageError, match="argument --dataset: the run has folder, not mnist"):
        call("--resume", "runs/a", "--dataset", "mnist")
    moved = data.rename(tmp_path / "moved")
    with pytest.raises(UserError, match=re.escape(f"--data-path {data}: no such folder")):
        call("--resume", "runs/a")
    picture = next(path for path in moved.rglob("*.*") if path.is_file())
    content = picture.read_bytes()
    Image.new("L", (28, 28), 1).save(picture)
    with pytest.raises(UserError, match="moved: not the data that runs/a was trained on"):
        call("--resume", "runs/a", "--data-path", str(moved))
    picture.write_bytes(content)
    capsys.readouterr()
    call("--resume", "runs/a", "--data-path", str(moved))
    out = capsys.readouterr().out
    assert "Total parameters: 9,679\n" in out  # seven channels fewer, of 16 weights and a bias each
    assert "Accuracy at the end of the schedule: " in out
    trained = load_trained("runs/a")
    assert trained.dataset == load_run(Path("runs/a/last.pt")).dataset
    assert trained.dataset.classes == ("a", "b", "c") and trained.model.conv7.out_channels == 3
    assert str(trained).endswith("% on the test set of folder)")
    call("--test-only", "--weights", "runs/a", "--device", "cpu")  # where the run had its data
    printed = capsys.readouterr()
    assert re.search(r"Accuracy: \d/8 \(", printed.out) and printed.err == ""
    again = moved.rename(tmp_path / "again")
    call("--resume", "runs/a", "--data-path", "again")  # finished: only the path is new
    call("--test-only", "--weights", "runs/a", "--device", "cpu")
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
        call("--test-only", "--weights", "runs/a", "--data-path", str(other))


def test_data_that_cannot_be_had_leave_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        call("--dataset", "folder", "--data-path", str(tmp_path / "a"), "--output-dir", str(tmp_path / "b"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("few_images")
def test_the_notebook_of_the_readme_runs(capsys: Capture) -> None:
    code = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.S)[0]
    assert code.count("\n") <= 17 and "in range(1, DEFAULT.epochs + 1):" in code
    code = code.replace("DEFAULT.epochs + 1", "3")
    short = "type(DEFAULT)(holdout=200, limit_train_batches=2)"
    code = code.replace("get_loaders(DEFAULT,", f"get_loaders({short},")
    exec(code, {})
    out = capsys.readouterr().out
    assert len(re.findall(r"Test set: Average loss: .*, Accuracy: \d+/200", out)) == 2


def test_importing_changes_no_global_state_and_takes_no_slow_packages() -> None:
    modules = [path.stem for path in ROOT.glob("*.py")]
    modules += [f"{path.parent.name}.{path.stem}" for path in ROOT.glob("runtime/[a-z]*.py")]
    modules += ["datasets", "datasets.mnist", "datasets.describe", "datasets.folder"]
    state = "torch.get_rng_state().tolist(), signal.getsignal(15), sys.excepthook, list(sys.path), "
    state += "dict(os.environ), list(warnings.filters), torch.get_num_threads()"
    code = "import os, signal, sys, warnings, torch, filelock, tqdm, PIL.Image\n"
    code += f"before = {state}\nimport {', '.join(modules)}\nassert before == ({state})\n"
    code += "slow = {'torchvision', 'matplotlib', 'torchsummary', 'onnx', 'tensorboard'}\n"
    code += f"assert not slow & sys.modules.keys() and test.__file__ == {str(ROOT / 'test.py')!r}"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_tensorboard_shows_each_epoch_once(tmp_path: Path) -> None:
    """Also after a stop that came when an epoch's events were written, but not yet its last.pt."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "run"
    call_and_stop(*SHORT, "--output-dir", str(folder), "--tensorboard", epoch=3)
    early = (folder / "last.pt").read_bytes()
    call("--resume", str(folder), "--tensorboard")
    (folder / "last.pt").write_bytes(early)
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
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.delitem(sys.modules, "report.tensorboard", raising=False)
    with pytest.raises(ModuleNotFoundError, match="tensorboard"):  # it ends the command in one line
        call(*SHORT, "--tensorboard", "--output-dir", str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.11 brought the safe path")
@pytest.mark.parametrize("flags, setting", [((), "1"), (("-P",), "")])
def test_a_safe_path_is_one_line(flags: tuple[str, ...], setting: str) -> None:
    command = [sys.executable, *flags, str(ROOT / "main.py"), "--dry-run"]
    environment = os.environ | {"PYTHONSAFEPATH": setting}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "main.py: error: unset PYTHONSAFEPATH, and leave out -P\n"
