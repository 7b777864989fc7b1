"""Files that are whole or not there, and folders that one process has to itself."""

import contextlib
import csv
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep every other process out of ``folder``, where the platform can.

    Raises ``UserError`` when another process is in it. Removes what a killed process left half written.
    """
    with contextlib.ExitStack() as stack:
        if fcntl is not None:
            handle = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, handle)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"{folder} is in use by another process: wait until it has ended") from None
        for leftover in folder.glob(".*.[0-9]*.tmp"):
            leftover.unlink()
        yield


def replace_file(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path``, and to the disk, whole; after any failure ``path`` is as it was before.

    Raises ``OSError`` with a message for the user.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
        if os.name == "posix":  # the new name is on the disk once the folder is
            folder = os.open(path.parent, os.O_RDONLY)
            with contextlib.suppress(OSError):  # not every file system can
                os.fsync(folder)
            os.close(folder)
    except OSError as error:
        raise OSError(f"{path} can't be written: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


def write_table(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write ``rows``, whose columns are those of the first, to ``path`` as CSV, whole or not at all."""
    text = io.StringIO(newline="")
    if rows:
        writer = csv.DictWriter(text, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    replace_file(path, text.getvalue().encode())


def read_table(path: Path) -> list[dict[str, str]]:
    """Read the rows that ``write_table`` wrote to ``path``; none where there is no such file."""
    with contextlib.suppress(FileNotFoundError), open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
    return []
