"""One epoch of training, and what moves in it: optimiser, schedule, running average."""

import ctypes
import sys
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import OneCycleLR
from tqdm import tqdm

from config import Config
from errors import UserError
from muon import MOMENTUM, Muon
from utils import Loader

BAR_INTERVAL = 25  # batches between two looks at the device, each of which waits for it


def make_optimizer(model: nn.Module, config: Config, total_steps: int) -> tuple[Optimizer, OneCycleLR]:
    """Make the optimizer and its schedule over ``total_steps`` steps.

    The first step is trained at ``config.lr``, however short the schedule is. Muon's rate has a schedule of
    the same shape, up to ``config.muon_lr``. Its momentum is constant.
    """
    momentum = config.max_momentum if config.momentum is None else config.momentum
    shared: Any = {"lr": config.lr, "momentum": momentum, "weight_decay": config.weight_decay}
    optimizer: Optimizer
    if config.opt == "muon":
        optimizer = Muon(model.parameters(), muon_lr=config.muon_lr, **shared)
    else:
        fused = next(model.parameters()).device.type in ("cpu", "cuda")
        optimizer = SGD(model.parameters(), fused=fused, **shared)
    groups = len(optimizer.param_groups)  # with Muon, a second one: the matrices
    scheduler = OneCycleLR(
        optimizer,
        max_lr=[config.max_lr, config.muon_lr][:groups],
        total_steps=max(total_steps, 2),
        # A warm-up of less than two steps would begin behind the peak, or divide by zero.
        pct_start=max(float(config.pct_start), 2 / max(total_steps, 2)),
        div_factor=config.max_lr / config.lr,
        final_div_factor=config.final_div_factor,
        cycle_momentum=config.momentum is None,
        base_momentum=[config.base_momentum, MOMENTUM][:groups],
        max_momentum=[config.max_momentum, MOMENTUM][:groups],
    )
    return optimizer, scheduler


def advance(scheduler: OneCycleLR, steps: int = 1) -> None:
    """Move the schedule on by ``steps``, but not beyond its last step, as the last batch is trained at it."""
    for _ in range(min(steps, scheduler.total_steps - 1 - scheduler.last_epoch)):
        scheduler.step()


def to_device(model: nn.Module, device: torch.device) -> nn.Module:
    """Move ``model`` to ``device``, in place, laid out as is fastest there, and return it.

    On a CPU, glibc is told to keep the memory that it frees. By default it hands each large activation back
    to the kernel and gets it again, zeroed, thousands of page faults a step (mallopt(3)).
    """
    if device.type == "cpu":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
        if mallopt is not None:
            mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD, the largest that glibc takes
            mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD
        model.to(memory_format=torch.channels_last)
    return model.to(device)


def train(
    model: nn.Module,
    device: torch.device,
    train_loader: Loader,
    *,
    optimizer: Optimizer,
    epoch: int,
    scheduler: OneCycleLR | None = None,
    limit_batches: int | None = None,
    label_smoothing: float = 0.0,
    ema: nn.Module | None = None,
    ema_decay: float = 0.0,
) -> tuple[float, float]:
    """Train ``model`` for an epoch behind a progress bar on stderr.

    The loader yields images (N, 1, 28, 28), float32, and targets (N,), int64; ``limit_batches`` ends early.
    A ``scheduler`` moves after each batch; ``label_smoothing`` is in [0, 1] (Szegedy et al., CVPR 2016);
    ``ema``, a copy of the network, follows it as a running average. Returns the images' mean loss, without
    smoothing, and accuracy in percent, as trained on. Raises ``UserError`` when a loss is NaN or infinite.
    """
    model.train()
    steps = min(len(train_loader), limit_batches or len(train_loader))
    loss_sum, correct = torch.zeros(2, device=device)
    if ema is not None:  # a state dict's tensors are the network's own, and what is done to them stays
        states = ema.state_dict().values(), model.state_dict().values()
        averaged, current = ([value for value in state if value.is_floating_point()] for state in states)
    processed = 0
    with tqdm(total=steps) as bar:
        for batch_id, (data, target) in zip(range(steps), train_loader, strict=False):
            data, target = data.to(device), target.to(device)
            optimizer.zero_grad(set_to_none=True)
            log_probs = model(data)
            # nll_loss can't smooth labels; cross_entropy's log-softmax leaves log-probabilities as they are.
            loss = F.cross_entropy(log_probs, target, label_smoothing=label_smoothing)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if scheduler is not None:
                advance(scheduler)
            if ema is not None:
                done = (epoch - 1) * steps + batch_id  # at first, less is kept: TensorFlow's warm-up
                torch._foreach_lerp_(averaged, current, 1 - min(ema_decay, (1 + done) / (10 + done)))
            loss_sum += F.nll_loss(log_probs.detach(), target, reduction="sum")
            correct += (log_probs.argmax(dim=1) == target).sum()
            processed += len(target)
            if batch_id % BAR_INTERVAL == 0 or batch_id == steps - 1:
                accuracy = 100.0 * correct.item() / processed
                text = f"Epoch={epoch} Loss={loss.item():.4f} Batch_id={batch_id} Accuracy={accuracy:.2f}%"
                bar.set_description(text, refresh=False)
                if not loss_sum.isfinite():
                    reason = f"the loss became {loss_sum.item()} in epoch {epoch}, by batch {batch_id}"
                    raise UserError(f"{reason}: try a lower --max-lr")
            bar.update()
    if ema is not None:
        for average, now in zip(*states, strict=True):
            if not now.is_floating_point():  # batch norm's counters, which are no averages
                average.copy_(now)
    return loss_sum.item() / processed, 100.0 * correct.item() / processed
