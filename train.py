"""One epoch of training, and what moves in it: optimiser, schedule, running average."""

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR
from torch.optim.swa_utils import PARAM_LIST, AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from utils import Loader

BAR_INTERVAL = 25  # batches between two looks at the device, each of which waits for it


class DivergedError(Exception):
    """The loss became NaN or infinite; the message says where."""


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
    """Make the running average of ``model``'s weights and statistics; none where ``decay`` is 0.

    Up to step n it keeps (1 + n) / (10 + n) of itself, if that is less than ``decay``: so it forgets the
    untrained weights within an epoch (the warm-up of TensorFlow's ``ExponentialMovingAverage``).
    """
    if decay == 0:
        return None
    ema = AveragedModel(model, use_buffers=True)

    def average(averaged: PARAM_LIST, current: PARAM_LIST, count: Tensor | int) -> None:
        n = int(ema.n_averaged)  # the same as count, which is on the device and would have to be waited for
        keep = min(decay, (1 + n) / (10 + n))
        get_ema_multi_avg_fn(keep)(averaged, current, count)  # type: ignore[no-untyped-call]

    ema.multi_avg_fn = average
    return ema


def train(
    model: nn.Module,
    device: torch.device,
    train_loader: Loader,
    optimizer: Optimizer,
    epoch: int,
    scheduler: LRScheduler | None = None,
    limit_batches: int | None = None,
    label_smoothing: float = 0.0,
    ema: AveragedModel | None = None,
) -> tuple[float, float]:
    """Train ``model`` for one pass over ``train_loader``, behind a progress bar on stderr.

    The loader yields images (N, 1, 28, 28), float32, with targets (N,), int64; the model returns
    log-probabilities (N, 10). ``scheduler`` moves, and ``ema`` takes the new weights in,
    after each batch where they are given; ``limit_batches`` ends the epoch early, and
    ``label_smoothing`` is the share of each target spread over all digits (Szegedy et al., 2016).
    Returns the mean loss and the accuracy in percent, both
    over the images as they were seen, with dropout and before each step. Raises ``DivergedError``
    when a loss is NaN or infinite.
    """
    model.train()
    steps = min(len(train_loader), limit_batches or len(train_loader))
    losses = torch.zeros(steps, device=device)
    loss_sum = torch.zeros((), device=device)
    correct = torch.zeros((), dtype=torch.int64, device=device)
    processed, rates = 0, []
    with tqdm(total=steps) as bar:
        for batch_id, (data, target) in zip(range(steps), train_loader, strict=False):
            data, target = data.to(device), target.to(device)
            rates.append(float(optimizer.param_groups[0]["lr"]))
            optimizer.zero_grad(set_to_none=True)
            log_probs = model(data)
            loss = F.nll_loss(log_probs, target)
            if label_smoothing > 0:
                loss = torch.lerp(loss, -log_probs.mean(), label_smoothing)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            if ema is not None:
                ema.update_parameters(model)

            losses[batch_id] = loss.detach()
            loss_sum += loss.detach() * len(target)
            correct += (log_probs.argmax(dim=1) == target).sum()
            processed += len(target)
            if batch_id % BAR_INTERVAL == 0 or batch_id == steps - 1:
                bad = (~losses.isfinite()).nonzero()
                if len(bad):
                    first = int(bad[0])
                    raise DivergedError(
                        f"the loss became {losses[first].item()} in epoch {epoch}, batch {first}, "
                        f"at learning rate {rates[first]:.4g}: try a lower --max-lr"
                    )
                bar.set_description(
                    f"Epoch={epoch} Loss={loss.item():.4f} Batch_id={batch_id} "
                    f"Accuracy={100.0 * correct.item() / processed:.2f}%",
                    refresh=False,
                )
            bar.update()
    return loss_sum.item() / processed, 100.0 * correct.item() / processed
