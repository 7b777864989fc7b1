"""Train for one epoch."""

import math
from itertools import compress

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from tqdm import tqdm

from runtime.errors import DivergedError
from utils import DeviceLoader

BAR_INTERVAL = 25  # batches between updates of the progress bar's text; each update waits for the device


@torch.no_grad()
def update_average(ema: nn.Module, model: nn.Module, decay: float) -> None:
    """Set each weight and statistic of ``ema`` to decay · its value + (1 - decay) · that of ``model``."""
    averages, values = ([*net.parameters(), *net.buffers()] for net in (ema, model))
    floats = [value.is_floating_point() for value in values]  # all but batch norm's counters of batches
    torch._foreach_lerp_([*compress(averages, floats)], [*compress(values, floats)], 1 - decay)
    for average, value in zip(averages, values, strict=True):
        if not value.is_floating_point():
            average.copy_(value)


def train(
    model: nn.Module,
    device: torch.device | str,
    train_loader: DeviceLoader,
    *,
    optimizer: Optimizer,
    epoch: int,
    scheduler: LRScheduler | None = None,
    label_smoothing: float = 0.0,
    ema: nn.Module | None = None,
    ema_decay: float = 0.0,
) -> tuple[float, float]:
    """Train ``model`` for one epoch, with a progress bar on stderr.

    - ``train_loader`` yields images, float32 (N, 1, H, W), and labels, int64 (N,). Their order and their
      augmentation depend on ``epoch``, which counts from 1.
    - The model maps images to log-probabilities, or to logits, (N, classes).
    - ``scheduler`` moves after each batch.
    - ``label_smoothing`` is in [0, 1] (Szegedy et al., CVPR 2016).
    - ``ema``, at first a copy of the model, becomes the running average of its weights. ``ema_decay`` is in
      [0, 1).

    Returns the mean loss, without label smoothing, and the accuracy in percent. Both are for the
    augmented images; each batch is measured before its optimizer step. A loss that is not finite raises
    ``DivergedError``.
    """
    model.train()
    train_loader.epoch = epoch
    steps = len(train_loader)
    loss_sum, correct = torch.zeros(2, device=device)  # correct is a float, too, for torch.stack below
    processed = 0
    with tqdm(total=steps) as bar:
        for batch_id, (data, target) in enumerate(train_loader):
            data, target = data.to(device), target.to(device)
            optimizer.zero_grad(set_to_none=True)
            output = model(data)
            # cross_entropy applies log-softmax, which doesn't change log-probabilities. So output can be
            # either these or logits.
            loss = F.cross_entropy(output, target, label_smoothing=label_smoothing)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            if ema is not None:
                step = (epoch - 1) * steps + batch_id
                # A smaller decay at the start: the formula of TensorFlow's ExponentialMovingAverage.
                update_average(ema, model, min(ema_decay, (1 + step) / (10 + step)))
            loss_sum += F.cross_entropy(output.detach(), target, reduction="sum")
            correct += (output.argmax(dim=1) == target).sum()
            processed += len(target)
            if batch_id % BAR_INTERVAL == 0 or batch_id == steps - 1:
                # The bar shows the loss of this batch, and the accuracy of the epoch so far.
                batch_loss, epoch_loss, hits = torch.stack([loss.detach(), loss_sum, correct]).tolist()
                accuracy = 100.0 * hits / processed
                description = (
                    f"Epoch={epoch} Loss={batch_loss:.4f} Batch_id={batch_id} Accuracy={accuracy:.2f}%"
                )
                bar.set_description(description, refresh=False)
                if not math.isfinite(epoch_loss):
                    raise DivergedError(f"the loss became {epoch_loss} in epoch {epoch}: try a lower --lr")
            bar.update()
    return loss_sum.item() / processed, 100.0 * correct.item() / processed
