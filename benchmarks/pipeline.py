"""Compare the conventional MNIST pipeline with this project's, on this machine, on real MNIST.

    python benchmarks/pipeline.py

Conventional is what most scripts do: torchvision's transforms on PIL images in a ``DataLoader``, ``.item()``
at each step. Each pipeline is a process, and they take turns: what counts is the ratio within a turn.
"""

import argparse
import contextlib
import functools
import io
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from benchmarks.arguments import parse_pipeline
    from runtime.errors import run_command

    run_command("pipeline.py", parse_pipeline, "benchmarks.pipeline")

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Subset
from torchvision import transforms
from torchvision.datasets import MNIST

from benchmarks.arguments import TRAIN_BATCHES
from checkpoint import versions
from config import ORIGINAL, select_device
from datasets import MEAN, STD
from datasets.mnist import SHA256, read_archive
from model import Net
from runtime.cpu import speed_up
from runtime.errors import UserError
from runtime.files import replace_file
from test import test
from train import make_optimizer, train
from utils import Loader, get_loaders

BATCH = ORIGINAL.batch_size
TEST_IMAGES = 10_000  # in a whole epoch

PARTS = ("data", "step", "epoch")
Parts = dict[str, Callable[[], object]]
Seconds = dict[str, dict[str, list[float]]]
Batch = tuple[Tensor, Tensor]


def conventional_loaders(
    device: torch.device, workers: int, images: int = TEST_IMAGES
) -> tuple[Loader, Loader]:
    """Return loaders of the training images and of the first test ``images``, as most scripts have them."""
    normalize = transforms.Compose([transforms.ToTensor(), transforms.Normalize((MEAN,), (STD,))])
    augment = transforms.Compose([transforms.RandomRotation((-7.0, 7.0), fill=(0,)), normalize])
    pin = device.type == "cuda"
    options: dict[str, Any] = {"num_workers": workers, "persistent_workers": workers > 0, "pin_memory": pin}
    with tempfile.TemporaryDirectory() as folder:  # torchvision reads the files once, here
        (raw := Path(folder, "MNIST", "raw")).mkdir(parents=True)
        for name in SHA256:
            (raw / name.removesuffix(".gz")).write_bytes(read_archive(name))
        train_set = MNIST(folder, train=True, transform=augment)
        test_set = MNIST(folder, train=False, transform=normalize)
    train_loader = DataLoader(train_set, BATCH, shuffle=True, **options)
    return train_loader, DataLoader(Subset(test_set, range(images)), 1000, **options)


def conventional_steps(
    model: nn.Module, device: torch.device, optimizer: Optimizer, batches: Iterable[Batch]
) -> None:
    """Train ``model`` on ``batches`` as most scripts do: what is printed comes to the host at each step."""
    model.train()
    for data, target in batches:
        data, target = data.to(device), target.to(device)
        optimizer.zero_grad()
        output = model(data)
        loss = F.nll_loss(output, target)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        loss.item(), (output.argmax(dim=1) == target).sum().item()


def conventional(device: torch.device, workers: int, batches: int, images: int) -> Parts:
    """Build the pipeline that most scripts have; a part does ``batches`` steps and tests on ``images``."""
    train_loader, test_loader = conventional_loaders(device, workers, images)
    train_batches = itertools.chain.from_iterable(itertools.repeat(train_loader))
    model = Net().to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    fixed = next(train_batches)

    def data_part() -> None:
        for data, target in itertools.islice(train_batches, batches):
            data.to(device), target.to(device)

    def step_part() -> None:
        conventional_steps(model, device, optimizer, itertools.repeat(fixed, batches))

    def epoch_part() -> None:
        conventional_steps(model, device, optimizer, itertools.islice(train_batches, batches))
        model.eval()
        with torch.no_grad():
            for data, target in test_loader:
                output = model(data.to(device))
                F.nll_loss(output, target.to(device), reduction="sum").item()
                (output.argmax(dim=1) == target.to(device)).sum().item()

    return {"data": data_part, "step": step_part, "epoch": epoch_part}


def ours(device: torch.device, batches: int, images: int) -> Parts:
    """Build this project's pipeline, from the functions that ``main.py`` calls."""
    train_loader, test_loader = get_loaders(ORIGINAL, device)
    test_loader.images, test_loader.labels = test_loader.images[:images], test_loader.labels[:images]
    train_batches = itertools.chain.from_iterable(itertools.repeat(train_loader))
    model = Net().to(device)
    if device.type == "cpu":
        speed_up(model)
    optimizer, _ = make_optimizer(model, ORIGINAL, TRAIN_BATCHES)
    fixed: Any = [next(train_batches)] * batches

    def data_part() -> None:
        for _ in itertools.islice(train_batches, batches):
            pass

    def epoch_part() -> None:
        train(model, device, train_loader, optimizer=optimizer, epoch=1, limit_batches=batches)
        with contextlib.redirect_stdout(io.StringIO()):
            test(model, device, test_loader)

    step = functools.partial(train, model, device, fixed, optimizer=optimizer, epoch=1)
    return {"data": data_part, "step": step, "epoch": epoch_part}


def serve(parts: Parts, device: torch.device) -> None:
    """Be a child of ``take_turns``: a part's name on stdin, its seconds on stdout."""
    for line in sys.stdin:
        start = time.perf_counter()
        with contextlib.redirect_stderr(io.StringIO()):  # progress bars
            parts[line.strip()]()
        if device.type == "cuda":
            torch.cuda.synchronize()
        print(time.perf_counter() - start, flush=True)


def take_turns(commands: dict[str, list[str]], turns: int) -> Seconds:
    """Let processes of ``commands`` do their parts in turns; return a value a turn."""
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    children: dict[str, Any] = {n: subprocess.Popen(c, text=True, **pipes) for n, c in commands.items()}
    seconds: Seconds = {part: {name: [] for name in commands} for part in PARTS}
    for turn in range(turns + 1):  # the first warms up
        for part, name in itertools.product(PARTS, list(commands)[:: 1 if turn % 2 else -1]):
            print(part, file=children[name].stdin, flush=True)
            taken = children[name].stdout.readline()
            if not taken:
                raise UserError(f"the pipeline {name} ended by itself: its reason is above")
            seconds[part][name] += [float(taken)] if turn else []
    for process in children.values():
        process.communicate()  # the end of stdin, which ends it
    return seconds


def report(seconds: Seconds, rivals: list[str], batches: int) -> dict[str, Any]:
    """Print each part's medians and ratio, against the faster rival, and return the same as plain data."""
    result: dict[str, Any] = {}
    for part in PARTS:
        rival = min(rivals, key=lambda name: statistics.median(seconds[part][name]))
        pairs = list(zip(seconds[part][rival], seconds[part]["ours"], strict=True))
        ratios = sorted(theirs / mine for theirs, mine in pairs)
        unit, scale = ("s an epoch", TRAIN_BATCHES) if part == "epoch" else ("ms a batch", 1000)
        theirs, mine = (statistics.median(column) * scale / batches for column in zip(*pairs, strict=True))
        ratio = statistics.median(ratios)
        print(
            f"{part:6s} conventional {theirs:7.2f} (workers: {rival[-1]}), ours {mine:6.2f} {unit}; "
            f"ratio {ratio:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        )
        named = {"workers": int(rival[-1]), "conventional": theirs, "ours": mine, "ratio": ratio}
        result[part] = {"unit": unit, **named, "ratios": ratios}
    return result


def main(args: argparse.Namespace) -> None:
    """Compare, or with --child be one of the pipelines."""
    device = select_device(args.device)
    args.batches = args.batches or (TRAIN_BATCHES if device.type == "cuda" else 20)
    if args.child:
        size = (args.batches, round(TEST_IMAGES * args.batches / TRAIN_BATCHES))  # the same share of both
        workers = args.child.removeprefix("conventional")
        parts = ours(device, *size) if workers == "ours" else conventional(device, int(workers), *size)
        return serve(parts, device)
    rivals = ["conventional1"] if device.type == "cuda" else ["conventional0", "conventional1"]
    command = [sys.executable, __file__, f"--device={args.device}", f"--batches={args.batches}"]
    commands = {name: [*command, f"--child={name}"] for name in [*rivals, "ours"]}
    seconds = take_turns(commands, args.turns)
    processor = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{os.cpu_count()} cores"
    where = versions() | {"processor": processor, "threads": torch.get_num_threads(), "turns": args.turns}
    print(", ".join(f"{key} {value}" for key, value in where.items()))
    result = where | report(seconds, rivals, args.batches)
    if args.output:
        replace_file(Path(args.output), (json.dumps(result, indent=2) + "\n").encode())
