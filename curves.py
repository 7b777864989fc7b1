"""A run's curves for TensorBoard: ``python main.py --tensorboard``, then ``tensorboard --logdir runs``."""

import io
from pathlib import Path

from checkpoint import Row, RunError, replace_file

EVENTS = "events.out.tfevents.curves"  # TensorBoard reads every file with "tfevents" in its name


def require_tensorboard() -> None:
    """Raise ``RunError``, saying how to get it, when the package tensorboard can't be imported."""
    try:
        import tensorboard.summary.writer.record_writer  # noqa: F401
    except ImportError as error:
        raise RunError(f"--tensorboard needs a package: pip install tensorboard ({error})") from None


def write_tensorboard(folder: Path, rows: list[Row]) -> None:
    """Bring the event file in ``folder`` up to ``rows``, the epochs so far, as metrics.csv holds them.

    Each column but ``epoch``, the step, and ``seconds`` becomes a curve: ``loss/train``, ``lr`` and so on.
    The file's bytes follow from ``rows`` alone, so a resumed run goes on without a double; the events' time
    is therefore counted in seconds from the start of training, not from 1970. Raises ``OSError``, and
    ``ImportError`` without the package tensorboard.
    """
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    buffer = io.BytesIO()
    writer = RecordWriter(buffer)
    writer.write(Event(wall_time=0.0, file_version="brain.Event:2").SerializeToString())
    seconds = 0.0
    for row in rows:
        seconds += row["seconds"]
        values = []
        for column, value in row.items():
            if column not in ("epoch", "seconds"):
                part, _, kind = column.rpartition("_")
                values.append(Summary.Value(tag=f"{kind}/{part}" if part else kind, simple_value=value))
        event = Event(wall_time=seconds, step=int(row["epoch"]), summary=Summary(value=values))
        writer.write(event.SerializeToString())

    path, content = folder / EVENTS, buffer.getvalue()
    there = path.read_bytes() if path.exists() else b""
    if content.startswith(there):
        # Appended, not replaced: a TensorBoard that watches the run keeps the file open and reads on in it.
        # If that breaks off, the half record is still a beginning of the content, and the next call ends it.
        with open(path, "ab") as file:
            file.write(content[len(there) :])
    else:
        replace_file(path, content)
