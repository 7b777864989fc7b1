"""Train the network, on MNIST by default: ``python main.py``. ``--help`` lists the flags."""

import copy
import math
import os
import shlex
import sys
import time

if getattr(sys.flags, "safe_path", False):  # it stops imports from this folder
    sys.exit("main.py: error: unset PYTHONSAFEPATH, and leave out -P")

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from checkpoint import EpochMetrics, Run, open_run, resume_settings, save_run
from config import Config, Options, parse_args
from model import Net, count_parameters
from optimizer import make_optimizer
from runtime.cpu import speed_up
from runtime.device import select_device
from runtime.errors import DivergedError, run_command
from test import test
from train import train
from utils import DeviceLoader, get_loaders, stream_seed


def print_summary(model: Net) -> None:
    """Print the parameter counts and torchsummary's table, without changing model or random generators."""
    print(f"Total parameters: {count_parameters(model):,}")
    print(f"Trainable parameters: {count_parameters(model, trainable=True):,}")
    try:
        from torchsummary import summary
    except ImportError:
        print("No summary table: torchsummary is not installed (pip install torchsummary)")
        return
    with torch.random.fork_rng(devices=[]):
        summary(copy.deepcopy(model), (1, 28, 28), device="cpu")


def run_epoch(
    config: Config,
    epoch: int,
    train_loader: DeviceLoader,
    eval_loader: DeviceLoader,
    model: torch.nn.Module,
    optimizer: Optimizer,
    scheduler: LRScheduler,
    ema: torch.nn.Module | None,
) -> EpochMetrics:
    """Train for one epoch. Then evaluate ``ema``, the running average, or ``model`` if there is none."""
    device, start = next(model.parameters()).device, time.perf_counter()
    lr = float(scheduler.get_last_lr()[0])
    torch.manual_seed(stream_seed(config.seed, "dropout", epoch))
    train_loss, train_accuracy = train(
        model,
        device,
        train_loader,
        optimizer=optimizer,
        epoch=epoch,
        scheduler=scheduler if config.schedule_interval == "batch" else None,
        label_smoothing=config.label_smoothing,
        ema=ema,
        ema_decay=config.model_ema_decay,
    )
    if config.schedule_interval == "epoch":  # as in the notebook: its steps at once
        for _ in range(len(train_loader)):
            scheduler.step()
    split, name = ("holdout", "Held-out images") if config.holdout else ("test", "Test set")
    loss, accuracy = test(ema or model, device, eval_loader, name=name)
    if not math.isfinite(loss):
        raise DivergedError(f"the loss in evaluation became {loss} after epoch {epoch}: try a lower --lr")
    seconds = round(time.perf_counter() - start, 2)
    return EpochMetrics(epoch, lr, train_loss, train_accuracy, split, loss, accuracy, seconds)


def train_run(config: Config, options: Options) -> Run:
    """Train a new run, or the rest of a resumed one, and save it after each epoch."""
    if options.resume:
        config, options = resume_settings(config, options)
    if config.use_deterministic_algorithms:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS requires it
        torch.use_deterministic_algorithms(True)
    device = select_device(options.device)
    print(f"Device: {device}")
    train_loader, eval_loader = get_loaders(config, device, options.data_path)
    dataset = train_loader.dataset

    torch.manual_seed(stream_seed(config.seed, "weights"))
    model = Net(config.dropout, len(dataset.classes))
    print_summary(model)
    model.to(device)
    if device.type == "cpu":
        speed_up(model)  # in place
    optimizer, scheduler = make_optimizer(model, config, config.epochs * len(train_loader))
    ema = copy.deepcopy(model) if config.model_ema_decay else None

    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler} | ({"ema": ema} if ema else {})
    if options.tensorboard:
        from report.tensorboard import add_epoch, open_curves

    with open_run(config, options, dataset, device, parts) as run:
        curves = open_curves(run) if options.tensorboard else None
        while not run.finished:
            epoch = run.epoch + 1
            print(f"\nEpoch {epoch}/{config.epochs}", flush=True)
            row = run_epoch(config, epoch, train_loader, eval_loader, model, optimizer, scheduler, ema)
            if run.best is None or row.eval_accuracy > run.best.eval_accuracy:
                print(f"New best accuracy: {row.eval_accuracy:.2f}%")
                run.best_weights = copy.deepcopy((ema or model).state_dict())
            run.metrics.append(row)
            save_run(run, parts)
            if curves:
                add_epoch(curves, row)
            if run.reached:
                print(f"Target accuracy of {config.target_accuracy:g}% reached at epoch {epoch}!")
    return run


def main() -> None:
    """Carry out the command line: train a new run, resume one, or only evaluate."""
    config, options = parse_args()
    if options.test_only:
        from trained import evaluate  # training doesn't need it

        evaluate(options)
        return
    run = train_run(config, options)
    if not run.config.target_accuracy:
        print(f"Accuracy at the end of the schedule: {run.metrics[-1].eval_accuracy:.2f}%")
    elif not run.reached:
        print(f"Target accuracy of {run.config.target_accuracy:g}% not reached by epoch {run.epoch}.")
    print(f"\nFinal best accuracy: {max(row.eval_accuracy for row in run.metrics):.2f}%")
    print(f"Total parameters: {count_parameters(Net(num_classes=len(run.dataset.classes))):,}")
    if options.dry_run:
        print("This was a dry run: no results are kept", flush=True)
        return
    folder = shlex.quote(str(run.folder))
    print(f"\nThe results are in {folder}. To look at them, and to use the network:")
    for command in (f"report {folder}", f"predict --weights {folder} IMAGE", f"export --weights {folder}"):
        print(f"    python -m {command}", flush=True)


if __name__ == "__main__":
    run_command(main)
