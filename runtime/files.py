"""Files that are written whole or not at all, and folders that one process at a time works in."""

import contextlib
import csv
import io
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from runtime.errors import UserError


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of ``folder``, and remove half-written files that a killed process left."""
    try:
        with FileLock(folder / ".lock", timeout=0):
            for leftover in folder.glob(".*.[0-9]*.tmp"):
                leftover.unlink()
            yield
    except Timeout:
        raise UserError(f"{folder} is in use by another process: wait until it has ended") from None


def replace_file(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path``, and to the disk. After any failure, ``path`` is as it was before.

    A symbolic link stays, and its target is written; a file's permissions stay, too. A device, such as
    /dev/null, is written to. The ``OSError`` that it raises has a message for the user.
    """
    path = Path(os.path.realpath(path))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if path.is_char_device() or path.is_fifo():
            path.write_bytes(content)
            return
        with open(temporary, "wb") as file:
            if path.exists():
                shutil.copymode(path, temporary)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        if os.name == "posix":  # the new name is on the disk once the folder is
            folder = os.open(path.parent, os.O_RDONLY)
            with contextlib.suppress(OSError):  # not every file system can
                os.fsync(folder)
            os.close(folder)
    except OSError as error:
        raise OSError(f"{path} can't be written: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_table(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write ``rows`` to ``path`` as CSV, like ``replace_file``. The keys of all rows are the columns."""
    text = io.StringIO(newline="")
    if rows:
        columns = dict.fromkeys(key for row in rows for key in row)  # in order, each once
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    replace_file(path, text.getvalue().encode())
