"""Files that are written whole or not at all, and folders that one process at a time works in."""

import contextlib
import csv
import errno
import io
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from runtime.errors import UsageError, UserError, printable

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}  # what a file system without locks answers


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep every other process out of ``folder``, and remove half-written files that a killed process left.

    The lock is on a file that is open for writing: on a network file system, other machines respect only
    that. Windows has no such locks. On a file system without locks, this continues with a warning.
    """
    with contextlib.ExitStack() as stack:
        if fcntl is not None:
            file = stack.enter_context(open(folder / ".lock", "w"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"{folder} is in use by another process: wait until it has ended") from None
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                warn(f"{folder} can't be locked here: start no second command on it")
        for leftover in folder.glob(".*.[0-9]*.tmp"):
            leftover.unlink()
        yield


def claim_folder(name: str | None, default: Path) -> Path:
    """Create a folder for one process alone, and return it.

    It is ``name``, which must be empty; without one, it is ``default`` or, if that exists, a variant of it.
    To claim it is to create an empty metrics.csv in it, which only one process can do.
    """
    path, count = Path(name) if name is not None else default, 1
    while True:
        with contextlib.suppress(FileExistsError):  # a file, or another process has just claimed the folder
            path.mkdir(parents=True, exist_ok=True)
            if not any(path.iterdir()):
                (path / "metrics.csv").touch(exist_ok=False)
                return path
        if name is not None:
            problem = "not empty" if path.is_dir() else "a file"
            raise UsageError(f"argument --output-dir: {path} is {problem}: name a new folder")
        count += 1
        path = default.with_name(f"{default.name}-{count}")


def warn(message: str) -> None:
    """Print ``message`` as a warning on stderr."""
    print(f"warning: {printable(message)}", file=sys.stderr, flush=True)


def replace_file(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path``, and to the disk. After any failure, ``path`` is as it was before.

    A symbolic link stays, and its target is written. So does a device, such as /dev/null. The ``OSError``
    that it raises has a message for the user.
    """
    path = Path(os.path.realpath(path))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if path.is_char_device() or path.is_fifo():
            path.write_bytes(content)
            return
        with open(temporary, "wb") as file:
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


def read_table(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Read the rows of a CSV file that has at least ``columns``; none where there is no file."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, strict=True))
    except FileNotFoundError:
        return []
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged, or no CSV file: {error}") from None
    for number, row in enumerate(rows, start=1):
        if None in row or None in row.values() or not row.keys() >= set(columns):
            raise UserError(
                f"{path} is damaged, or of another kind: row {number} lacks a column or has too many"
            )
    return rows
