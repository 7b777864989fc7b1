"""Evaluate once."""

import torch
import torch.nn.functional as F
from torch import nn

from utils import DeviceLoader


@torch.inference_mode()
def test(
    model: nn.Module, device: torch.device | str, test_loader: DeviceLoader, *, name: str = "Test set"
) -> tuple[float, float]:
    """Evaluate ``model`` and print one line; return the mean loss and the accuracy in percent.

    - ``test_loader`` yields images, float32 (N, 1, 28, 28), and labels, int64 (N,).
    - The model maps images to log-probabilities, or to logits, (N, classes).
    - ``name`` is what the line calls the images.
    """
    model.eval()
    loss_sum = torch.zeros((), device=device)
    correct_sum = torch.zeros((), dtype=torch.int64, device=device)
    total = 0
    for images, labels in test_loader:
        images, labels = images.to(device), labels.to(device)
        output = model(images)
        loss_sum += F.cross_entropy(output, labels, reduction="sum")
        correct_sum += (output.argmax(dim=1) == labels).sum()
        total += len(labels)
    if total == 0:
        raise ValueError("test_loader has no batches")
    loss, correct = loss_sum.item() / total, int(correct_sum)
    accuracy = 100.0 * correct / total
    print(f"\n{name}: Average loss: {loss:.4f}, Accuracy: {correct}/{total} ({accuracy:.2f}%)\n", flush=True)
    return loss, accuracy


test.__test__ = False  # type: ignore[attr-defined]  # pytest must not collect it, wherever it is imported
