"""Train this project's recipes and their peers in turn on this machine, and plot accuracy over seconds.

The peers are the original's settings in a conventional pipeline, and a network of 215,194 parameters, like
that of tuomaso/train_mnist_fast, with schedules of one, two, four and eight epochs.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from benchmarks.arguments import positive_int
    from runtime.arguments import Parser, folder
    from runtime.errors import run_command

    parser = Parser("peers.py", "Train this project's recipes and their peers in turn.")
    parser.add_argument(
        "--output-dir", type=folder, required=True, metavar="DIR", help="folder for table and plot"
    )
    parser.add_argument(
        "--seeds", type=positive_int, default=3, metavar="N", help="number of seeds (default: %(default)s)"
    )
    parser.add_argument("--device", default="auto", help="as for main.py (default: %(default)s)")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    run_command("peers.py", parser.values, "benchmarks.peers")

import torch
from torch import nn

import main as experiment
from benchmarks.arguments import list_settings
from benchmarks.pipeline import TEST_IMAGES, conventional_loaders, conventional_steps
from benchmarks.summary import Row, plot_by_seconds, read_runs
from checkpoint import versions
from config import ORIGINAL, RECIPES, Config
from datasets import MNIST
from model import Net
from runtime.cpu import speed_up
from runtime.device import select_device
from runtime.errors import UserError
from runtime.files import locked, write_table
from test import test
from train import advance, make_optimizer, train
from trained import load_teacher
from utils import DeviceLoader, get_loaders, stream_seed

Curve = list[tuple[float, float]]  # after each epoch: seconds with evaluations, test accuracy in percent
RunEpoch = Callable[[int], float]  # trains in this epoch, from 1, and returns the test accuracy in percent
NUMBERS = ["seconds", "accuracy_by_epoch"]  # columns with a value for each epoch


def make_recipe(config: Config, device: torch.device) -> RunEpoch:
    """Make one of this project's recipes, as ``main.py`` does."""
    loaders = get_loaders(config, device)
    teacher = load_teacher(config, MNIST)
    state = experiment.make_state(
        config, device, steps_per_epoch=len(loaders[0]), classes=10, teacher=teacher
    )
    return lambda epoch: experiment.run_epoch(config, loaders, state, epoch).eval_accuracy


def make_conventional(config: Config, device: torch.device) -> RunEpoch:
    """Make the network and optimizer of ``config`` in the conventional pipeline, with one worker."""
    train_loader, test_loader = conventional_loaders(device, workers=1, images=TEST_IMAGES)
    torch.manual_seed(stream_seed(config.seed, "weights"))
    model, steps = Net().to(device), len(train_loader)
    optimizer, scheduler = make_optimizer(model, config, config.epochs * steps)
    optimizer.param_groups[0]["fused"] = None  # SGD's default

    def run_epoch(epoch: int) -> float:
        conventional_steps(model, device, optimizer, train_loader)
        advance(scheduler, steps)
        return test(model, device, test_loader)[1]

    return run_epoch


def large_network() -> nn.Sequential:
    """Make a network like the last one of tuomaso/train_mnist_fast."""
    return nn.Sequential(
        *(nn.Conv2d(1, 24, 5), nn.MaxPool2d(2), nn.ReLU(inplace=True)),
        *(nn.Conv2d(24, 32, 3), nn.MaxPool2d(2), nn.ReLU(inplace=True)),
        *(nn.Flatten(), nn.Linear(800, 256), nn.ReLU(inplace=True), nn.Linear(256, 10), nn.LogSoftmax(1)),
    )


def make_large(config: Config, device: torch.device) -> RunEpoch:
    """Make ``large_network``, without augmentation, with the same batches in each epoch."""
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

    return run_epoch


RUNS: dict[str, tuple[Config, Callable[[Config, torch.device], RunEpoch]]] = {
    **{name: (config, make_recipe) for name, config in RECIPES.items() if name != "teacher"},
    "original, conventional": (ORIGINAL, make_conventional),
    "large network, 1 epoch": (replace(ORIGINAL, epochs=1), make_large),
    **{f"large network, {n} epochs": (replace(ORIGINAL, epochs=n), make_large) for n in (2, 4, 8)},
}
NAMES = [*RUNS]


def run(name: str, seed: int, device: torch.device) -> Curve:
    """Train the recipe or peer called ``name``."""
    config, make = RUNS[name]
    run_epoch = make(replace(config, seed=seed, early_stopping=False), device)
    begin = time.perf_counter()
    accuracies = map(run_epoch, range(1, config.epochs + 1))
    return [(time.perf_counter() - begin, accuracy) for accuracy in accuracies]


def run_in_process(name: str, seed: int, device: str) -> Curve:
    """Call ``run`` in a new process, as ``speed_up`` changes the memory settings of the whole process."""
    command = [sys.executable, __file__, f"--device={device}", "--output-dir=.", "--child", name, str(seed)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if done.returncode != 0:
        raise UserError(f"{name} failed with seed {seed}: its error is above")
    return [(seconds, accuracy) for seconds, accuracy in json.loads(done.stdout.splitlines()[-1])]


def curve_of(row: Row) -> Curve:
    """Return the curve in a table's row."""
    columns = (map(float, row[column].split()) for column in NUMBERS)
    return list(zip(*columns, strict=True))


def settings_of(name: str) -> str:
    """Return the settings of the recipe or peer called ``name``, as in its rows."""
    return " ".join(list_settings(RUNS[name][0]))


def load_rows(path: Path, conditions: list[str]) -> dict[tuple[str, int], Row]:
    """Read the table at ``path``: its rows, which must have the columns ``conditions``, by name and seed."""
    rows = read_runs(path, ["name", "seed", "settings", *NUMBERS, *conditions], NUMBERS)
    for row in rows:
        if row["name"] in RUNS and row["settings"] != settings_of(row["name"]):
            raise UserError(f"{path} has other settings of {row['name']}: choose another --output-dir")
        lengths = {len(row[column].split()) for column in NUMBERS}
        # A row of an earlier version's peer stays, whatever its number of epochs was.
        if lengths != {RUNS[row["name"]][0].epochs if row["name"] in RUNS else max(*lengths, 1)}:
            raise UserError(f"{path} is damaged: epochs are missing; choose another --output-dir")
    return {(row["name"], int(row["seed"])): row for row in rows}


def main(output_dir: Path, seeds: int, device_name: str, child: list[str] | None) -> None:
    """Carry out the command line. ``child`` is the name and the seed of the run that this process does."""
    device = select_device(device_name)
    if child:
        return print(json.dumps(run(child[0], int(child[1]), device)))
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{os.cpu_count()} cores"
    conditions = versions() | {"device": f"{device}, {machine}", "threads": str(torch.get_num_threads())}
    output_dir.mkdir(parents=True, exist_ok=True)
    path = output_dir / "peers.csv"
    # In turn, so a slow hour affects all of them.
    runs = [(name, seed) for seed in range(1, seeds + 1) for name in NAMES[:: 1 if seed % 2 else -1]]
    with locked(output_dir):
        rows = load_rows(path, list(conditions))
        for name, seed in runs:
            if (name, seed) in rows:
                continue
            try:
                curve = run_in_process(name, seed, device_name)
            except KeyboardInterrupt as stop:
                raise type(stop)("the same command continues from here") from None
            print(f"seed {seed}, {name}: {curve[-1][1]:.2f} % after {curve[-1][0]:.0f} s", flush=True)
            seconds, accuracies = (
                " ".join(map("{:.2f}".format, column)) for column in zip(*curve, strict=True)
            )
            result = {"seconds": seconds, "accuracy_by_epoch": accuracies, "settings": settings_of(name)}
            rows[name, seed] = {"name": name, "seed": str(seed)} | result | conditions
            write_table(path, [rows[key] for key in sorted(rows)])
    for line in sorted({", ".join(f"{key} {rows[run][key]}" for key in conditions) for run in runs}):
        print(f"\n{line}; seeds 1 to {seeds}")
    print("\n| | test accuracy at the end, mean ± sd, % | seconds, mean |\n| --- | --- | --- |")
    curves = {name: [curve_of(rows[name, seed]) for seed in range(1, seeds + 1)] for name in NAMES}
    for name, group in curves.items():
        ends = [curve[-1][1] for curve in group]
        spread = f" ± {stdev(ends):.3f}" if len(ends) > 1 else ""
        mean_seconds = mean(curve[-1][0] for curve in group)
        print(f"| {name} | {mean(ends):.3f}{spread} | {mean_seconds:.0f} |", flush=True)
    plot_by_seconds(curves, output_dir / "peers.png")
