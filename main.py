"""Train the network on MNIST: ``python main.py``. ``--help`` lists the flags."""

import interrupt
from arguments import UsageError, parse_args, resume_args

if __name__ == "__main__":
    interrupt.watch("main.py")
    args = parse_args()  # before torch is imported, which takes seconds: --help and mistakes answer at once

import argparse
import copy
import math
import os
import shlex
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from checkpoint import (
    Row,
    RunError,
    find_run,
    load_progress,
    locked,
    make_run_dir,
    restore,
    save_best,
    save_progress,
    snapshot,
    versions,
)
from cpu import speed_up
from curves import require_tensorboard, write_tensorboard
from model import Net
from test import test
from train import DivergedError, make_ema, make_optimizer, train
from utils import DataError, DeviceLoader, get_loaders


def select_device(name: str) -> torch.device:
    """Return the device called ``name``; 'auto' is the first there is of cuda, mps and cpu.

    Raises ``UsageError`` when this machine doesn't have it.
    """
    there = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    there = ["cuda", *there] if there else []
    there += ["mps"] if torch.backends.mps.is_available() else []
    there += ["cpu"]
    if name == "auto":
        return torch.device(there[0])
    if name not in there:
        raise UsageError(f"argument --device: {name} is not on this machine, which has {', '.join(there)}")
    return torch.device(name)


def count_parameters(model: nn.Module) -> int:
    """Return the number of numbers that training can change."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def print_summary(model: nn.Module) -> None:
    """Print the parameter counts and torchsummary's table, leaving model and generators as they were."""
    print(f"Total parameters: {sum(p.numel() for p in model.parameters()):,}")
    print(f"Trainable parameters: {count_parameters(model):,}")
    try:
        from torchsummary import summary
    except ImportError:
        print("No summary table: torchsummary is not installed (pip install torchsummary)")
        return
    with torch.random.fork_rng(devices=[]):
        summary(copy.deepcopy(model), (1, 28, 28), device="cpu")


def make_deterministic() -> None:
    """Have torch choose only algorithms that give the same bits each time; call it before CUDA is used."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def load_data(args: argparse.Namespace, device: torch.device) -> tuple[DeviceLoader, DeviceLoader]:
    """Make the loaders for training and evaluation that ``args`` asks for. Raises ``DataError``."""
    return get_loaders(
        args.data_path,
        device,
        args.batch_size,
        args.rotation,
        args.interpolation,
        args.translation,
        args.seed,
        args.holdout,
    )


def run_epoch(
    args: argparse.Namespace,
    device: torch.device,
    loaders: tuple[DeviceLoader, DeviceLoader],
    parts: dict[str, Any],
    steps: int,
    epoch: int,
) -> Row:
    """Train and evaluate once, move the schedule on, return the line for metrics.csv.

    Raises ``DivergedError`` when a loss, in training or evaluation, is NaN or infinite.
    """
    train_loader, test_loader = loaders
    model, scheduler, ema = parts["model"], parts["scheduler"], parts.get("ema")
    part, name = ("holdout", "Held-out set") if args.holdout else ("test", "Test set")
    each_batch = scheduler if args.schedule_interval == "batch" else None
    begin, lr = time.perf_counter(), float(scheduler.get_last_lr()[0])
    train_loss, train_accuracy = train(
        model, device, train_loader, parts["optimizer"], epoch, each_batch, steps, args.label_smoothing, ema
    )
    loss, correct = test(model if ema is None else ema.module, device, test_loader, name)
    if not math.isfinite(loss):
        raise DivergedError(
            f"the loss in evaluation became {loss} after epoch {epoch}, at learning rate {lr:.4g}: "
            "try a lower --max-lr"
        )
    if args.schedule_interval == "epoch" and epoch < args.epochs:
        for _ in range(steps):
            scheduler.step()
    return {
        "epoch": epoch,
        "lr": lr,
        "train_loss": train_loss,
        "train_accuracy": train_accuracy,
        f"{part}_loss": loss,
        f"{part}_accuracy": 100.0 * correct / len(test_loader.labels),
        "seconds": round(time.perf_counter() - begin, 2),
    }


def run(
    args: argparse.Namespace,
    device: torch.device,
    loaders: tuple[DeviceLoader, DeviceLoader],
    folder: Path,
    progress: dict[str, Any],
) -> None:
    """Train and evaluate as ``args`` says, tell the story on stdout, leave the results in ``folder``.

    ``progress`` says what is done already, as last.pt does, and is kept up to date.
    """
    torch.manual_seed(args.seed)
    model = Net(args.dropout)
    print(f"Device: {device}")
    print_summary(model)
    model.to(device)
    if device.type == "cpu":
        speed_up(model)
    steps = min(len(loaders[0]), args.limit_train_batches or len(loaders[0]))
    optimizer, scheduler = make_optimizer(model, args, steps)
    ema = make_ema(model, args.model_ema_decay)
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler} | ({"ema": ema} if ema else {})
    if progress["epoch"] > 0:
        restore(folder, progress, parts, device, loaders[0].generator)
        print(f"\nGoing on after epoch {progress['epoch']}; best accuracy so far: {progress['best']:.2f}%")

    for epoch in range(progress["epoch"] + 1, args.epochs + 1):
        print(f"\nEpoch {epoch}/{args.epochs}", flush=True)
        row = run_epoch(args, device, loaders, parts, steps, epoch)
        accuracy = row["holdout_accuracy" if args.holdout else "test_accuracy"]
        reached = accuracy >= args.target_accuracy
        if accuracy > progress["best"]:
            progress["best"] = accuracy
            print(f"New best accuracy: {accuracy:.2f}%")
            save_best(folder, model if ema is None else ema.module, row, progress)
        progress["rows"].append(row)
        progress.update(epoch=epoch, finished=reached or epoch == args.epochs)
        # After best.pt: a run that is killed in between makes the same best.pt again.
        save_progress(folder, progress, snapshot(parts, device, loaders[0].generator))
        if args.tensorboard:
            write_tensorboard(folder, progress["rows"])
        announce(args, folder, epoch)
        if reached:
            print(f"Target accuracy of {args.target_accuracy:g}% reached at epoch {epoch}!")
            break
    else:
        if args.target_accuracy == 100:  # a run without early stop: its figure is the one that nobody chose
            print(f"Accuracy at the end of the schedule: {accuracy:.2f}%")
        else:
            epochs = f"{args.epochs} epoch{'s' * (args.epochs > 1)}"
            print(f"Target accuracy of {args.target_accuracy:g}% not reached in {epochs}.")

    print(f"\nFinal best accuracy: {progress['best']:.2f}%")
    print(f"Total parameters: {count_parameters(model):,}")


def announce(args: argparse.Namespace, folder: Path, epoch: int) -> None:
    """Let Ctrl-C say that the run in ``folder`` is saved up to ``epoch``, and how it goes on."""
    if args.dry_run:
        return
    done = f"saved up to epoch {epoch}" if epoch else "no epoch was complete"
    interrupt.saved(f"{done}; to go on: python main.py --resume {shlex.quote(str(folder))}")


def start(args: argparse.Namespace) -> None:
    """Begin a run as ``args`` says."""
    if args.tensorboard:
        require_tensorboard()
    if args.use_deterministic_algorithms:
        make_deterministic()
    device = select_device(args.device)
    loaders = load_data(args, device)  # first: without data, no folder is made
    progress = {
        "settings": vars(args),
        "versions": versions(),
        "device": str(device),
        "epoch": 0,
        "best": 0.0,
        "rows": [],
        "finished": False,
    }
    if args.dry_run:
        with TemporaryDirectory() as temporary:
            run(args, device, loaders, Path(temporary), progress)
        return
    folder = make_run_dir(args.output_dir, f"{args.recipe}-seed{args.seed}")
    with locked(folder):
        save_progress(folder, progress, {})
        announce(args, folder, 0)
        run(args, device, loaders, folder, progress)


def resume(args: argparse.Namespace) -> None:
    """Go on with the run in ``args.resume``, if it isn't finished."""
    folder = find_run(args.resume)
    with locked(folder):
        progress = load_progress(folder)
        settings = resume_args(args, progress["settings"])
        if settings.tensorboard:
            require_tensorboard()
        if progress["finished"]:
            print(
                f"{folder} is finished after epoch {progress['epoch']}: best accuracy {progress['best']:.2f}%"
            )
            return
        if settings.use_deterministic_algorithms:
            make_deterministic()
        kind = progress["device"].partition(":")[0]
        device = select_device(args.given.get("device", progress["device"]))
        if device.type != kind:
            raise UsageError(
                f"argument --device: the run is on {kind}; its random numbers aren't {device.type}'s"
            )
        loaders = load_data(settings, device)
        announce(settings, folder, progress["epoch"])
        run(settings, device, loaders, folder, progress)


def main(args: argparse.Namespace) -> int:
    """Carry out the command line ``args``; return the exit status, after one line on stderr if not 0."""
    interrupt.clean_up()
    try:
        (start if args.resume is None else resume)(args)
        sys.stdout.flush()
        return 0
    except UsageError as error:
        message, status = str(error), 2
    except (DataError, RunError, DivergedError) as error:
        message, status = str(error), 1
    except OSError as error:
        message, status = ": ".join(str(part) for part in (error.filename, error.strerror) if part), 1
        message = message or str(error)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "memory" not in str(error):
            raise
        message, status = "the memory is not enough: try a smaller --batch-size", 1
    except interrupt.Interrupted as error:
        interrupt.end(error.args[0])
    print(f"main.py: error: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    status = main(args)
    try:
        sys.stdout.flush()
    except OSError:  # what stdout doesn't take, Python would try again at exit, with a traceback
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(status)
