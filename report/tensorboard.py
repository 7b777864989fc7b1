"""Write the curves of a run for TensorBoard."""

from collections.abc import Iterable
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from trained import EpochMetrics


def open_curves(folder: Path, metrics: Iterable[EpochMetrics]) -> SummaryWriter:
    """Open a file for TensorBoard in ``folder``; ``with`` closes it.

    The epochs in ``metrics`` replace those of earlier files in the folder.
    """
    writer = SummaryWriter(folder, purge_step=0)
    for row in metrics:
        add_epoch(writer, row)
    return writer


def add_epoch(writer: SummaryWriter, row: EpochMetrics) -> None:
    """Add an epoch to the curves, and flush it to the disk."""
    for name in ("lr", "train_loss", "train_accuracy", "eval_loss", "eval_accuracy"):
        split, _, kind = name.replace("eval", row.split).rpartition("_")
        writer.add_scalar(f"{kind}/{split}" if split else kind, getattr(row, name), row.epoch)
    writer.flush()
