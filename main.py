"""Train the network, on MNIST unless told otherwise: ``python main.py``. ``--help`` lists the flags."""

from config import Config, Options, parse_args, select_device
from errors import UsageError, UserError, end_in_one_line

if __name__ == "__main__":
    end_in_one_line("main.py")
    config, options = parse_args()  # before torch is imported, which takes seconds: mistakes answer at once

import copy
import math
import os
import time
from dataclasses import replace
from pathlib import Path

import torch

import checkpoint
from checkpoint import EpochMetrics, Progress, TrainingState
from model import Net
from test import test
from train import advance, make_optimizer, to_device, train
from trained import load_trained
from utils import Loaders, get_loaders, get_test_loader, stream_seed


def print_summary(model: Net) -> None:
    """Print the parameter counts and torchsummary's table, leaving model and generators as they were."""
    print(f"Total parameters: {sum(p.numel() for p in model.parameters()):,}")
    print(f"Trainable parameters: {sum(p.numel() for p in model.parameters() if p.requires_grad):,}")
    try:
        from torchsummary import summary
    except ImportError:
        print("No summary table: torchsummary is not installed (pip install torchsummary)")
        return
    with torch.random.fork_rng(devices=[]):
        summary(copy.deepcopy(model), (1, 28, 28), device="cpu")


def make_state(config: Config, device: torch.device, batches: int, num_classes: int) -> TrainingState:
    """Make the network, printing its summary, and what trains it over so many batches an epoch."""
    torch.manual_seed(stream_seed(config.seed, "weights"))
    model = Net(config.dropout, num_classes)
    print_summary(model)
    to_device(model, device)
    total_steps = config.epochs * min(batches, config.limit_train_batches or batches)
    optimizer, scheduler = make_optimizer(model, config, total_steps)
    ema = copy.deepcopy(model) if config.model_ema_decay > 0 else None
    return TrainingState(model, optimizer, scheduler, ema)


def run_epoch(config: Config, loaders: Loaders, state: TrainingState, epoch: int) -> EpochMetrics:
    """Train and evaluate once, and move the schedule on. Raises ``UserError`` at a loss that is no number."""
    train_loader, eval_loader = loaders
    device, begin = train_loader.images.device, time.perf_counter()
    lr = float(state.scheduler.get_last_lr()[0])
    torch.manual_seed(stream_seed(config.seed, "dropout", epoch))
    train_loader.epoch = epoch
    train_loss, train_accuracy = train(
        state.model,
        device,
        train_loader,
        optimizer=state.optimizer,
        epoch=epoch,
        scheduler=state.scheduler if config.schedule_interval == "batch" else None,
        limit_batches=config.limit_train_batches,
        label_smoothing=config.label_smoothing,
        ema=state.ema,
        ema_decay=config.model_ema_decay,
    )
    split, name = ("holdout", "Held-out set") if config.holdout else ("test", "Test set")
    loss, accuracy = test(state.tested, device, eval_loader, name=name)
    if not math.isfinite(loss):
        raise UserError(f"the loss in evaluation became {loss} after epoch {epoch}: try a lower --max-lr")
    if config.schedule_interval == "epoch":
        advance(state.scheduler, state.scheduler.total_steps // config.epochs)
    seconds = round(time.perf_counter() - begin, 2)
    return EpochMetrics(epoch, lr, train_loss, train_accuracy, split, loss, accuracy, seconds)


def run(folder: Path, progress: Progress, loaders: Loaders, tensorboard: bool = False) -> None:
    """Train and evaluate from where ``progress`` stands, printing it all; leave the results in ``folder``."""
    config, device = progress.config, select_device(progress.device)
    if config.use_deterministic_algorithms:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # which cuBLAS asks for
        torch.use_deterministic_algorithms(True)
    print(f"Device: {device}")
    state = make_state(config, device, len(loaders[0]), len(progress.dataset.classes))
    if progress.epoch > 0:
        checkpoint.restore(folder, progress, state)
        print(f"\nGoing on after epoch {progress.epoch}; best accuracy so far: {progress.best_accuracy:.2f}%")
    writer = checkpoint.tensorboard_writer(folder, progress.metrics) if tensorboard else None

    reached = False
    for epoch in range(progress.epoch + 1, config.epochs + 1):
        print(f"\nEpoch {epoch}/{config.epochs}", flush=True)
        row = run_epoch(config, loaders, state, epoch)
        if row.eval_accuracy > progress.best_accuracy:
            print(f"New best accuracy: {row.eval_accuracy:.2f}%")
            checkpoint.save_best(folder, progress, state.tested, row)
        progress.metrics.append(row)
        reached = config.early_stopping and row.eval_accuracy >= config.target_accuracy
        progress.finished = reached or epoch == config.epochs
        # After best.pt: a run that is killed in between makes the same best.pt again.
        checkpoint.save_progress(folder, progress, state)
        if writer is not None:
            row.add_to(writer)
        if reached:
            print(f"Target accuracy of {config.target_accuracy:g}% reached at epoch {epoch}!")
            break
    if config.early_stopping and not reached:
        print(f"Target accuracy of {config.target_accuracy:g}% not reached by epoch {config.epochs}.")
    elif not reached:
        print(f"Accuracy at the end of the schedule: {progress.metrics[-1].eval_accuracy:.2f}%")
    print(f"\nFinal best accuracy: {progress.best_accuracy:.2f}%")
    print(f"Total parameters: {sum(p.numel() for p in state.model.parameters()):,}", flush=True)


def main(config: Config, options: Options) -> None:
    """Carry out the command line. Raises ``UserError``, ``OSError`` and ``KeyboardInterrupt``."""
    data_path, device = options.data_path, select_device(options.device)
    if options.test_only:
        trained = load_trained(options.weights)
        print(f"Weights: {trained}")
        if "dataset" in options.given and config.dataset != trained.dataset.name:
            raise UsageError(f"argument --dataset: the weights are of {trained.dataset.name}; leave it out")
        test(to_device(trained.model, device), device, get_test_loader(trained.dataset, data_path, device))
        return
    # Not in parse_args: where a sweep's grid names the data sets, its command line doesn't.
    if "data_path" in options.given and config.dataset == "mnist" and not options.resume:
        raise UsageError("argument --data-path: MNIST came with the project; say by --dataset what is there")
    # A new run reads its data before it has a folder: if they can't be had, none is left behind. The settings
    # of a resumed one are known only once its folder is open.
    loaders = None if options.resume else get_loaders(config, device, data_path)
    dataset = loaders[0].dataset if loaders else None
    asked = options.given & {"early_stopping", "target_accuracy"}
    if dataset and dataset.target_accuracy is None and not asked:
        config = replace(config, early_stopping=False)
    with checkpoint.open_run(config, options, device, dataset) as (folder, progress):
        if progress.finished:
            print(f"{folder} is finished: best accuracy {progress.best_accuracy:.2f}%", flush=True)
            return
        loaders = loaders or get_loaders(progress.config, select_device(progress.device), data_path)
        if loaders[0].dataset != progress.dataset:
            raise UserError(f"--data-path {data_path}: not the data that {folder} was trained on")
        run(folder, progress, loaders, options.tensorboard)


if __name__ == "__main__":
    main(config, options)
