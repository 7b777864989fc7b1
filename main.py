"""Train the network on MNIST: ``python main.py``. ``--help`` lists the flags."""

from arguments import parse_args

if __name__ == "__main__":
    args = parse_args()  # before torch is imported, which takes seconds: --help and mistakes answer at once

import argparse
import copy
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from checkpoint import Row, RunError, make_run_dir, save_checkpoint, versions, write_metrics
from cpu import speed_up
from model import Net
from test import test
from train import DivergedError, train
from utils import DataError, get_loaders


def select_device(name: str) -> torch.device:
    """Return the device called ``name``; 'auto' is the first there is of cuda, mps and cpu.

    Raises ``ValueError`` when this machine doesn't have it.
    """
    there = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    there = ["cuda", *there] if there else []
    there += ["mps"] if torch.backends.mps.is_available() else []
    there += ["cpu"]
    if name == "auto":
        return torch.device(there[0])
    if name not in there:
        raise ValueError(f"{name} is not on this machine, which has {', '.join(there)}")
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


def make_optimizer(model: nn.Module, args: argparse.Namespace, steps: int) -> tuple[SGD, OneCycleLR]:
    """Make SGD and its schedule over ``args.epochs`` epochs of ``steps`` steps each."""
    optimizer = SGD(
        model.parameters(),
        lr=args.lr,
        momentum=args.momentum,
        weight_decay=args.weight_decay,
        nesterov=args.nesterov,
        fused=next(model.parameters()).device.type in ("cpu", "cuda"),
    )
    total_steps = args.epochs * steps
    scheduler = OneCycleLR(
        optimizer,
        max_lr=args.max_lr,
        total_steps=total_steps,
        # A warm-up of exactly one step would make OneCycleLR divide by zero.
        pct_start=0.0 if args.pct_start * total_steps == 1 else args.pct_start,
        div_factor=args.div_factor,
        final_div_factor=args.final_div_factor,
        base_momentum=args.base_momentum,
        max_momentum=args.max_momentum,
    )
    return optimizer, scheduler


def make_ema(model: nn.Module, decay: float) -> AveragedModel | None:
    """Make the running average of ``model``'s weights and statistics; none where ``decay`` is 0."""
    if decay == 0:
        return None
    average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    return AveragedModel(model, multi_avg_fn=average, use_buffers=True)


def run(args: argparse.Namespace, device: torch.device, output_dir: Path) -> None:
    """Train and evaluate as ``args`` says, tell the story on stdout, leave the results in ``output_dir``."""
    train_loader, test_loader = get_loaders(
        args.data_path,
        device,
        args.batch_size,
        args.rotation,
        args.interpolation,
        args.translation,
        args.seed,
        args.holdout,
    )
    part, name = ("holdout", "Held-out set") if args.holdout else ("test", "Test set")
    torch.manual_seed(args.seed)
    model = Net(args.dropout)
    print(f"Device: {device}")
    print_summary(model)
    model.to(device)
    if device.type == "cpu":
        speed_up(model)
    steps = min(len(train_loader), args.limit_train_batches or len(train_loader))
    optimizer, scheduler = make_optimizer(model, args, steps)
    each_batch = scheduler if args.schedule_interval == "batch" else None
    ema = make_ema(model, args.model_ema_decay)
    evaluated = model if ema is None else ema.module

    best, rows = 0.0, list[Row]()
    for epoch in range(1, args.epochs + 1):
        print(f"\nEpoch {epoch}/{args.epochs}", flush=True)
        start, lr = time.perf_counter(), float(scheduler.get_last_lr()[0])
        train_loss, train_accuracy = train(
            model, device, train_loader, optimizer, epoch, each_batch, steps, args.label_smoothing, ema
        )
        test_loss, correct = test(evaluated, device, test_loader, name)
        accuracy = 100.0 * correct / len(test_loader.labels)
        rows.append(
            {
                "epoch": epoch,
                "lr": lr,
                "train_loss": train_loss,
                "train_accuracy": train_accuracy,
                f"{part}_loss": test_loss,
                f"{part}_accuracy": accuracy,
                "seconds": round(time.perf_counter() - start, 2),
            }
        )
        if accuracy > best:
            best = accuracy
            print(f"New best accuracy: {best:.2f}%")
            weights = {
                "model": evaluated.state_dict(),
                "epoch": epoch,
                f"{part}_accuracy": accuracy,
                "settings": vars(args),
                "versions": versions(),
            }
            save_checkpoint(output_dir / "best.pt", weights)
        write_metrics(output_dir / "metrics.csv", rows)
        if accuracy >= args.target_accuracy:
            print(f"Target accuracy of {args.target_accuracy:g}% reached at epoch {epoch}!")
            break
        if args.schedule_interval == "epoch" and epoch < args.epochs:
            for _ in range(steps):
                scheduler.step()
    else:
        print(f"Target accuracy of {args.target_accuracy:g}% not reached in {args.epochs} epochs.")

    print(f"\nFinal best accuracy: {best:.2f}%")
    print(f"Total parameters: {count_parameters(model):,}")


def main(args: argparse.Namespace) -> int:
    """Carry out the command line ``args``; return the exit status, after one line on stderr if not 0."""
    try:
        device = select_device(args.device)
    except ValueError as error:
        print(f"main.py: error: argument --device: {error}", file=sys.stderr)
        return 2
    try:
        if args.dry_run and args.output_dir is None:
            with TemporaryDirectory() as folder:
                run(args, device, Path(folder))
        else:
            run(args, device, make_run_dir(args.output_dir, f"{args.recipe}-seed{args.seed}"))
    except (DataError, RunError, DivergedError, OSError) as error:
        print(f"main.py: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(args))
