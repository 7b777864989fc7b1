"""Train for one epoch, and make what moves meanwhile: optimizer and schedule."""

import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR
from tqdm import tqdm

from config import Config
from runtime.errors import DivergedError
from utils import Loader

BAR_INTERVAL = 25  # batches from one update of the bar's text to the next; each waits for the device


def make_optimizer(model: nn.Module, config: Config, total_steps: int) -> tuple[SGD, OneCycleLR]:
    """Make SGD and its schedule over ``total_steps`` steps, of which the first has the rate ``config.lr``."""
    optimizer = SGD(
        model.parameters(),
        lr=config.lr,
        momentum=config.max_momentum if config.momentum is None else config.momentum,
        weight_decay=config.weight_decay,
        fused=next(model.parameters()).device.type in ("cpu", "cuda"),
    )
    steps = max(total_steps, 2)
    scheduler = OneCycleLR(
        optimizer,
        max_lr=config.max_lr,
        total_steps=steps,
        # With a warm-up of less than two steps, OneCycleLR would start after the peak, or divide by zero.
        pct_start=max(float(config.pct_start), 2 / steps),
        div_factor=config.max_lr / config.lr,
        final_div_factor=config.final_div_factor,
        cycle_momentum=config.momentum is None,
        base_momentum=config.base_momentum,
        max_momentum=config.max_momentum,
    )
    return optimizer, scheduler


def advance(scheduler: LRScheduler, steps: int = 1) -> None:
    """Move the schedule on by ``steps``, but not past its last step, if it has one: the last batch needs that."""
    last_step = getattr(scheduler, "total_steps", math.inf) - 1
    for _ in range(steps):
        if scheduler.last_epoch < last_step:
            scheduler.step()


def train(
    model: nn.Module,
    device: torch.device | str,
    train_loader: Loader,
    *,
    optimizer: Optimizer,
    epoch: int,
    scheduler: LRScheduler | None = None,
    limit_batches: int | None = None,
    label_smoothing: float = 0.0,
    ema: nn.Module | None = None,
    ema_decay: float = 0.0,
) -> tuple[float, float]:
    """Train ``model`` for one epoch, with a progress bar on stderr.

    - ``train_loader`` yields images, float32 (N, 1, 28, 28), and targets, int64 (N,). The model maps images to
      log-probabilities, or to logits, (N, classes).
    - ``scheduler`` moves after each batch.
    - ``limit_batches`` ends the epoch after so many batches.
    - ``label_smoothing`` is in [0, 1] (Szegedy et al., CVPR 2016).
    - ``ema``, a copy of the model, becomes the running average of its weights; ``ema_decay`` is in [0, 1).

    Returns loss, without label smoothing, and accuracy in percent. Both are means over the images as trained on:
    distorted, and each before its step. A loss that is not finite raises ``DivergedError``.
    """
    model.train()
    steps = min(len(train_loader), limit_batches or len(train_loader))
    loss_sum, correct = torch.zeros(2, device=device)
    if ema is not None:  # state_dict() returns references, so in-place operations update the network
        states = ema.state_dict().values(), model.state_dict().values()
        averages, weights = ([value for value in state if value.is_floating_point()] for state in states)
    processed = 0
    with tqdm(total=steps) as bar:
        for batch_id, (data, target) in zip(range(steps), train_loader, strict=False):
            data, target = data.to(device), target.to(device)
            optimizer.zero_grad(set_to_none=True)
            output = model(data)
            # Right for logits and for log-probabilities, which a second log-softmax leaves as they are.
            loss = F.cross_entropy(output, target, label_smoothing=label_smoothing)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if scheduler is not None:
                advance(scheduler)
            if ema is not None:
                step = (epoch - 1) * steps + batch_id
                decay = min(ema_decay, (1 + step) / (10 + step))  # warm-up, as in TensorFlow
                torch._foreach_lerp_(averages, weights, 1 - decay)
            loss_sum += F.cross_entropy(output.detach(), target, reduction="sum")
            correct += (output.argmax(dim=1) == target).sum()
            processed += len(target)
            if batch_id % BAR_INTERVAL == 0 or batch_id == steps - 1:
                last_loss, total_loss, right = torch.stack([loss.detach(), loss_sum, correct]).tolist()
                accuracy = 100.0 * right / processed
                text = f"Epoch={epoch} Loss={last_loss:.4f} Batch_id={batch_id} Accuracy={accuracy:.2f}%"
                bar.set_description(text, refresh=False)
                if not math.isfinite(total_loss):
                    problem = f"the loss became {total_loss} in epoch {epoch}, by batch {batch_id}"
                    raise DivergedError(f"{problem}: try a lower --max-lr")
            bar.update()
    if processed == 0:
        raise ValueError("train_loader has no batches")
    if ema is not None:
        for average, value in zip(*states, strict=True):
            if not value.is_floating_point():  # batch norm's counters
                average.copy_(value)
    return loss_sum.item() / processed, 100.0 * correct.item() / processed
