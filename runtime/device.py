"""Choose the device to train on."""

import torch

from runtime.errors import UsageError


def select_device(name: str) -> torch.device:
    """Return the device called ``name``; 'auto' is the first of cuda, mps and cpu that works."""
    if name == "auto":
        available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
        return torch.device(next(kind for kind in available if available[kind]))
    try:
        torch.zeros(1, device=name).item()
        return torch.device(name)
    except (RuntimeError, AssertionError, ImportError) as error:  # as this torch was built without it
        reason = str(error).partition("\n")[0].partition(". ")[0][:200]
        raise UsageError(f"argument --device: {name} can't be used here: {reason}") from None
