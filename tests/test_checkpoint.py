"""The files of a run: what was saved comes back, and nothing else is taken for it."""

import io
import math
import pickle
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from runs import load, same

from checkpoint import EpochMetrics, Run, load_run, load_tensors, save_run, save_tensors
from config import DEFAULT
from datasets import MNIST
from model import Net
from optimizer import make_optimizer
from runtime.errors import UserError
from trained import load_trained

ROWS = [EpochMetrics(1, 0.1, 2.0, 50.0, "test", 1.0, 60.0, 9.5)]
ROWS += [EpochMetrics(2, 0.2, 1.0, 60.0, "test", 0.5, 59.0, 9.5)]


def make_parts(seed: int) -> dict[str, Any]:
    """Make a network, an optimizer and a schedule after one step."""
    torch.manual_seed(seed)
    model = Net()
    optimizer, scheduler = make_optimizer(model, DEFAULT, 100)
    model(torch.randn(2, 1, 28, 28)).sum().backward()
    optimizer.step()
    scheduler.step()
    return {"model": model, "optimizer": optimizer, "scheduler": scheduler}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Save a run of two epochs, of which the first is the best, and return it."""
    folder = tmp_path / "run"
    folder.mkdir()
    parts = make_parts(0)
    run = Run(folder, DEFAULT, MNIST, "cpu", {"torch": "2"}, ROWS[:1], parts["model"].state_dict())
    save_run(run, parts)
    run.metrics = ROWS
    save_run(run, parts)
    return run


def test_a_run_comes_back_whole(run: Run) -> None:
    parts, expected = make_parts(1), make_parts(0)
    found = load_run(run.folder / "last.pt", parts)
    assert replace(found, best_weights=None) == replace(run, best_weights=None)
    assert (found.epoch, found.best, found.finished, found.reached) == (2, ROWS[0], False, False)
    for name, part in parts.items():
        assert same(part.state_dict(), expected[name].state_dict()), name
    for name, value in expected["model"].state_dict().items():
        assert found.best_weights is not None and torch.equal(found.best_weights[name], value)
    best = load_run(run.folder / "best.pt")
    assert best.metrics == ROWS and load(run.folder / "best.pt").keys() < load(run.folder / "last.pt").keys()


def test_epochs_decide_when_a_run_is_finished(run: Run) -> None:
    assert not run.finished and replace(run, config=replace(DEFAULT, epochs=2)).finished
    low = replace(run, config=replace(DEFAULT, target_accuracy=59.0))
    assert low.reached and low.finished
    assert not replace(run, config=replace(DEFAULT, target_accuracy=60.0)).reached  # only the first had it
    assert not replace(run, config=replace(DEFAULT, target_accuracy=0.0)).reached


def leave_out(name: str) -> Callable[[Any], None]:
    return lambda content: content.pop(name)


def replace_state(part: str, state: Any) -> Callable[[Any], None]:
    return lambda content: content["training"].update({part: state})


UNFIT: dict[str, Callable[[Any], object]] = {
    "an earlier format": lambda c: c.update(format=2),
    "a later format": lambda c: c.update(format=99),
    "a tensor for the format": lambda c: c.update(format=torch.tensor([3, 3])),
    "text for the settings": lambda c: c.update(config="default"),
    "an unknown setting": lambda c: c["config"].update(width=2.0),
    "a setting out of its range": lambda c: c["config"].update(lr=-1.0),
    "text for a number": lambda c: c["config"].update(dropout="0.1"),
    "no list of epochs": lambda c: c.update(metrics=3),
    "an epoch with too little": lambda c: c["metrics"][0].pop("lr"),
    "no data set": lambda c: c.update(dataset=None),
    "another data set's description": lambda c: c["dataset"].pop("mean"),
    **{
        f"no {name}": leave_out(name)
        for name in ("format", "config", "metrics", "device", "versions", "best_weights")
    },
    **{
        f"{damage!r} for the {part}'s state": replace_state(part, damage)
        for part, damage in (("model", None), ("model", {}), ("optimizer", {"state": 3}), ("scheduler", None))
    },
    "no states": leave_out("training"),
    "another network's state": lambda c: c["training"].update(model=Net(num_classes=3).state_dict()),
}


@pytest.mark.parametrize("name", UNFIT)
def test_what_does_not_fit_this_version_is_one_line_that_says_what_to_do(name: str, run: Run) -> None:
    content = load(run.folder / "last.pt")
    UNFIT[name](content)
    save_tensors(run.folder / "last.pt", content)
    with pytest.raises(UserError) as caught:
        load_run(run.folder / "last.pt", make_parts(0))
    message = str(caught.value)
    assert message.startswith(f"{run.folder / 'last.pt'} does not fit this version of the project (")
    assert message.endswith("): use the version that wrote it, or train again") and "\n" not in message


def test_an_old_best_is_named_with_its_format(run: Run) -> None:
    """As it was written by the version before: format 2, and other settings."""
    content = {
        "format": 2,
        "model": Net().state_dict(),
        "metrics": asdict(ROWS[0]),
        "config": {"max_lr": 1.0},
    }
    save_tensors(run.folder / "best.pt", content)
    with pytest.raises(
        UserError, match=r"its format is 2, not 3\): use the version that wrote it, or train ag"
    ):
        load_trained(run.folder)


class Hostile:
    """Unpickled carelessly, it makes the file ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"model": x}, lambda x: {"format": 3, "config": x}])
@pytest.mark.parametrize("form", ["zip", "old", "pickle"])
def test_a_checkpoint_never_runs_code(wrap: Callable[[Any], Any], form: str, tmp_path: Path) -> None:
    made, path = tmp_path / "made", tmp_path / "best.pt"
    if form == "pickle":
        path.write_bytes(pickle.dumps(wrap(Hostile(made))))
    else:
        torch.save(wrap(Hostile(made)), path, _use_new_zipfile_serialization=form == "zip")
    for read in (load_tensors, load_trained):
        with pytest.raises(UserError, match="is refused"):
            read(path)
    assert not made.exists()
    torch.load(path, weights_only=False) if form != "pickle" else pickle.loads(path.read_bytes())
    assert made.exists()  # the trap does work


def saved(content: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def one_bit(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def archive_of(name: str, content: bytes, compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


GOOD = saved({"weights": torch.arange(1000.0), "epoch": 3})
WEIGHT = GOOD.index(torch.arange(1000.0).numpy().tobytes())
DAMAGED: dict[str, bytes] = {
    "empty": b"",
    "text": b"these are not weights\n",
    "without its end": GOOD[:-1],
    "half": GOOD[: len(GOOD) // 2],
    "without its start": GOOD[100:],
    "one bit of a weight": one_bit(GOOD, WEIGHT + 2),
    "one bit of the list of files": one_bit(GOOD, GOOD.index(b"PK\x01\x02") + 2),
    "one bit of the pickle": one_bit(GOOD, 80),
    "the old format without its end": saved({"a": torch.zeros(9)}, _use_new_zipfile_serialization=False)[:-9],
    "an empty archive": b"PK\x05\x06" + bytes(18),
    "another archive": archive_of("notes.txt", b"these are not weights"),
    "compressed": archive_of("archive/data.pkl", bytes(50_000_000), zipfile.ZIP_DEFLATED),  # fills the memory
    "a list": saved([1, 2, 3]),
    "a number for a name": saved({3: torch.zeros(1)}),
    "a tensor": saved(torch.zeros(3)),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_one_line(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    path = tmp_path / "last.pt"
    path.write_bytes(DAMAGED[name])
    for read in (load_tensors, load_run, load_trained):
        with pytest.raises(UserError) as caught:
            read(path)
        message = str(caught.value)
        assert message.startswith(str(path)) and "\n" not in message and len(message) < len(str(path)) + 230
        assert not any(word in message for word in ("miniz", "inline_container", "zip file", "seek"))
    assert capfd.readouterr() == ("", "") and not recwarn.list


FUZZ = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.slow
@FUZZ
@given(content=st.binary(max_size=2000))
def test_no_bytes_give_anything_but_a_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "best.pt").write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_trained(tmp_path / "best.pt")
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@FUZZ
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_one_altered_bit_changes_no_weight_unnoticed(
    place: float, bit: int, run: Run, tmp_path: Path
) -> None:
    shutil.copy(run.folder / "best.pt", tmp_path / "best.pt")
    content = bytearray((run.folder / "best.pt").read_bytes())
    content[math.floor(place * len(content))] ^= 1 << bit
    (tmp_path / "best.pt").write_bytes(content)
    try:
        found = load_trained(tmp_path / "best.pt").model.state_dict()
    except UserError as error:
        assert "\n" not in str(error)
    else:  # it was between the entries
        assert run.best_weights is not None
        assert all(torch.equal(found[name], value) for name, value in run.best_weights.items())
