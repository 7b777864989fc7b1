"""Train this project's recipes and their peers in turn on this machine, and plot accuracy over seconds.

The peers are the original's settings in a conventional pipeline, and a network of 215,194 parameters, like
that of tuomaso/train_mnist_fast, with schedules of one, two, four and eight epochs.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import MNIST as TorchvisionMNIST

from benchmarks.arguments import list_settings, positive_int
from benchmarks.summary import Curve, Row, plot
from checkpoint import versions
from config import ORIGINAL, RECIPES, Config, Options
from datasets import MNIST
from datasets.mnist import SHA256, read_archive
from main import train_run
from model import Net
from optimizer import make_optimizer
from runtime.arguments import Parser
from runtime.cpu import speed_up
from runtime.device import select_device
from runtime.errors import UserError, run_command
from runtime.files import locked, write_table
from runtime.tables import read_table
from test import test
from train import train
from utils import DeviceLoader, get_loaders, stream_seed

Train = Callable[[Config, torch.device], Curve]
NUMBERS = ["seconds", "accuracy_by_epoch"]  # columns with a value for each epoch


def train_recipe(config: Config, device: torch.device) -> Curve:
    """Train one of this project's recipes, as ``main.py`` does."""
    with tempfile.TemporaryDirectory() as folder:
        metrics = train_run(config, Options(output_dir=folder, device=str(device))).metrics
    seconds = accumulate(epoch.seconds for epoch in metrics)
    return list(zip(seconds, (epoch.eval_accuracy for epoch in metrics), strict=True))


def time_epochs(epochs: int, run_epoch: Callable[[int], float]) -> Curve:
    """Call ``run_epoch`` for each epoch, from 1. It returns the test accuracy in percent."""
    begin = time.perf_counter()
    accuracies = map(run_epoch, range(1, epochs + 1))
    return [(time.perf_counter() - begin, accuracy) for accuracy in accuracies]


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
    options: dict[str, Any] = {"num_workers": 1, "persistent_workers": True}
    options["pin_memory"] = device.type == "cuda"
    train_loader = DataLoader(train_set, ORIGINAL.batch_size, shuffle=True, **options)
    return train_loader, DataLoader(test_set, 1000, **options)


def train_conventional(config: Config, device: torch.device) -> Curve:
    """Train the network of ``config`` as most scripts do: each step copies loss and accuracy to the host."""
    train_loader, test_loader = conventional_loaders(device)
    torch.manual_seed(stream_seed(config.seed, "weights"))
    model, steps = Net().to(device), len(train_loader)
    optimizer, scheduler = make_optimizer(model, config, config.epochs * steps)
    optimizer.param_groups[0]["fused"] = None  # SGD's default

    def run_epoch(epoch: int) -> float:
        model.train()
        for data, target in train_loader:
            data, target = data.to(device), target.to(device)
            optimizer.zero_grad()
            output = model(data)
            loss = F.nll_loss(output, target)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            loss.item(), (output.argmax(dim=1) == target).sum().item()
        for _ in range(steps):  # the original's schedule moves once an epoch
            scheduler.step()
        return test(model, device, test_loader)[1]

    return time_epochs(config.epochs, run_epoch)


def large_network() -> nn.Sequential:
    """Make a network like the last one of tuomaso/train_mnist_fast."""
    return nn.Sequential(
        *(nn.Conv2d(1, 24, 5), nn.MaxPool2d(2), nn.ReLU(inplace=True)),
        *(nn.Conv2d(24, 32, 3), nn.MaxPool2d(2), nn.ReLU(inplace=True)),
        *(nn.Flatten(), nn.Linear(800, 256), nn.ReLU(inplace=True), nn.Linear(256, 10), nn.LogSoftmax(1)),
    )


def train_large(config: Config, device: torch.device) -> Curve:
    """Train ``large_network``, without augmentation, with the same batches in each epoch."""
    training_set, test_loader = get_loaders(config, device)
    train_loader = DeviceLoader(training_set.images, training_set.labels, 256)
    torch.manual_seed(stream_seed(config.seed, "weights"))
    model = large_network().to(device)
    if device.type == "cpu":
        speed_up(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, betas=(0.7, 0.9), fused=True)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.01, total_steps=config.epochs * len(train_loader), cycle_momentum=False
    )

    def run_epoch(epoch: int) -> float:
        train(model, device, train_loader, optimizer=optimizer, epoch=epoch, scheduler=scheduler)
        return test(model, device, test_loader)[1]

    return time_epochs(config.epochs, run_epoch)


RUNS: dict[str, tuple[Config, Train]] = {
    **{name: (config, train_recipe) for name, config in RECIPES.items()},
    "original, conventional": (ORIGINAL, train_conventional),
    "large network, 1 epoch": (replace(ORIGINAL, epochs=1), train_large),
    **{f"large network, {n} epochs": (replace(ORIGINAL, epochs=n), train_large) for n in (2, 4, 8)},
}


def run(name: str, seed: int, device: torch.device) -> Curve:
    """Train the recipe or peer called ``name``."""
    config, train = RUNS[name]
    return train(replace(config, seed=seed, target_accuracy=0.0), device)


def run_in_process(name: str, seed: int, device: str) -> Curve:
    """Call ``run`` in a new process, as ``speed_up`` changes the memory settings of the whole process."""
    flags = [f"--device={device}", "--output-dir=.", "--child", name, str(seed)]
    command = [sys.executable, "-m", "benchmarks.peers", *flags]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if done.returncode != 0:
        raise UserError(f"{name} failed with seed {seed}: its error is above")
    return [(seconds, accuracy) for seconds, accuracy in json.loads(done.stdout.splitlines()[-1])]


def settings_of(name: str) -> str:
    """Return the settings of the recipe or peer called ``name``, as in its rows."""
    return " ".join(list_settings(RUNS[name][0]))


def load_rows(path: Path, conditions: list[str]) -> dict[tuple[str, int], Row]:
    """Read the table at ``path``: its rows, which must have the columns ``conditions``, by name and seed."""
    rows = read_table(path, ["name", "seed", "settings", *NUMBERS, *conditions])
    for row in rows:  # those of an earlier version's peers stay
        if row["name"] in RUNS and row["settings"] != settings_of(row["name"]):
            raise UserError(f"{path} has other settings of {row['name']}: choose another --output-dir")
    return {(row["name"], int(row["seed"])): row for row in rows}


def print_results(rows: dict[tuple[str, int], Row], seeds: range, conditions: list[str], path: Path) -> None:
    """Print the conditions and a table of the results, and draw the curves to ``path``."""
    runs = [rows[name, seed] for name in RUNS for seed in seeds]
    for line in sorted({", ".join(f"{key} {row[key]}" for key in conditions) for row in runs}):
        print(f"\n{line}; seeds 1 to {len(seeds)}")
    print("\n| | test accuracy at the end, mean ± sd, % | seconds, mean |\n| --- | --- | --- |")
    curves: dict[str, list[Curve]] = {name: [] for name in RUNS}
    for row in runs:
        columns = (map(float, row[column].split()) for column in NUMBERS)
        curves[row["name"]].append(list(zip(*columns, strict=True)))
    for name, group in curves.items():
        ends = [curve[-1][1] for curve in group]
        spread = f" ± {stdev(ends):.3f}" if len(ends) > 1 else ""
        mean_seconds = mean(curve[-1][0] for curve in group)
        print(f"| {name} | {mean(ends):.3f}{spread} | {mean_seconds:.0f} |", flush=True)
    plot(curves, "seconds of training, with evaluation", path, xscale="log")


def main() -> None:
    """Carry out the command line."""
    parser = Parser("python -m benchmarks.peers", "Train this project's recipes and their peers in turn.")
    parser.add_argument("--output-dir", required=True, metavar="DIR", help="folder for table and plot")
    help = "number of seeds (default: %(default)s)"
    parser.add_argument("--seeds", type=positive_int, default=3, metavar="N", help=help)
    parser.add_argument("--device", default="auto", help="as for main.py (default: %(default)s)")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)  # the run that this process trains
    args = parser.parse_args()
    device = select_device(args.device)
    if args.child:
        return print(json.dumps(run(args.child[0], int(args.child[1]), device)))
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{os.cpu_count()} cores"
    conditions = versions() | {"device": f"{device}, {machine}", "threads": str(torch.get_num_threads())}
    output_dir, seeds = Path(args.output_dir), range(1, args.seeds + 1)
    output_dir.mkdir(parents=True, exist_ok=True)
    path = output_dir / "peers.csv"
    with locked(output_dir):
        rows = load_rows(path, list(conditions))
        # In turn, so a slow hour affects all of them.
        runs = [(name, seed) for seed in seeds for name in [*RUNS][:: 1 if seed % 2 else -1]]
        for name, seed in runs:
            if (name, seed) in rows:
                continue
            try:
                curve = run_in_process(name, seed, args.device)
            except KeyboardInterrupt as stop:
                raise type(stop)("the same command continues from here") from None
            print(f"seed {seed}, {name}: {curve[-1][1]:.2f} % after {curve[-1][0]:.0f} s", flush=True)
            columns = (" ".join(map("{:.2f}".format, column)) for column in zip(*curve, strict=True))
            rows[name, seed] = {"name": name, "seed": str(seed), **dict(zip(NUMBERS, columns, strict=True))}
            rows[name, seed] |= {"settings": settings_of(name)} | conditions
            write_table(path, [rows[key] for key in sorted(rows)])
    print_results(rows, seeds, list(conditions), output_dir / "peers.png")


if __name__ == "__main__":
    run_command(main)
