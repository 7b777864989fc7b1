"""Train the network, on MNIST by default: ``python main.py``. ``--help`` lists the flags."""

from config import Config, Options, choose_data_path, parse_args
from runtime.errors import DivergedError, UsageError, run_command

if __name__ == "__main__":
    # run_command parses the arguments before the slow imports below. Then it imports this file as a module,
    # calls main(), and exits.
    run_command("main.py", parse_args, module="main")

import contextlib
import copy
import math
import os
import shlex
import time

import torch

from checkpoint import Run, open_run, restore, save_run
from model import Net
from runtime.cpu import speed_up
from runtime.device import select_device
from test import test
from train import LOWER_RATES, TrainingState, advance, make_optimizer, train
from trained import EpochMetrics, load_trained
from utils import Loaders, get_test_loader, stream_seed


def print_summary(model: Net) -> None:
    """Print the parameter counts and torchsummary's table, without changing model or random generators."""
    print(f"Total parameters: {sum(p.numel() for p in model.parameters()):,}")
    print(f"Trainable parameters: {sum(p.numel() for p in model.parameters() if p.requires_grad):,}")
    try:
        from torchsummary import summary
    except ImportError:
        print("No summary table: torchsummary is not installed (pip install torchsummary)")
        return
    with torch.random.fork_rng(devices=[]):
        summary(copy.deepcopy(model), (1, 28, 28), device="cpu")


def make_state(
    config: Config, device: torch.device, *, steps_per_epoch: int, classes: int, teacher: Net | None = None
) -> TrainingState:
    """Make the network, print its summary, and make its optimizer and its schedule."""
    torch.manual_seed(stream_seed(config.seed, "weights"))
    model = Net(config.dropout, classes, config.width)
    print_summary(model)
    for network in (model,) if teacher is None else (model, teacher):
        network.to(device)
        if device.type == "cpu":
            speed_up(network)
    optimizer, scheduler = make_optimizer(model, config, config.epochs * steps_per_epoch)
    ema = copy.deepcopy(model) if config.model_ema_decay > 0 else None
    return TrainingState(model, optimizer, scheduler, ema, teacher)


def run_epoch(config: Config, loaders: Loaders, state: TrainingState, epoch: int) -> EpochMetrics:
    """Train for one epoch and evaluate."""
    train_loader, eval_loader = loaders
    device, start = train_loader.images.device, time.perf_counter()
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
        label_smoothing=config.label_smoothing,
        ema=state.ema,
        ema_decay=config.model_ema_decay,
        teacher=state.teacher,
    )
    split, name = ("holdout", "Held-out set") if config.holdout else ("test", "Test set")
    loss, accuracy = test(state.eval_model, device, eval_loader, name=name)
    if not math.isfinite(loss):
        problem = f"the loss in evaluation became {loss} after epoch {epoch}"
        raise DivergedError(f"{problem}: {LOWER_RATES}")
    if config.schedule_interval == "epoch":  # the schedule counts batches: move it by a whole epoch of them
        advance(state.scheduler, len(train_loader))
    seconds = round(time.perf_counter() - start, 2)
    return EpochMetrics(epoch, lr, train_loss, train_accuracy, split, loss, accuracy, seconds)


def train_run(run: Run, tensorboard: bool) -> None:
    """Train, evaluate and save each epoch. A resumed run begins with the epoch after the last saved one."""
    progress, (train_loader, _) = run.progress, run.loaders  # progress and state (below) are saved
    config, device = progress.config, torch.device(progress.device)
    if config.use_deterministic_algorithms:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS requires it
        torch.use_deterministic_algorithms(True)
    print(f"Device: {device}")
    classes = len(progress.dataset.classes)
    state = make_state(
        config, device, steps_per_epoch=len(train_loader), classes=classes, teacher=run.teacher
    )
    if progress.epoch > 0:
        restore(run, vars(state))
        print(f"\nContinuing after epoch {progress.epoch}; best accuracy: {progress.best_accuracy:.2f}%")
    if tensorboard:
        from report.tensorboard import add_epoch, open_curves

    reached = False
    with open_curves(run.folder, progress.metrics) if tensorboard else contextlib.nullcontext() as curves:
        for epoch in range(progress.epoch + 1, config.epochs + 1):
            print(f"\nEpoch {epoch}/{config.epochs}", flush=True)
            metrics = run_epoch(config, run.loaders, state, epoch)
            if metrics.eval_accuracy > progress.best_accuracy:
                print(f"New best accuracy: {metrics.eval_accuracy:.2f}%")
                progress.best_model = copy.deepcopy(state.eval_model.state_dict())
            progress.metrics.append(metrics)  # progress.epoch and best_accuracy follow from this list
            reached = config.early_stopping and metrics.eval_accuracy >= config.target_accuracy
            progress.finished = reached or epoch == config.epochs
            save_run(run, state)
            if curves is not None:
                add_epoch(curves, metrics)
            if reached:
                print(f"Target accuracy of {config.target_accuracy:g}% reached at epoch {epoch}!")
                break
    if not config.early_stopping:
        print(f"Accuracy at the end of the schedule: {progress.metrics[-1].eval_accuracy:.2f}%")
    elif not reached:
        print(f"Target accuracy of {config.target_accuracy:g}% not reached by epoch {config.epochs}.")
    print(f"\nFinal best accuracy: {progress.best_accuracy:.2f}%")
    print(f"Total parameters: {sum(p.numel() for p in state.model.parameters()):,}", flush=True)


def evaluate(config: Config, options: Options) -> None:
    """Evaluate trained weights on the test set of their data set."""
    trained, device = load_trained(options.weights), select_device(options.device)
    print(f"Weights: {trained}")
    # given has the flags that the user wrote.
    if "dataset" in options.given and config.dataset != trained.dataset.name:
        raise UsageError(f"argument --dataset: the weights were trained on {trained.dataset.name}")
    data_path = choose_data_path(options.given_data_path, trained.dataset.name, trained.data_path)
    test_loader = get_test_loader(trained.dataset, data_path, device, trained.test_hash)
    test(trained.model.to(device), device, test_loader)


def main(config: Config, options: Options) -> None:
    """Carry out the command line: train a new run, resume one, or only evaluate."""
    if options.test_only:
        return evaluate(config, options)
    with open_run(config, options) as run:
        if run.progress.finished:
            if options.tensorboard:
                from report.tensorboard import open_curves

                open_curves(run.folder, run.progress.metrics).close()
            best = f"best accuracy {run.progress.best_accuracy:.2f}%"
            return print(f"{run.folder} is finished: {best}", flush=True)
        try:
            train_run(run, options.tensorboard)
            if options.dry_run:
                print("This was a dry run: no results are kept")
        except KeyboardInterrupt as stop:
            if options.dry_run:
                raise
            saved = f"saved up to epoch {run.saved_epoch}" if run.saved_epoch else "no epoch was complete"
            command = f"python main.py --resume {shlex.quote(str(run.folder))}"
            # Keep the class: run_command turns SIGTERM into a subclass of KeyboardInterrupt.
            raise type(stop)(f"{saved}; to continue: {command}") from None
