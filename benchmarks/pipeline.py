"""Compare the conventional MNIST pipeline with this project's, on this machine and on real MNIST.

The conventional pipeline is that of most scripts: torchvision's transforms of PIL images in a ``DataLoader``,
and ``.item()`` at each step. On a CPU, this project's pipeline without ``speed_up`` is compared, too. Each
pipeline has its own process. They take turns, and what counts is the ratio within a turn.
"""

import argparse
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
    from benchmarks.arguments import positive_int
    from runtime.arguments import Parser
    from runtime.errors import run_command

    parser = Parser("pipeline.py", "Compare the conventional pipeline with this project's.")
    parser.add_argument(
        "--turns", type=positive_int, default=9, help="turns of each pipeline (default: %(default)s)"
    )
    parser.add_argument(
        "--batches", type=positive_int, help="training steps in a turn (default: 20; on CUDA 469)"
    )
    parser.add_argument("--device", default="auto", help="as for main.py (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="file for the results, as JSON")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    run_command("pipeline.py", parser.values, "benchmarks.pipeline")

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Subset

from checkpoint import versions
from config import ORIGINAL
from datasets import MEAN, STD
from datasets.mnist import SHA256, read_archive
from model import Net
from runtime.cpu import speed_up
from runtime.device import select_device
from runtime.errors import UsageError, UserError
from runtime.files import replace_file
from test import test
from train import make_optimizer, train
from utils import Loader, get_loaders

TRAIN_BATCHES, TEST_IMAGES = 469, 10_000  # in an epoch
PARTS = ("data", "step", "epoch")  # of a pipeline's work, each timed on its own
Parts = dict[str, Callable[[], object]]


def conventional_loaders(device: torch.device, workers: int, images: int) -> tuple[Loader, Loader]:
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


def make_parts(name: str, device: torch.device, batches: int) -> Parts:
    """Make the ``PARTS`` of the pipeline called ``name``, each of ``batches`` training steps.

    The part "epoch" has the same share of the test set as of the training set.
    """
    images = round(TEST_IMAGES * batches / TRAIN_BATCHES)
    model = Net().to(device)
    conventional = name.startswith("conventional")
    train_steps: Any
    if conventional:
        train_loader, test_loader = conventional_loaders(device, int(name[-1]), images)
        sgd = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
        train_steps = functools.partial(conventional_steps, model, device, sgd)
    else:  # the functions that main.py calls
        train_loader, test_loader = get_loaders(replace(ORIGINAL, limit_train_batches=batches), device)
        test_loader.images, test_loader.labels = test_loader.images[:images], test_loader.labels[:images]
        if name == "ours" and device.type == "cpu":
            speed_up(model)
        optimizer, _ = make_optimizer(model, ORIGINAL, TRAIN_BATCHES)
        train_steps = functools.partial(train, model, device, optimizer=optimizer, epoch=1)
    endless = itertools.chain.from_iterable(itertools.repeat(train_loader))
    fixed = [next(endless)] * batches

    def data_part() -> None:
        for data, target in itertools.islice(endless, batches):
            data.to(device), target.to(device)

    def epoch_part() -> None:
        train_steps(itertools.islice(endless, batches) if conventional else train_loader)
        test(model, device, test_loader)

    return {"data": data_part, "step": lambda: train_steps(fixed), "epoch": epoch_part}


def serve(parts: Parts, device: torch.device) -> None:
    """Read names of parts from stdin; do each, and print its seconds."""
    for line in sys.stdin:
        start = time.perf_counter()
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            parts[line.strip()]()
        if device.type != "cpu":
            torch.accelerator.synchronize()
        print(time.perf_counter() - start, flush=True)


def take_turns(names: list[str], flags: list[str], turns: int) -> dict[str, dict[str, list[float]]]:
    """Start a process with ``flags`` for each of the pipelines ``names``, and let them take turns.

    Returns for each part, and for each pipeline by its name, the seconds in each turn.
    """
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    command = [sys.executable, __file__, *flags, "--child"]
    children: dict[str, Any] = {name: subprocess.Popen([*command, name], **pipes) for name in names}
    seconds: dict[str, dict[str, list[float]]] = {part: {name: [] for name in names} for part in PARTS}
    for turn in range(turns + 1):  # the first is a warm-up
        for part, name in itertools.product(PARTS, names[:: 1 if turn % 2 else -1]):
            answer = ""
            with contextlib.suppress(BrokenPipeError):  # of a child that has ended
                print(part, file=children[name].stdin, flush=True)
                answer = children[name].stdout.readline()
            if not answer:
                for process in children.values():
                    process.kill()
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


def main(turns: int, batches: int | None, device_name: str, output: Path | None, child: str | None) -> None:
    """Carry out the command line. ``child`` is the pipeline that this process serves."""
    device = select_device(device_name)
    batches = batches or (TRAIN_BATCHES if device.type == "cuda" else 20)
    if batches > TRAIN_BATCHES:
        raise UsageError(f"argument --batches: must be from 1 to {TRAIN_BATCHES}, the batches of an epoch")
    if child:
        return serve(make_parts(child, device, batches), device)
    if output is not None and not output.parent.is_dir():
        raise UsageError(f"argument --output: {output.parent} is no folder")
    if output is not None and output.is_dir():
        raise UsageError(f"argument --output: {output} is a folder")
    workers = (1,) if device.type == "cuda" else (0, 1)
    rivals = [f"conventional, workers={n}" for n in workers]
    plain = ["plain"] if device.type == "cpu" else []
    flags = [f"--device={device_name}", f"--batches={batches}"]
    seconds = take_turns([*rivals, *plain, "ours"], flags, turns)
    processor = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{os.cpu_count()} cores"
    result = versions() | {"processor": processor, "threads": torch.get_num_threads(), "turns": turns}
    print(", ".join(f"{key} {value}" for key, value in result.items()))
    result |= {part: compare(part, seconds[part], rivals, batches) for part in PARTS}
    if plain:
        result["speed_up"] = compare("step", seconds["step"], plain, batches)
    if output:
        replace_file(output, (json.dumps(result, indent=2) + "\n").encode())
