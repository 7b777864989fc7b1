"""Compare the conventional MNIST pipeline with this project's, on this machine, on real MNIST.

    python benchmarks/pipeline.py

Conventional is what most scripts do: torchvision's transforms on PIL images in a ``DataLoader``, eager
steps, ``.item()`` at each. Each pipeline runs in a process of its own, and they take turns, slice by
slice, so that the machine's moods fall on both; what counts is the ratio within a turn.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

BATCH = 128
TRAIN_BATCHES, TEST_IMAGES = 469, 10_000  # in a whole epoch
PARTS = ("data", "step", "epoch")
Parts = dict[str, Callable[[], None]]
Seconds = dict[str, dict[str, list[float]]]


def forever(loader: Any) -> Iterator[Any]:
    """Go through ``loader`` again and again."""
    while True:
        yield from loader


def conventional(data_path: str, device: Any, workers: int, batches: int, images: int) -> Parts:
    """Build the pipeline that most scripts have; a part does ``batches`` steps and tests on ``images``."""
    import torch
    import torch.nn.functional as F
    from torch.utils.data import DataLoader, Subset
    from torchvision import datasets, transforms

    from model import Net

    normalise = [transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))]
    augment = transforms.Compose([transforms.RandomRotation((-7.0, 7.0), fill=(0,)), *normalise])
    options = {"num_workers": workers, "persistent_workers": workers > 0, "pin_memory": device.type == "cuda"}
    train_set = datasets.MNIST(data_path, train=True, transform=augment)
    test_set = datasets.MNIST(data_path, train=False, transform=transforms.Compose(normalise))
    train_batches = forever(DataLoader(train_set, BATCH, shuffle=True, **options))
    test_loader = DataLoader(Subset(test_set, range(images)), 1000, **options)
    model = Net().to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)

    def step(data: Any, target: Any) -> None:
        data, target = data.to(device), target.to(device)
        optimizer.zero_grad()
        output = model(data)
        loss = F.nll_loss(output, target)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        loss.item(), (output.argmax(dim=1) == target).sum().item()

    def data_part() -> None:
        for _ in range(batches):
            data, target = next(train_batches)
            data.to(device), target.to(device)

    fixed = next(train_batches)

    def step_part() -> None:
        model.train()
        for _ in range(batches):
            step(*fixed)

    def epoch_part() -> None:
        model.train()
        for _ in range(batches):
            step(*next(train_batches))
        model.eval()
        with torch.no_grad():
            for data, target in test_loader:
                output = model(data.to(device))
                F.nll_loss(output, target.to(device), reduction="sum").item()
                (output.argmax(dim=1) == target.to(device)).sum().item()

    return {"data": data_part, "step": step_part, "epoch": epoch_part}


def ours(data_path: str, device: Any, batches: int, images: int) -> Parts:
    """Build this project's pipeline, from the functions that ``main.py`` calls."""
    import contextlib
    import io

    from arguments import parse_args
    from cpu import speed_up
    from model import Net
    from test import test
    from train import make_optimizer, train
    from utils import get_loaders

    train_loader, test_loader = get_loaders(data_path, device)
    test_loader.images, test_loader.labels = test_loader.images[:images], test_loader.labels[:images]
    train_batches = forever(train_loader)
    model = Net().to(device)
    if device.type == "cpu":
        speed_up(model)
    optimizer, _ = make_optimizer(model, parse_args(["--recipe", "original"]), TRAIN_BATCHES)
    fixed = [next(train_batches)] * batches

    def data_part() -> None:
        for _ in range(batches):
            next(train_batches)

    def step_part() -> None:
        train(model, device, fixed, optimizer, 1)

    def epoch_part() -> None:
        train(model, device, train_loader, optimizer, 1, limit_batches=batches)
        with contextlib.redirect_stdout(io.StringIO()):
            test(model, device, test_loader)

    return {"data": data_part, "step": step_part, "epoch": epoch_part}


def serve(parts: Parts, wait: Callable[[], None]) -> None:
    """Be a child of ``take_turns``: a part's name on stdin, its seconds on stdout; then its peak memory."""
    import resource

    for line in sys.stdin:
        wait()
        start = time.perf_counter()
        parts[line.strip()]()
        wait()
        print(time.perf_counter() - start, flush=True)
    peak = sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(peak * (1 if sys.platform == "darwin" else 1024), flush=True)


def take_turns(
    commands: dict[str, list[str]], parts: Sequence[str], turns: int
) -> tuple[Seconds, dict[str, int]]:
    """Start ``commands``, each a process that calls ``serve``, and let them do ``parts`` in turns.

    Returns the seconds by part and by command, a value a turn, and each command's peak memory in bytes.
    """
    children = {
        name: subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        for name, command in commands.items()
    }

    def ask(name: str, part: str) -> float:
        process = children[name]
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(part + "\n")
        process.stdin.flush()
        return float(process.stdout.readline())

    seconds: Seconds = {part: {name: [] for name in commands} for part in parts}
    for turn in range(turns + 1):  # the first warms up
        for part in parts:
            for name in list(commands)[:: 1 if turn % 2 else -1]:
                taken = ask(name, part)
                if turn:
                    seconds[part][name].append(taken)
    peaks = {name: int(process.communicate()[0]) for name, process in children.items()}
    return seconds, peaks


def child(name: str, args: argparse.Namespace) -> None:
    """Be the pipeline called ``name``."""
    import torch

    from main import select_device

    device = select_device(args.device)
    size = (args.batches, round(TEST_IMAGES * args.batches / TRAIN_BATCHES))  # the same share of both
    if name == "ours":
        parts = ours(args.data_path, device, *size)
    else:
        parts = conventional(args.data_path, device, int(name[-1]), *size)

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    serve(parts, wait)


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
        result[part] = {"unit": unit, "workers": int(rival[-1]), "conventional": theirs, "ours": mine}
        result[part] |= {"ratio": ratio, "ratios": ratios}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the conventional pipeline with this project's.")
    parser.add_argument("--turns", type=int, default=9, help="turns of each pipeline (default: %(default)s)")
    parser.add_argument("--batches", type=int, help="training steps in a turn (default: 20; on CUDA 469)")
    parser.add_argument("--device", default="auto", help="as of main.py (default: %(default)s)")
    parser.add_argument(
        "--data-path", default=str(ROOT / "data"), help="as of main.py (default: %(default)s)"
    )
    parser.add_argument("--output", help="write the results to this file too, as JSON")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child(args.child, args)

    import torch

    from checkpoint import replace_file, versions
    from main import select_device

    cuda = select_device(args.device).type == "cuda"
    args.batches = args.batches or (TRAIN_BATCHES if cuda else 20)
    rivals = ["conventional1"] if cuda else ["conventional0", "conventional1"]
    flags = [f"--data-path={args.data_path}", f"--device={args.device}", f"--batches={args.batches}"]
    commands = {name: [sys.executable, __file__, f"--child={name}", *flags] for name in [*rivals, "ours"]}
    seconds, peaks = take_turns(commands, PARTS, args.turns)
    machine = torch.cuda.get_device_name() if cuda else f"{os.cpu_count()} cores, {platform.machine()}"
    where = {"machine": machine, "threads": torch.get_num_threads(), **versions(), "turns": args.turns}
    print(", ".join(f"{key} {value}" for key, value in where.items()))
    result = where | report(seconds, rivals, args.batches) | {"peak_host_bytes": peaks}
    print("peak host memory: " + ", ".join(f"{name} {peak / 2**20:.0f} MiB" for name, peak in peaks.items()))
    if args.output:
        replace_file(Path(args.output), (json.dumps(result, indent=2) + "\n").encode())


if __name__ == "__main__":
    main()
