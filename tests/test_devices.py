"""The choice of a device; and what one beside the CPU must do, which is skipped where there is none."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from conftest import Set
from runs import SHORT, assert_same_run, call, call_and_stop

from config import ORIGINAL
from model import Net
from optimizer import make_optimizer
from runtime.device import select_device
from runtime.errors import UsageError
from train import train
from utils import DeviceLoader, affine, normalize

DEVICES = [
    pytest.param(name, marks=pytest.mark.skipif(not there, reason=f"no {name} here"))
    for name, there in [("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available())]
]
each_device = pytest.mark.parametrize("name", DEVICES)


@each_device
def test_an_epochs_loss_falls(name: str, train_set: Set) -> None:
    device = torch.device(name)
    torch.manual_seed(0)
    model = Net().to(device)
    ema = copy.deepcopy(model)
    images, labels = (part.to(device) for part in train_set)
    loader = DeviceLoader(
        images, labels, 128, config=replace(ORIGINAL, translation=1.0, limit_train_batches=100)
    )
    optimizer, scheduler = make_optimizer(model, replace(ORIGINAL, lr=0.1), 200)
    losses = [
        train(
            model,
            device,
            loader,
            optimizer=optimizer,
            epoch=epoch,
            scheduler=scheduler,
            ema=ema,
            ema_decay=0.99,
        )[0]
        for epoch in (1, 2)
    ]
    assert losses[1] < losses[0] / 2


@each_device
def test_logits_and_rotation_are_the_cpus(name: str, train_set: Set) -> None:
    device = torch.device(name)
    images = train_set[0][:500, None].float()
    model = Net().eval()
    degrees = torch.linspace(-7, 7, 500)
    with torch.inference_mode():
        expected = model(normalize(images.clone()))
        found = model.to(device)(normalize(images.clone().to(device))).cpu()
        turned = affine(images.to(device), degrees.to(device)).cpu()
    assert (found - expected).abs().max() < 1e-4
    assert (turned != affine(images, degrees)).float().mean() < 1e-4  # a tie may fall the other way


@each_device
def test_stopped_and_resumed_is_as_if_never_stopped(name: str, tmp_path: Path) -> None:
    flags = [*SHORT, "--device", name, "--dropout", "0.05", "--use-deterministic-algorithms"]
    try:
        call(*flags, "--output-dir", str(tmp_path / "whole"))
        call(*flags, "--output-dir", str(tmp_path / "again"))
        assert_same_run(tmp_path / "again", tmp_path / "whole")  # the same seed twice
        call_and_stop(*flags, "--output-dir", str(tmp_path / "stopped"))
        torch.use_deterministic_algorithms(False)
        call("--resume", str(tmp_path / "stopped"))
        assert torch.are_deterministic_algorithms_enabled()
        assert_same_run(tmp_path / "stopped", tmp_path / "whole")
        call_and_stop(*flags, "--output-dir", str(tmp_path / "moved"))
        call("--resume", str(tmp_path / "moved"), "--device", "cpu")
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_device_that_cannot_be_used_and_one_that_can(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    zeros = torch.zeros

    def broken() -> NoReturn:
        raise RuntimeError("no kernel image is available")

    assert select_device("cpu:0").type == "cpu"
    missing = "mps" if not torch.backends.mps.is_available() else "cuda:99"
    for name in ("gpu", "cuda:x", "meta", "", missing):
        with pytest.raises(UsageError, match=f"^argument --device: {name} can't be used") as caught:
            select_device(name)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 280
    # A GPU that NVML counts but the runtime can't use.
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert select_device("auto").type != "cuda"
    # A GPU that torch counts but can't use.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "zeros", lambda *_, device: broken() if device == "cuda" else zeros(1))
    assert select_device("auto").type != "cuda"
    assert capsys.readouterr().err == "warning: cuda can't be used here: no kernel image is available\n"
