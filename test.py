"""One evaluation."""

import torch
import torch.nn.functional as F
from torch import nn

from utils import Loader


@torch.inference_mode()
def test(
    model: nn.Module, device: torch.device, test_loader: Loader, *, name: str = "Test set"
) -> tuple[float, float]:
    """Evaluate ``model`` on all of ``test_loader`` and print the result as one line.

    The loader yields images (N, 1, 28, 28), float32, with targets (N,), int64; ``name`` says in the
    line which set they are. Returns the loss averaged over the images and the accuracy in percent.
    """
    model.eval()
    loss_sum = torch.zeros((), device=device)
    correct_sum = torch.zeros((), dtype=torch.int64, device=device)
    total = 0
    for data, target in test_loader:
        data, target = data.to(device), target.to(device)
        log_probs = model(data)
        loss_sum += F.nll_loss(log_probs, target, reduction="sum")
        correct_sum += (log_probs.argmax(dim=1) == target).sum()
        total += len(target)
    loss, correct = loss_sum.item() / total, int(correct_sum)
    accuracy = 100.0 * correct / total
    print(f"\n{name}: Average loss: {loss:.4f}, Accuracy: {correct}/{total} ({accuracy:.2f}%)\n", flush=True)
    return loss, accuracy


test.__test__ = False  # type: ignore[attr-defined]  # pytest leaves it alone wherever it is imported
