"""Weights as people have them are read; everything else is refused in one line."""

import io
import json
import math
import pickle
import struct
import warnings
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from PIL import Image
from torch import nn
from torchvision import transforms

from checkpoint import EpochMetrics, Run, save_run
from config import ORIGINAL
from datasets import MNIST, Dataset
from model import Net
from runtime.errors import UserError
from trained import Trained, load_trained

LETTERS = Dataset("folder", ("a", "b", "c"), 0.25, 0.5, True, False, "/letters", "1", "2")
ROW = EpochMetrics(1, 0.1, 2.0, 50.0, "test", 1.0, 60.0, 9.5)
EXPECTED = "; expected is what torch.save(model.state_dict(), …) writes"
WEIGHT = "conv1.weight"
INCLUDED = (ROOT / "weights" / "best.pt").read_bytes()


@pytest.fixture(scope="module")
def net() -> Net:
    return Net().eval()


def saved(content: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_trained(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message
    return message.removeprefix(str(path))


PREFIXES = ["", "module.", "model.", "net.", "_orig_mod.", "module._orig_mod.", "model.net._orig_mod."]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_weights_under_any_key_and_prefix_are_read(prefix: str, net: Net, tmp_path: Path) -> None:
    """In torch's zip archive and in its old format."""
    weights: dict[str, Any] = {prefix + name: value for name, value in net.state_dict().items()}
    about = {"epoch": 3, "args": {"lr": 0.1}, "losses": [2.0], "none": {}}
    keys = ("model", "net", "state_dict", "weights of the best")
    path = tmp_path / "theirs.pth"
    for content in [weights, *(about | {key: weights} for key in keys)]:
        for zipped in (True, False):
            path.write_bytes(saved(content, _use_new_zipfile_serialization=zipped))
            trained = load_trained(path)
            found = trained.model.state_dict()
            assert all(torch.equal(found[name], value) for name, value in net.state_dict().items())
    assert trained.run is None and trained.dataset == MNIST and str(trained) == str(path)


def wrapped(net: Net) -> dict[str, Any]:
    """What torch's own wrappers and Lightning's ModelCheckpoint make of a network."""
    compiled: Any = torch.compile(net)
    averaged = torch.optim.swa_utils.AveragedModel(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    lightning = nn.Module()
    lightning.model = net
    return {
        "AveragedModel": averaged.state_dict(),
        "AveragedModel of DataParallel": torch.optim.swa_utils.AveragedModel(
            nn.DataParallel(net)
        ).state_dict(),
        "DataParallel": nn.DataParallel(net).state_dict(),
        "compiled": compiled.state_dict(),
        "DataParallel of compiled": nn.DataParallel(compiled).state_dict(),
        "Lightning": {
            "epoch": 1,
            "global_step": 3,
            "pytorch-lightning_version": "2.5",
            "state_dict": lightning.state_dict(),
            "loops": {"fit_loop": {"state_dict": {}}},
            "callbacks": {},
            "optimizer_states": [optimizer.state_dict()],
            "lr_schedulers": [],
            "hparams_name": "kwargs",
            "hyper_parameters": {"lr": 0.1},
        },
        "a training's checkpoint": {"optimizer": optimizer.state_dict(), "model": net.state_dict()},
        "half precision": {
            name: w.half() if w.is_floating_point() else w for name, w in net.state_dict().items()
        },
    }


def test_weights_of_wrapped_networks_are_read(net: Net, tmp_path: Path) -> None:
    for name, content in wrapped(net).items():
        torch.save(content, tmp_path / "theirs.pt")
        found = load_trained(tmp_path / "theirs.pt").model
        torch.testing.assert_close(found.conv6.weight, net.conv6.weight, msg=name, atol=1e-3, rtol=1e-3)


def safetensors(net: Net) -> bytes:
    """As Hugging Face's format says: the length of a JSON header, the header, the bytes."""
    header, content = {}, b""
    for name, value in net.state_dict().items():
        data, kind = value.numpy().tobytes(), "F32" if value.is_floating_point() else "I64"
        offsets = [len(content), len(content) + len(data)]
        header[name] = {"dtype": kind, "shape": list(value.shape), "data_offsets": offsets}
        content += data
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content


def numpy_archive(net: Net, save: Callable[..., None]) -> bytes:
    buffer = io.BytesIO()
    save(buffer, **{name: value.numpy() for name, value in net.state_dict().items()})
    return buffer.getvalue()


def exported_program(net: Net) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(net, (torch.randn(2, 1, 28, 28),)), buffer)
    return buffer.getvalue()


def torchscript(net: Net) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        torch.jit.save(torch.jit.trace(net, torch.randn(2, 1, 28, 28)), buffer)  # type: ignore[no-untyped-call]
    return buffer.getvalue()


def onnx(net: Net) -> bytes:
    pytest.importorskip("onnx")
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the older exporter, which needs one package less
        torch.onnx.export(net, (torch.randn(2, 1, 28, 28),), buffer, dynamo=False)  # type: ignore[arg-type]
    return buffer.getvalue()


WHOLE, DAMAGED = "such as a whole pickled model", "is damaged, or no file that torch.save wrote"
FOREIGN: dict[str, tuple[Callable[[Net], bytes], str]] = {  # the file, and what the line says of it
    "a whole model": (saved, WHOLE),
    "a whole model, old format": (lambda net: saved(net, _use_new_zipfile_serialization=False), WHOLE),
    "arguments beside the weights": (lambda net: saved({"a": Namespace(), "m": net.state_dict()}), WHOLE),
    "a plain pickle": (lambda net: pickle.dumps(net.state_dict()), WHOLE),
    "safetensors": (safetensors, WHOLE),
    "npz": (lambda net: numpy_archive(net, np.savez), DAMAGED),
    "npz, small": (lambda net: numpy_archive(net, np.savez_compressed), "is compressed"),
    "torch.export": (exported_program, DAMAGED),
    "TorchScript": (torchscript, "is compressed"),
    "ONNX": (onnx, WHOLE),
    "a best.pt without its end": (lambda _: INCLUDED[:-1000], DAMAGED),
    "half a best.pt": (lambda _: INCLUDED[:25_000], DAMAGED),
    "a web page": (lambda _: b"<!DOCTYPE html>\n<title>Not found</title>", "damaged"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_no_state_dict_is_refused(name: str, net: Net, tmp_path: Path) -> None:
    make, said = FOREIGN[name]
    (tmp_path / "theirs.pt").write_bytes(make(net))
    message = refused(tmp_path / "theirs.pt")
    assert said in message and message.endswith(EXPECTED)
    assert "miniz" not in message and "zip" not in message.replace("zipped", "")


def test_a_flipped_bit_is_named(tmp_path: Path) -> None:
    content = bytearray(INCLUDED)
    weight = torch.load(io.BytesIO(content), weights_only=True)["best_weights"]["bn4.weight"]
    content[content.index(weight.numpy().tobytes()) + 2] ^= 1
    (tmp_path / "best.pt").write_bytes(content)
    assert "in it has changed since it was written" in refused(tmp_path / "best.pt")


OTHER: dict[str, Callable[[dict[str, Any]], Any]] = {
    "nothing": lambda m: {},
    "a layer missing": lambda m: {name: value for name, value in m.items() if name != WEIGHT},
    "a layer too many": lambda m: m | {"more": torch.zeros(1)},
    "weights of integers": lambda m: {name: value.int() for name, value in m.items()},
    "another shape": lambda m: m | {WEIGHT: torch.zeros(10, 1, 5, 5)},
    "text for a layer": lambda m: m | {WEIGHT: "weights"},
    "a number for the network": lambda m: {"model": 3},
    "a prefix for some": lambda m: {
        ("a." if "1" in name else "b.") + name: value for name, value in m.items()
    },
    "another number of classes": lambda m: Net(num_classes=3).state_dict(),
}


@pytest.mark.parametrize("name", OTHER)
def test_another_network_is_named(name: str, net: Net, tmp_path: Path) -> None:
    torch.save(OTHER[name](dict(net.state_dict())), tmp_path / "theirs.pt")
    assert refused(tmp_path / "theirs.pt") == " holds another network than the one in model.py"


NO_NUMBERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "NaN": lambda m: m | {WEIGHT: torch.full((10, 1, 3, 3), math.nan)},
    "an infinite bias": lambda m: m | {"conv1.bias": torch.full((10,), -math.inf)},
    "an infinite statistic": lambda m: m | {"bn3.running_mean": torch.full((16,), math.inf)},
    "a negative variance": lambda m: m | {"bn1.running_var": -m["bn1.running_var"]},
    "weights that overflow": lambda m: {name: w * 1e20 if "conv" in name else w for name, w in m.items()},
}


@pytest.mark.parametrize("name", NO_NUMBERS)
def test_weights_that_are_not_finite_are_refused(name: str, net: Net, tmp_path: Path) -> None:
    torch.save({"state_dict": NO_NUMBERS[name](dict(net.state_dict()))}, tmp_path / "theirs.pt")
    assert (
        refused(tmp_path / "theirs.pt") == " is refused: its weights, or their results, are not all numbers"
    )


def test_a_run_comes_back_and_decides_the_classes(net: Net, tmp_path: Path) -> None:
    run = Run(tmp_path, ORIGINAL, MNIST, "cpu", {"torch": "2"}, [ROW], net.state_dict())
    save_run(run, {})
    for path in (tmp_path, tmp_path / "best.pt", str(tmp_path)):
        trained = load_trained(path)
        assert trained.path == tmp_path / "best.pt" and not trained.model.training
        assert str(trained) == f"{tmp_path / 'best.pt'} (epoch 1: 60.00% on the test set)"
    assert trained.run is not None and trained.run.best == ROW and trained.run.config == ORIGINAL
    held_out = replace(ROW, split="holdout", epoch=2, eval_accuracy=70.0)
    letters = replace(
        run, dataset=LETTERS, metrics=[ROW, held_out], best_weights=Net(num_classes=3).state_dict()
    )
    save_run(letters, {})
    trained = load_trained(tmp_path)
    assert trained.dataset == LETTERS and trained.model.conv7.out_channels == 3
    assert str(trained).endswith("best.pt (epoch 2: 70.00% on the held-out images of folder)")
    assert load_trained(tmp_path, "/moved").dataset == replace(LETTERS, path="/moved")
    save_run(replace(run, dataset=LETTERS), {})
    assert "another network" in refused(tmp_path / "best.pt")


def test_without_a_file_it_is_the_included_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs" / "newest").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert load_trained().path == ROOT / "weights" / "best.pt"
    with pytest.raises(
        UserError, match=r"best\.pt is missing: name a file of weights, or the folder of a run"
    ):
        load_trained("runs/newest")


@pytest.mark.arithmetic
def test_log_probs_against_torchvisions_transforms() -> None:
    torch.manual_seed(0)
    model = Net().eval()
    images = torch.randint(0, 256, (253, 28, 28), dtype=torch.uint8)  # more than a batch
    log_probs = Trained(Path("net.pt"), model, MNIST, None).log_probs(images)
    assert log_probs.shape == (253, 10) and log_probs.dtype == torch.float32
    logits: list[torch.Tensor] = []
    model.gap.register_forward_hook(lambda module, inputs, output: logits.append(output.flatten()))
    tensor = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
    for i in (0, 249, 250, 252):
        with torch.no_grad():
            model(tensor(Image.fromarray(images[i].numpy())).unsqueeze(0))
        expected = F.log_softmax(logits[-1].double(), dim=0)
        torch.testing.assert_close(log_probs[i].double(), expected, rtol=1e-5, atol=1e-5)
