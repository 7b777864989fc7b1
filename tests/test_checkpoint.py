import io
import math
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms

from checkpoint import Progress, load_run
from config import ORIGINAL
from datasets import MNIST, Dataset
from model import Net
from runtime.errors import UserError
from runtime.tensor_files import save_tensors
from trained import FORMAT, EpochMetrics, Trained, load_trained, newest_trained

LETTERS = Dataset("folder", ("a", "b", "c"), 0.25, 0.5, True, False, None)
ROW = EpochMetrics(1, 0.1, 2.0, 50.0, "test", 1.0, 60.0, 9.5)


def good() -> dict[str, Any]:
    about = {"metrics": asdict(ROW), "config": asdict(ORIGINAL), "versions": {"torch": "2"}}
    return {"format": FORMAT, "model": Net().state_dict(), **about}


def saved(content: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


class Hostile:
    """Unpickled carelessly, it makes the file ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


def changed(change: Callable[[dict[str, Any]], object]) -> bytes:
    content = good()
    change(content["model"])
    return saved(content)


def one_bit_of_a_weight() -> bytes:
    content = bytearray(saved(good()))
    weight = torch.load(io.BytesIO(content), weights_only=True)["model"]["conv1.weight"]
    content[content.index(weight.numpy().tobytes()) + 2] ^= 1
    return bytes(content)


def another_archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("notes.txt", "these are not weights")
    return buffer.getvalue()


def compressed() -> bytes:
    """A small file that would fill the memory."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(50_000_000))
    return buffer.getvalue()


WEIGHT = "conv1.weight"
DAMAGED: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "text": lambda: b"these are not weights\n",
    "without its end": lambda: saved(good())[:-1],
    "half": lambda: saved(good())[: len(saved(good())) // 2],
    "without its start": lambda: saved(good())[100:],
    "one bit of a weight": one_bit_of_a_weight,
    "a plain pickle": lambda: pickle.dumps(good()),
    "the old format": lambda: saved(good(), _use_new_zipfile_serialization=False),
    "an empty archive": lambda: b"PK\x05\x06" + bytes(18),
    "another archive": another_archive,
    "a list": lambda: saved([1, 2, 3]),
    "no network": lambda: saved({"format": 2}),
    "a number for a network": lambda: saved(good() | {"model": 3}),
    "a layer missing": lambda: changed(lambda m: m.pop(WEIGHT)),
    "a layer too many": lambda: changed(lambda m: m.update(more=torch.zeros(1))),
    "another shape": lambda: changed(lambda m: m.update({WEIGHT: torch.zeros(10, 1, 5, 5)})),
    "text for a layer": lambda: changed(lambda m: m.update({WEIGHT: "weights"})),
    "NaN": lambda: changed(lambda m: m[WEIGHT].view(-1)[4:5].fill_(float("nan"))),
    "a tensor for the format": lambda: saved(good() | {"format": torch.tensor([2, 2])}),
    "compressed": compressed,
    "weights that overflow": lambda: changed(lambda m: [m[name].mul_(1e20) for name in m if "conv" in name]),
    "a negative variance": lambda: changed(lambda m: m["bn1.running_var"].neg_()),
    "an accuracy of NaN": lambda: saved(good() | {"metrics": asdict(ROW) | {"eval_accuracy": float("nan")}}),
    "an accuracy of 101 %": lambda: saved(good() | {"metrics": asdict(ROW) | {"train_accuracy": 101.0}}),
    "0 for a bool": lambda: saved(good() | {"config": asdict(ORIGINAL) | {"early_stopping": 0}}),
    "a number for a name": lambda: saved({3: torch.zeros(1)}),
    "text for an epoch": lambda: saved(good() | {"metrics": asdict(ROW) | {"epoch": "one"}}),
    "two numbers for one": lambda: saved(
        good() | {"metrics": asdict(ROW) | {"eval_accuracy": torch.zeros(2)}}
    ),
    "weights of integers": lambda: saved({n: w.int() for n, w in Net().state_dict().items()}),
    "a weight that is infinite": lambda: saved(
        Net().state_dict() | {"conv1.bias": torch.full((10,), -math.inf)}
    ),
    "another setting": lambda: saved(good() | {"config": asdict(ORIGINAL) | {"colour": "red"}}),
}


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_trained(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    return message


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_checkpoint_is_refused_in_one_line(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    path = tmp_path / "best.pt"
    path.write_bytes(DAMAGED[name]())
    refused(path)
    assert capfd.readouterr() == ("", "") and not recwarn.list


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"model": x}, lambda x: good() | {"config": x}])
@pytest.mark.parametrize("form", [saved, pickle.dumps])
def test_a_checkpoint_never_runs_code(
    wrap: Callable[[Any], Any], form: Callable[[Any], bytes], tmp_path: Path
) -> None:
    made, path = tmp_path / "made", tmp_path / "best.pt"
    path.write_bytes(form(wrap(Hostile(made))))
    refused(path)
    assert not made.exists()
    if form is pickle.dumps:  # the trap does work
        pickle.loads(path.read_bytes())
        assert made.exists()


def test_another_version_is_named(tmp_path: Path) -> None:
    (tmp_path / "best.pt").write_bytes(saved(good() | {"format": 1}))
    assert "was written by another version of the project" in refused(tmp_path / "best.pt")


def test_a_good_checkpoint_comes_back_whole(tmp_path: Path) -> None:
    content = good()
    save_tensors(tmp_path / "best.pt", content)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    trained = load_trained(tmp_path / "best.pt")
    assert torch.equal(torch.get_rng_state(), before) and not trained.model.training
    assert (trained.metrics, trained.config, trained.versions) == (ROW, ORIGINAL, {"torch": "2"})
    found = trained.model.state_dict()
    assert all(torch.equal(found[name], value) for name, value in content["model"].items())
    assert str(trained) == f"{tmp_path / 'best.pt'} (epoch 1: 60.00% on the test set)"


def test_the_data_set_comes_back_and_decides_the_classes(tmp_path: Path) -> None:
    content = good() | {"model": Net(num_classes=3).state_dict(), "dataset": asdict(LETTERS)}
    save_tensors(tmp_path / "best.pt", content)
    trained = load_trained(tmp_path / "best.pt")
    assert trained.dataset == LETTERS and trained.model.conv7.out_channels == 3
    save_tensors(tmp_path / "best.pt", content | {"dataset": asdict(replace(LETTERS, classes=("a", "b")))})
    assert "another network" in refused(tmp_path / "best.pt")
    save_tensors(tmp_path / "best.pt", good())  # from before there were others
    assert load_trained(tmp_path / "best.pt").dataset == MNIST


@pytest.mark.parametrize(
    "change",
    [
        *(
            {"classes": ["a", "b", "c"]},
            {"classes": ("a",)},
            {"classes": ("a", "b", 3)},
            {"classes": ("a", "b", "a")},
            {"name": None},
            {"name": "nonsense"},
            {"mean": 3.0},
        ),
        *(
            {"std": 0.0},
            {"std": float("nan")},
            {"mean": "0.1"},
            {"digit_like": 1},
            {"target_accuracy": "99"},
            {"x": 1},
        ),
    ],
)
def test_a_data_set_that_cannot_be_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    content = good() | {"model": Net(num_classes=3).state_dict(), "dataset": asdict(LETTERS) | change}
    save_tensors(tmp_path / "best.pt", content)
    assert "another Dataset" in refused(tmp_path / "best.pt")
    save_tensors(tmp_path / "best.pt", content | {"dataset": 3})
    refused(tmp_path / "best.pt")


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("key", [None, "model", "state_dict", "model_state_dict"])
def test_weights_as_other_programs_save_them_are_read(prefix: str, key: str | None, tmp_path: Path) -> None:
    """As ``DataParallel`` and ``torch.compile`` name them, and under the usual keys."""
    model = Net()
    weights: dict[str, Any] = {prefix + name: value for name, value in model.state_dict().items()}
    content = {key: weights, "epoch": 3, "config": {"lr": 0.1}, "metrics": [99.0]} if key else weights
    torch.save(content, tmp_path / "theirs.pth")
    assert torch.equal(load_trained(tmp_path / "theirs.pth").model.conv6.weight, model.conv6.weight)


def test_bare_weights_are_taken_and_nothing_is_said_of_them(tmp_path: Path) -> None:
    model = Net()
    torch.save(model.state_dict(), tmp_path / "notebook.pth")
    trained = load_trained(tmp_path / "notebook.pth")
    assert torch.equal(trained.model.conv6.weight, model.conv6.weight)
    assert trained.metrics is None and str(trained) == str(tmp_path / "notebook.pth")


def test_the_newest_finished_epoch_is_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert newest_trained().path == ROOT / "weights" / "best.pt"
    for name, changes in (
        ("trial", {"limit_train_batches": 3}),
        ("wide", {"recipe": "teacher"}),
        ("old", {}),
    ):
        (tmp_path / "runs" / name).mkdir(parents=True)
        config = asdict(replace(ORIGINAL, **changes))
        save_tensors(tmp_path / "runs" / name / "best.pt", good() | {"config": config})
        if changes:  # three batches are no epoch, and a teacher is not the network that is asked for
            assert newest_trained().path == ROOT / "weights" / "best.pt"
    # --resume of a finished run writes best.pt anew.
    shutil.copytree("runs/old", "runs/resumed")
    Path("runs/resumed/last.pt").touch()
    os.utime("runs/resumed/last.pt", (0, 0))
    assert newest_trained().path == Path("runs", "old", "best.pt")
    assert capsys.readouterr().err == ""
    (tmp_path / "runs" / "earlier").mkdir()
    (tmp_path / "runs" / "earlier" / "best.pt").write_bytes(saved({"model": {}, "epoch": 1}))
    os.utime(tmp_path / "runs" / "earlier" / "best.pt", (2e9, 2e9))  # a file system may keep whole seconds
    assert newest_trained().path == Path("runs", "old", "best.pt")
    assert capsys.readouterr().err.startswith("warning: runs/earlier/best.pt ")


FUZZ = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
GOOD = saved(good())


@pytest.mark.slow
@FUZZ
@given(content=st.binary(max_size=2000))
def test_no_bytes_give_anything_but_a_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "best.pt").write_bytes(content)
    refused(tmp_path / "best.pt")


@pytest.mark.slow
@FUZZ
@given(at=st.integers(0, len(GOOD) - 1), bit=st.integers(0, 7))
def test_one_altered_bit_changes_no_weight_unnoticed(at: int, bit: int, tmp_path: Path) -> None:
    content = bytearray(GOOD)
    content[at] ^= 1 << bit
    (tmp_path / "best.pt").write_bytes(content)
    try:
        found = load_trained(tmp_path / "best.pt").model.state_dict()
    except UserError as error:
        assert "\n" not in str(error)
    else:  # it lay between the entries
        whole = torch.load(io.BytesIO(GOOD), weights_only=True)
        assert all(torch.equal(found[name], value) for name, value in whole["model"].items())


@pytest.mark.arithmetic
def test_log_probs_against_torchvisions_transforms() -> None:
    torch.manual_seed(0)
    model = Net().eval()
    images = torch.randint(0, 256, (253, 28, 28), dtype=torch.uint8)  # more than a batch
    log_probs = Trained(Path("net.pt"), model).log_probs(images)
    assert log_probs.shape == (253, 10) and log_probs.dtype == torch.float32
    logits: list[torch.Tensor] = []
    model.gap.register_forward_hook(lambda module, inputs, output: logits.append(output.flatten()))
    tensor = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
    for i in (0, 249, 250, 252):
        with torch.no_grad():
            model(tensor(Image.fromarray(images[i].numpy())).unsqueeze(0))
        expected = F.log_softmax(logits[-1].double(), dim=0)
        torch.testing.assert_close(log_probs[i].double(), expected, rtol=1e-5, atol=1e-5)


def test_progress_of_an_earlier_version_is_refused_in_one_line(tmp_path: Path) -> None:
    torch.save({"settings": {"recipe": "reliable"}, "epoch": 1, "rows": []}, tmp_path / "last.pt")
    with pytest.raises(UserError, match=r"last\.pt does not fit this version of the project"):
        load_run(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["config", "metrics", "device", "versions", "finished", "data_path", "best_model", "teacher_width"],
)
@pytest.mark.parametrize("value", [None, "text", 3, [1, 2], {"a": 1}, [{"epoch": 1}]])
def test_progress_of_another_kind_is_refused(name: str, value: Any, tmp_path: Path) -> None:
    progress = asdict(Progress(ORIGINAL, "cpu", "data", LETTERS, {}, [ROW], best_model=Net().state_dict()))
    save_tensors(tmp_path / "last.pt", progress)
    assert load_run(tmp_path)[0].metrics == [ROW]
    save_tensors(tmp_path / "last.pt", progress | {name: value})
    fitting: list[tuple[str, Any]] = [
        ("device", "text"),
        ("data_path", "text"),
        ("versions", {"a": 1}),
        ("best_model", None),
    ]
    fitting += [("best_model", {"a": 1}), ("teacher_width", None), ("teacher_width", 3)]
    if (name, value) not in fitting:
        with pytest.raises(UserError, match=r"last\.pt"):
            load_run(tmp_path)
