"""Choose the device to train on."""

import torch

from runtime.errors import UsageError, warn


def select_device(name: str) -> torch.device:
    """Return the device called ``name``; 'auto' is the first of cuda, mps and cpu that works here."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    for kind in [kind for kind in available if available[kind]] if name == "auto" else [name]:
        try:
            torch.zeros(1, device=kind).item()
            return torch.device(kind)
        except (RuntimeError, AssertionError, ImportError) as error:  # as this torch was built without it
            problem = f"{kind} can't be used here: " + str(error).partition("\n")[0].partition(". ")[0][:200]
            if name != "auto":
                raise UsageError(f"argument --device: {problem}; cpu always works") from None
            warn(problem)
    raise AssertionError("the CPU always works")
