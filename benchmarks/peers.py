"""Train this project's recipes and their peers in turn on this machine, and plot accuracy over seconds.

The peers are the original's settings in a conventional pipeline, and a network of 215,194 parameters, like
that of tuomaso/train_mnist_fast, with schedules of one, two, four and eight epochs.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import MNIST as TorchvisionMNIST

from benchmarks.arguments import Sweep
from benchmarks.summary import Row, plot, print_results
from benchmarks.sweep import CONTINUE, Key, complete_table, make_row
from config import ORIGINAL, RECIPES, Config, Options, add_flags
from datasets import MNIST
from datasets.mnist import SHA256, read_archive
from main import run_epoch, train_run
from model import Net
from optimizer import make_optimizer
from runtime.arguments import Parser
from runtime.cpu import speed_up
from runtime.device import select_device
from runtime.errors import UserError, run_command
from utils import DeviceLoader, get_loaders, stream_seed

Parts = tuple[Any, Any, nn.Module, Any, Any]  # run_epoch's: two loaders, network, optimizer, schedule


def conventional_loaders(device: torch.device) -> tuple[Any, Any]:
    """Return the loaders of most scripts, for training and test: PIL images, transformed by a worker each."""
    normalize = transforms.Compose([transforms.ToTensor(), transforms.Normalize((MNIST.mean,), (MNIST.std,))])
    augment = transforms.Compose([transforms.RandomRotation((-7.0, 7.0), fill=(0,)), normalize])
    with tempfile.TemporaryDirectory() as folder:  # torchvision reads the files once, here
        (raw := Path(folder, "MNIST", "raw")).mkdir(parents=True)
        for name in SHA256:
            (raw / name.removesuffix(".gz")).write_bytes(read_archive(name))
        train_set = TorchvisionMNIST(folder, train=True, transform=augment)
        test_set = TorchvisionMNIST(folder, train=False, transform=normalize)
    pinned = device.type == "cuda"
    options: dict[str, Any] = {"num_workers": 1, "persistent_workers": True, "pin_memory": pinned}
    train_loader = DataLoader(train_set, ORIGINAL.batch_size, shuffle=True, **options)
    return train_loader, DataLoader(test_set, 1000, **options)


def conventional(config: Config, device: torch.device) -> Parts:
    """Make the parts of the training in most scripts, where each step waits for the device."""
    train_loader, test_loader = conventional_loaders(device)
    model = Net().to(device)
    if device.type == "cuda":  # as if the step copied loss and accuracy to the host
        model.register_forward_hook(lambda *_: torch.cuda.synchronize())
    optimizer, scheduler = make_optimizer(model, config, config.epochs * len(train_loader))
    optimizer.param_groups[0]["fused"] = None  # SGD's default
    return train_loader, test_loader, model, optimizer, scheduler


def large_network() -> nn.Sequential:
    """Make a network like the last one of tuomaso/train_mnist_fast."""
    return nn.Sequential(
        *(nn.Conv2d(1, 24, 5), nn.MaxPool2d(2), nn.ReLU(inplace=True)),
        *(nn.Conv2d(24, 32, 3), nn.MaxPool2d(2), nn.ReLU(inplace=True)),
        *(nn.Flatten(), nn.Linear(800, 256), nn.ReLU(inplace=True), nn.Linear(256, 10), nn.LogSoftmax(1)),
    )


def large(config: Config, device: torch.device) -> Parts:
    """Make the parts of the training of ``large_network``: no augmentation, the same batches each epoch."""
    training_set, test_loader = get_loaders(config, device)
    train_loader = DeviceLoader(training_set.images, training_set.labels, 256)
    model = large_network().to(device)
    if device.type == "cpu":
        speed_up(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, betas=(0.7, 0.9), fused=True)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.01, total_steps=config.epochs * len(train_loader), cycle_momentum=False
    )
    return train_loader, test_loader, model, optimizer, scheduler


LARGE = replace(ORIGINAL, schedule_interval="batch")
PEERS: dict[str, tuple[Config, Callable[[Config, torch.device], Parts] | None]] = {  # None: as main.py does
    **{name: (config, None) for name, config in RECIPES.items()},
    "original, conventional": (ORIGINAL, conventional),
    "large network, 1 epoch": (replace(LARGE, epochs=1), large),
    **{f"large network, {n} epochs": (replace(LARGE, epochs=n), large) for n in (2, 4, 8)},
}


def run(name: str, seed: int, device_name: str) -> Row:
    """Train the recipe or peer called ``name``, and return the run's row."""
    device, (config, make_parts) = select_device(device_name), PEERS[name]
    config = replace(config, seed=seed, target_accuracy=0.0)
    if make_parts is None:
        with tempfile.TemporaryDirectory() as folder:
            metrics = train_run(config, Options(output_dir=folder, device=str(device))).metrics
    else:
        torch.manual_seed(stream_seed(seed, "weights"))
        parts = make_parts(config, device)
        metrics = [run_epoch(config, epoch, *parts, None) for epoch in range(1, config.epochs + 1)]
    return make_row(name, config, Sweep.target, metrics, str(device))


def run_in_process(name: str, seed: int, device: str) -> Row:
    """Call ``run`` in a new process, as ``speed_up`` changes the memory settings of the whole process."""
    command = [sys.executable, "-m", "benchmarks.peers", "--child", name, str(seed), device]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if done.returncode != 0:
        raise UserError(f"{name} failed with seed {seed}: its error is above; {CONTINUE}")
    row: Row = json.loads(done.stdout.splitlines()[-1])
    return row


def main() -> None:
    """Carry out the command line."""
    if sys.argv[1:2] == ["--child"]:  # run_in_process started this
        name, seed, device = sys.argv[2:]
        return print(json.dumps(run(name, int(seed), device)))
    parser = Parser("python -m benchmarks.peers", "Train this project's recipes and their peers in turn.")
    default = Sweep(output_dir="runs/peers", seeds=3)
    parser.argument_default = argparse.SUPPRESS
    add_flags(parser, default, ["output_dir", "seeds", "device"])
    sweep = replace(default, **vars(parser.parse_args()))
    select_device(sweep.device)  # a wrong one ends the command here
    path = Path(sweep.output_dir) / "peers.csv"

    def train(keys: list[Key]) -> Iterable[Row]:
        return (run_in_process(*key, sweep.device) for key in keys)

    results = complete_table(path, {name: config for name, (config, _) in PEERS.items()}, sweep, train)
    print_results(results, sweep.target)
    plot(results, path.with_suffix(".png"), seconds=True)


if __name__ == "__main__":
    run_command(main)
