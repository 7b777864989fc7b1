"""Write the curves of a run for TensorBoard."""

from torch.utils.tensorboard import SummaryWriter

from checkpoint import EpochMetrics, Run


def open_curves(run: Run) -> SummaryWriter:
    """Open a ``SummaryWriter`` in the folder of ``run``. The run's epochs replace those of earlier files."""
    writer = SummaryWriter(run.folder, purge_step=0)
    for row in run.metrics:
        add_epoch(writer, row)
    return writer


def add_epoch(writer: SummaryWriter, row: EpochMetrics) -> None:
    """Add an epoch to the curves, and flush it to the disk."""
    for name in ("lr", "train_loss", "train_accuracy", "eval_loss", "eval_accuracy"):
        split, _, kind = name.replace("eval", row.split).rpartition("_")
        writer.add_scalar(f"{kind}/{split}" if split else kind, getattr(row, name), row.epoch)
    writer.flush()
