"""Compare the conventional MNIST pipeline with this project's, on this machine, on real MNIST.

    python benchmarks/pipeline.py

The conventional pipeline is that of most scripts: torchvision's transforms of PIL images in a ``DataLoader``,
and ``.item()`` at each step. On a CPU, this project's pipeline without ``speed_up`` is compared, too. Each
pipeline has its own process. They take turns, and what counts is the ratio within a turn.
"""

import contextlib
import functools
import io
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from statistics import median
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

TEST_IMAGES = 10_000  # in a whole epoch
PARTS = ("data", "step", "epoch")  # of a pipeline's work, each timed on its own
Parts = dict[str, Callable[[], object]]


def conventional_loaders(
    device: torch.device, workers: int, images: int = TEST_IMAGES
) -> tuple[Loader, Loader]:
    """Return conventional loaders of all training images, and of the first ``images`` of the test set."""
    from torchvision import transforms
    from torchvision.datasets import MNIST

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
    train_loader = DataLoader(train_set, ORIGINAL.batch_size, shuffle=True, **options)
    return train_loader, DataLoader(Subset(test_set, range(images)), 1000, **options)


def conventional_steps(
    model: nn.Module, device: torch.device, optimizer: Optimizer, batches: Iterable[tuple[Tensor, Tensor]]
) -> None:
    """Train ``model`` on ``batches`` as most scripts do: each step copies loss and accuracy to the host."""
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
    """Make the conventional pipeline. A part has ``batches`` training steps and ``images`` test images."""
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
        test(model, device, test_loader)

    return {"data": data_part, "step": step_part, "epoch": epoch_part}


def ours(device: torch.device, faster: bool, batches: int, images: int) -> Parts:
    """Make this project's pipeline from the functions that ``main.py`` calls, sped up if ``faster``."""
    train_loader, test_loader = get_loaders(replace(ORIGINAL, limit_train_batches=batches), device)
    test_loader.images, test_loader.labels = test_loader.images[:images], test_loader.labels[:images]
    train_batches = itertools.chain.from_iterable(itertools.repeat(train_loader))
    model = Net().to(device)
    if faster:
        speed_up(model)
    optimizer, _ = make_optimizer(model, ORIGINAL, TRAIN_BATCHES)
    fixed: Any = [next(train_batches)] * batches

    def data_part() -> None:
        for _ in itertools.islice(train_batches, batches):
            pass

    def epoch_part() -> None:
        train(model, device, train_loader, optimizer=optimizer, epoch=1)
        test(model, device, test_loader)

    step = functools.partial(train, model, device, fixed, optimizer=optimizer, epoch=1)
    return {"data": data_part, "step": step, "epoch": epoch_part}


def serve(parts: Parts, device: torch.device) -> None:
    """Read names of parts from stdin; do each, and print its seconds."""
    for line in sys.stdin:
        start = time.perf_counter()
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            parts[line.strip()]()
        if device.type == "cuda":
            torch.cuda.synchronize()
        print(time.perf_counter() - start, flush=True)


def take_turns(commands: dict[str, list[str]], turns: int) -> dict[str, dict[str, list[float]]]:
    """Start ``commands``, which serve pipelines, and let them take turns.

    Returns for each part, and for each pipeline by its name in ``commands``, the seconds in each turn.
    """
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    children: dict[str, Any] = {n: subprocess.Popen(c, text=True, **pipes) for n, c in commands.items()}
    seconds: dict[str, dict[str, list[float]]] = {part: {name: [] for name in commands} for part in PARTS}
    for turn in range(turns + 1):  # the first is a warm-up
        for part, name in itertools.product(PARTS, list(commands)[:: 1 if turn % 2 else -1]):
            print(part, file=children[name].stdin, flush=True)
            answer = children[name].stdout.readline()
            if not answer:
                raise UserError(f"the pipeline {name} failed: its error is above")
            seconds[part][name] += [float(answer)] if turn else []
    for process in children.values():
        process.communicate()  # closes stdin, which ends the process
    return seconds


def compare(part: str, seconds: dict[str, list[float]], rivals: list[str], batches: int) -> dict[str, Any]:
    """Print medians and ratio of ``part``, this project's against its fastest rival, and return the same."""
    rival = min(rivals, key=lambda name: median(seconds[name]))
    ratios = sorted(theirs / mine for theirs, mine in zip(seconds[rival], seconds["ours"], strict=True))
    unit, scale = ("s an epoch", TRAIN_BATCHES) if part == "epoch" else ("ms a batch", 1000)
    theirs, mine = (median(seconds[name]) * scale / batches for name in (rival, "ours"))
    spread = f"{median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    print(f"{part:6s}{rival} {theirs:.2f}, ours {mine:.2f} {unit}; ratio {spread}")
    return {rival: theirs, "ours": mine, "unit": unit, "ratio": median(ratios), "ratios": ratios}


def main(turns: int, batches: int | None, device_name: str, output: str | None, child: str | None) -> None:
    """Carry out the command line. ``child`` is the pipeline that this process serves."""
    device = select_device(device_name)
    batches = batches or (TRAIN_BATCHES if device.type == "cuda" else 20)
    if child:
        size = (batches, round(TEST_IMAGES * batches / TRAIN_BATCHES))  # the same share of both sets
        if child.startswith("conventional"):
            return serve(conventional(device, int(child[-1]), *size), device)
        return serve(ours(device, child == "ours" and device.type == "cpu", *size), device)
    rivals = (
        ["conventional, workers=1"]
        if device.type == "cuda"
        else [f"conventional, workers={n}" for n in (0, 1)]
    )
    plain = ["plain"] if device.type == "cpu" else []
    command = [sys.executable, __file__, f"--device={device_name}", f"--batches={batches}"]
    commands = {name: [*command, f"--child={name}"] for name in [*rivals, *plain, "ours"]}
    seconds = take_turns(commands, turns)
    processor = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{os.cpu_count()} cores"
    result = versions() | {"processor": processor, "threads": torch.get_num_threads(), "turns": turns}
    print(", ".join(f"{key} {value}" for key, value in result.items()))
    result |= {part: compare(part, seconds[part], rivals, batches) for part in PARTS}
    if plain:
        result["speed_up"] = compare("step", seconds["step"], plain, batches)
    if output:
        replace_file(Path(output), (json.dumps(result, indent=2) + "\n").encode())
