"""Train this project's recipes and their peers in turn on this machine, and draw accuracy over seconds.

    python benchmarks/peers.py --output-dir runs/peers

The peers are the original's settings through the pipeline that most scripts have, and a network like
tuomaso/train_mnist_fast's, of 215,194 parameters, by schedules of one, two, four and eight epochs.
"""

import contextlib
import io
import json
import os
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean, stdev

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from benchmarks.arguments import parse_peers
    from runtime.errors import run_command

    run_command("peers.py", parse_peers, "benchmarks.peers")

import torch
from torch import nn

import main as experiment
from benchmarks.pipeline import conventional_loaders, conventional_steps
from benchmarks.summary import plot_by_seconds
from checkpoint import versions
from config import ORIGINAL, RECIPES, Config, select_device
from model import Net
from runtime.cpu import speed_up
from runtime.errors import UserError
from runtime.files import locked, read_table, write_table
from test import test
from train import advance, make_optimizer, train
from utils import DeviceLoader, get_loaders, stream_seed

Row = dict[str, str]
Curve = list[tuple[float, float]]  # after each epoch: seconds, evaluations included, and test accuracy in %


def run_epochs(epochs: int, do_epoch: Callable[[int], float]) -> Curve:
    """Do ``epochs``, each of which returns its test accuracy, and take their time."""
    begin = time.perf_counter()
    return [(time.perf_counter() - begin, accuracy) for accuracy in map(do_epoch, range(1, epochs + 1))]


def run_recipe(config: Config, device: torch.device) -> Curve:
    """Train one of this project's recipes, as ``main.py`` does."""
    loaders = get_loaders(config, device)
    state = experiment.make_state(config, device, len(loaders[0]), 10)
    return run_epochs(
        config.epochs, lambda epoch: experiment.run_epoch(config, loaders, state, epoch).eval_accuracy
    )


def run_conventional(config: Config, device: torch.device) -> Curve:
    """Train the original's settings through ``pipeline.py``'s conventional pipeline, with one worker."""
    train_loader, test_loader = conventional_loaders(device, workers=1)
    torch.manual_seed(stream_seed(config.seed, "weights"))
    model, steps = Net().to(device), len(train_loader)
    optimizer, scheduler = make_optimizer(model, config, config.epochs * steps)
    optimizer.param_groups[0]["fused"] = None  # as SGD is by default

    def do_epoch(epoch: int) -> float:
        conventional_steps(model, device, optimizer, train_loader)
        advance(scheduler, steps)
        return test(model, device, test_loader)[1]

    return run_epochs(config.epochs, do_epoch)


def large_network() -> nn.Sequential:
    """Make a network like the last one of tuomaso/train_mnist_fast."""
    return nn.Sequential(
        *(nn.Conv2d(1, 24, 5), nn.MaxPool2d(2), nn.ReLU(inplace=True)),
        *(nn.Conv2d(24, 32, 3), nn.MaxPool2d(2), nn.ReLU(inplace=True)),
        *(nn.Flatten(), nn.Linear(800, 256), nn.ReLU(inplace=True), nn.Linear(256, 10), nn.LogSoftmax(1)),
    )


def run_large(epochs: int, config: Config, device: torch.device) -> Curve:
    """Train ``large_network`` for so many ``epochs``, on batches that are always the same."""
    full, test_loader = get_loaders(config, device)
    train_loader = DeviceLoader(full.images, full.labels, 256)
    torch.manual_seed(stream_seed(config.seed, "weights"))
    model = large_network().to(device)
    if device.type == "cpu":
        speed_up(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, betas=(0.7, 0.9), fused=True)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.01, total_steps=epochs * len(train_loader), cycle_momentum=False
    )

    def do_epoch(epoch: int) -> float:
        train(model, device, train_loader, optimizer=optimizer, epoch=epoch, scheduler=scheduler)
        return test(model, device, test_loader)[1]

    return run_epochs(epochs, do_epoch)


PEERS: dict[str, Callable[[Config, torch.device], Curve]] = {"original, conventional": run_conventional}
PEERS["large network, 1 epoch"] = partial(run_large, 1)
PEERS |= {f"large network, {epochs} epochs": partial(run_large, epochs) for epochs in (2, 4, 8)}
NAMES = [*RECIPES, *PEERS]


def run(name: str, seed: int, device: torch.device) -> Curve:
    """Train the one called ``name``."""
    config = replace(RECIPES.get(name, ORIGINAL), seed=seed, early_stopping=False)
    with contextlib.redirect_stdout(io.StringIO()):
        return PEERS.get(name, run_recipe)(config, device)


def run_apart(name: str, seed: int, args: Namespace) -> Curve:
    """Do ``run`` in a process of its own, as this project's way tells its process how to keep memory."""
    command = [sys.executable, __file__, f"--device={args.device}", f"--output-dir={args.output_dir}"]
    done = subprocess.run([*command, "--child", name, str(seed)], stdout=subprocess.PIPE, check=False)
    if done.returncode != 0:
        raise UserError(f"{name} failed with seed {seed}: its reason is above")
    return [(seconds, accuracy) for seconds, accuracy in json.loads(done.stdout)]


def main(args: Namespace) -> None:
    """Carry out the command line. Raises ``UserError``, ``OSError`` and ``KeyboardInterrupt``."""
    device = select_device(args.device)
    if args.child:
        name, seed = args.child
        print(json.dumps(run(name, int(seed), device)))
        return
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{os.cpu_count()} cores"
    about = versions() | {"device": f"{device}, {machine}", "threads": str(torch.get_num_threads())}
    args.output_dir.mkdir(parents=True, exist_ok=True)
    path = args.output_dir / "peers.csv"
    with locked(args.output_dir):
        rows = {
            (row["name"], int(row["seed"])): row
            for row in read_table(path, ["name", "seed", "seconds", "accuracy_by_epoch"])
        }
        for (name, _), row in rows.items():
            if name in RECIPES and len(row["seconds"].split()) != RECIPES[name].epochs:
                raise UserError(f"{path} has another schedule of {name}: take another --output-dir")
        for seed in range(1, args.seeds + 1):
            for name in NAMES[:: 1 if seed % 2 else -1]:  # in turn, so that a slow hour is nobody's own
                if (name, seed) in rows:
                    continue
                try:
                    curve = run_apart(name, seed, args)
                except KeyboardInterrupt as stop:
                    raise type(stop)("the same command goes on from here") from None
                print(f"seed {seed}, {name}: {curve[-1][1]:.2f} % after {curve[-1][0]:.0f} s", flush=True)
                columns = ([f"{value:.2f}" for value in column] for column in zip(*curve, strict=True))
                times, accuracies = map(" ".join, columns)  # by epoch
                made = {"name": name, "seed": str(seed), "seconds": times, "accuracy_by_epoch": accuracies}
                rows[name, seed] = made | about
                write_table(path, [rows[key] for key in sorted(rows)])
    curves: dict[str, list[Curve]] = {name: [] for name in NAMES}
    rows = {(name, seed): row for (name, seed), row in rows.items() if name in NAMES and seed <= args.seeds}
    for (name, _), row in rows.items():
        points = (map(float, row[column].split()) for column in ("seconds", "accuracy_by_epoch"))
        curves[name].append(list(zip(*points, strict=True)))
    for where in sorted({", ".join(f"{key} {row[key]}" for key in about) for row in rows.values()}):
        print(f"\n{where}; seeds 1 to {args.seeds}")
    print("\n| | test accuracy at the end, mean ± sd, % | seconds, mean |\n| --- | --- | --- |")
    for name, runs in curves.items():
        ends = [curve[-1][1] for curve in runs]
        spread = f" ± {stdev(ends):.3f}" if len(ends) > 1 else ""
        seconds = mean(curve[-1][0] for curve in runs)
        print(f"| {name} | {mean(ends):.3f}{spread} | {seconds:.0f} |", flush=True)
    plot_by_seconds(curves, args.output_dir / "peers.png")
