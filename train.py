"""Train for one epoch. Make the optimizer and the learning-rate schedule."""

import math
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR
from tqdm import tqdm

from config import Config
from model import Net
from muon import Muon
from runtime.errors import DivergedError
from utils import Loader

LOWER_RATES = "try a lower --max-lr, and with --opt muon a lower --muon-lr"  # where the loss is not finite
BAR_INTERVAL = 25  # batches between updates of the progress bar's text; each update waits for the device


@dataclass(frozen=True)
class TrainingState:
    """The objects that an epoch needs and last.pt saves.

    ``frozen`` means that they stay the same objects. Training updates all but the teacher in place.
    """

    model: Net
    optimizer: Optimizer
    scheduler: LRScheduler
    ema: Net | None  # running average of the network
    teacher: Net | None = None

    @property
    def eval_model(self) -> Net:
        """The network that is evaluated and saved: the running average, if there is one."""
        return self.model if self.ema is None else self.ema


def make_optimizer(model: nn.Module, config: Config, total_steps: int) -> tuple[Optimizer, OneCycleLR]:
    """Make the optimizer and its schedule over ``total_steps`` steps.

    The first step has the learning rate ``config.lr``. With Muon, the learning rate of the convolutions'
    weights follows the same curve, scaled to the peak ``config.muon_lr``.
    """
    # If config.momentum is None, the schedule cycles the momentum, and starts at its maximum.
    momentum = config.max_momentum if config.momentum is None else config.momentum
    make = partial(Muon, muon_lr=config.muon_lr) if config.opt == "muon" else SGD
    optimizer = make(
        model.parameters(),
        lr=config.lr,
        momentum=momentum,
        weight_decay=config.weight_decay,
        fused=next(model.parameters()).device.type in ("cpu", "cuda"),
    )
    num_groups = len(optimizer.param_groups)  # SGD has one; Muon has another for the weights of convolutions
    steps = max(total_steps, 2)
    scheduler = OneCycleLR(
        optimizer,
        max_lr=[config.max_lr, config.muon_lr][:num_groups],
        total_steps=steps,
        # With a warm-up of fewer than two steps, OneCycleLR would skip the peak, start after it, or divide
        # by zero.
        pct_start=max(float(config.pct_start), 2 / steps),
        div_factor=config.max_lr / config.lr,
        final_div_factor=config.final_div_factor,
        cycle_momentum=config.momentum is None,
        # The schedule sets the momentum of each group. It is 0 in the second, whose gradients Muon replaces:
        # they already have a momentum, which is constant.
        base_momentum=[config.base_momentum, 0.0][:num_groups],
        max_momentum=[config.max_momentum, 0.0][:num_groups],
    )
    return optimizer, scheduler


def advance(scheduler: LRScheduler, steps: int = 1) -> None:
    """Move the schedule by ``steps``, but not past its end: after a run's last batch, it stays there."""
    last_step = getattr(scheduler, "total_steps", math.inf) - 1  # counted from 0, like last_epoch
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
    label_smoothing: float = 0.0,
    ema: nn.Module | None = None,
    ema_decay: float = 0.0,
    teacher: nn.Module | None = None,
) -> tuple[float, float]:
    """Train ``model`` for one epoch, with a progress bar on stderr.

    - ``train_loader`` yields images, float32 (N, 1, H, W), and targets, int64 (N,).
    - The model maps images to log-probabilities, or to logits, (N, classes).
    - ``scheduler`` moves after each batch.
    - ``label_smoothing`` is in [0, 1] (Szegedy et al., CVPR 2016).
    - ``ema``, at first a copy of the model, becomes the running average of its weights. ``ema_decay`` is in
      [0, 1).
    - ``teacher``, a network in evaluation mode, replaces the targets by its probabilities for the same
      distorted images (Hinton, Vinyals and Dean, 2015; Beyer et al., CVPR 2022).

    Returns the mean loss for the labels, without smoothing, and the accuracy in percent. Both are measured
    on the distorted images, for each batch before its optimizer step. A loss that is not finite raises
    ``DivergedError``.
    """
    model.train()
    steps = len(train_loader)
    loss_sum, correct = torch.zeros(2, device=device)
    if ema is not None:  # state_dict() returns references, so in-place operations update the network
        states = ema.state_dict().values(), model.state_dict().values()
        # Parameters and batch norm's statistics. Its counters, which are integers, are copied at the end.
        averages, current = ([tensor for tensor in state if tensor.is_floating_point()] for state in states)
    processed = 0
    with tqdm(total=steps) as bar:
        for batch_id, (data, target) in enumerate(train_loader):
            data, target = data.to(device), target.to(device)
            optimizer.zero_grad(set_to_none=True)
            output = model(data)
            with torch.no_grad():
                learned = target if teacher is None else teacher(data).softmax(dim=1)
            # cross_entropy applies log-softmax, which doesn't change log-probabilities. So output can be
            # either these or logits.
            loss = F.cross_entropy(output, learned, label_smoothing=label_smoothing)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if scheduler is not None:
                advance(scheduler)
            if ema is not None:
                step = (epoch - 1) * steps + batch_id
                # A smaller decay at the start: the formula of TensorFlow's ExponentialMovingAverage.
                decay = min(ema_decay, (1 + step) / (10 + step))
                torch._foreach_lerp_(averages, current, 1 - decay)
            loss_sum += F.cross_entropy(output.detach(), target, reduction="sum")
            correct += (output.argmax(dim=1) == target).sum()
            processed += len(target)
            if batch_id % BAR_INTERVAL == 0 or batch_id == steps - 1:
                # The bar shows the loss of this batch, and the accuracy of the epoch so far.
                batch_loss, epoch_loss, hits = torch.stack([loss.detach(), loss_sum, correct]).tolist()
                accuracy = 100.0 * hits / processed
                text = f"Epoch={epoch} Loss={batch_loss:.4f} Batch_id={batch_id} Accuracy={accuracy:.2f}%"
                bar.set_description(text, refresh=False)
                if not math.isfinite(epoch_loss):
                    problem = f"the loss became {epoch_loss} in epoch {epoch}, by batch {batch_id}"
                    raise DivergedError(f"{problem}: {LOWER_RATES}")
            bar.update()
    if processed == 0:
        raise ValueError("train_loader has no batches")
    if ema is not None:
        for average, value in zip(*states, strict=True):
            if not value.is_floating_point():  # batch norm's counters
                average.copy_(value)
    return loss_sum.item() / processed, 100.0 * correct.item() / processed
