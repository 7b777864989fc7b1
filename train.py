"""One epoch of training."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from tqdm import tqdm

from utils import Loader


def train(
    model: nn.Module,
    device: torch.device,
    train_loader: Loader,
    optimizer: Optimizer,
    epoch: int,
    scheduler: LRScheduler | None = None,
    limit_batches: int | None = None,
) -> tuple[float, float]:
    """Train ``model`` for one pass over ``train_loader``, behind a progress bar on stderr.

    The loader yields images (N, 1, 28, 28), float32, with targets (N,), int64; the model returns
    log-probabilities (N, 10). ``scheduler`` moves after each batch where it is given, and
    ``limit_batches`` ends the epoch early. Returns the mean loss and the accuracy in percent, both
    over the images as they were seen, with dropout and before each step.
    """
    model.train()
    loss_sum, correct, processed = 0.0, 0, 0
    steps = min(len(train_loader), limit_batches or len(train_loader))
    with tqdm(total=steps) as bar:
        for batch_id, (data, target) in zip(range(steps), train_loader, strict=False):
            data, target = data.to(device), target.to(device)
            optimizer.zero_grad()
            log_probs = model(data)
            loss = F.nll_loss(log_probs, target)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if scheduler is not None:
                scheduler.step()

            loss_sum += loss.item() * len(target)
            correct += int((log_probs.argmax(dim=1) == target).sum())
            processed += len(target)
            accuracy = 100.0 * correct / processed
            bar.set_description(
                f"Epoch={epoch} Loss={loss.item():.4f} Batch_id={batch_id} Accuracy={accuracy:.2f}%",
                refresh=False,
            )
            bar.update()
    return loss_sum / processed, 100.0 * correct / processed
