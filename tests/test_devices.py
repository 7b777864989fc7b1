"""What a device beside the CPU must do. Skipped where there is none."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import SHORT, Set
from test_main import assert_same_run, call, same

import main
from config import ORIGINAL
from model import Net
from train import make_optimizer, train
from utils import DeviceLoader, affine, normalize

DEVICES = [
    pytest.param(name, marks=pytest.mark.skipif(not there, reason=f"no {name} here"))
    for name, there in [("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available())]
]
pytestmark = pytest.mark.parametrize("name", DEVICES)


def test_an_epochs_loss_falls(name: str, train_set: Set) -> None:
    device = torch.device(name)
    torch.manual_seed(0)
    model = Net().to(device)
    ema = copy.deepcopy(model)
    images, labels = (part.to(device) for part in train_set)
    loader = DeviceLoader(
        images, labels, 128, config=replace(ORIGINAL, translation=1.0, limit_train_batches=100)
    )
    optimizer, scheduler = make_optimizer(model, replace(ORIGINAL, lr=0.01, max_lr=0.1), 200)
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


def test_stopped_and_resumed_is_as_if_never_stopped(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = [*SHORT, "--device", name, "--dropout", "0.05", "--use-deterministic-algorithms"]
    try:
        call(*flags, "--output-dir", str(tmp_path / "whole"))
        call(*flags, "--output-dir", str(tmp_path / "stopped"))
        assert_same_run(tmp_path / "stopped", tmp_path / "whole")  # the same seed twice
        progress = torch.load(tmp_path / "stopped" / "last.pt", weights_only=True)
        fresh = tmp_path / "resumed"

        def stop(*rest: object, **more: object) -> tuple[float, float]:
            if more["epoch"] == 2:
                raise KeyboardInterrupt
            return train(*rest, **more)  # type: ignore[arg-type]

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(main, "train", stop)
            call(*flags, "--output-dir", str(fresh))
        torch.use_deterministic_algorithms(False)
        call("--resume", str(fresh))
        assert torch.are_deterministic_algorithms_enabled()
        assert same(progress["model"], torch.load(fresh / "last.pt", weights_only=True)["model"])
    finally:
        torch.use_deterministic_algorithms(False)
