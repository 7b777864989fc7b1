"""Errors that end a command in one line, and how a command starts.

Any function of this project may raise ``UserError`` or ``OSError``. They end the command in one line on
stderr, without a traceback. Docstrings mention them only where they are not obvious.
"""

import io
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn


class UserError(Exception):
    """A problem that the user can solve; the message is one line that says what is wrong and what to do."""

    status = 1  # exit status of the process


class UsageError(UserError):
    """A wrong argument; the message names the flag."""

    status = 2


class DivergedError(UserError):
    """The loss of a training is not finite."""


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived: it ends a command as Ctrl-C does."""


def printable(text: str) -> str:
    """Return ``text``, such as the name of a file or class, with control characters escaped."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def warn(message: str) -> None:
    """Print ``message`` as a warning on stderr."""
    print(f"warning: {printable(message)}", file=sys.stderr, flush=True)


def run_command(main: Callable[[], int | None]) -> NoReturn:
    """Call ``main``, the command's own function, and exit with the status that it returns."""
    script = Path(sys.argv[0])
    end_in_one_line(script.parent.name if script.stem == "__main__" else script.name)
    prepare_streams()
    try:
        status: Any = main()
    except SystemExit as end:  # after --help
        status = end.code
    sys.stdout.flush()  # here, a failure to write still ends in one line
    sys.exit(status)


def prepare_streams() -> None:
    """Make stdout and stderr take any text, and replace a closed one: else the next file would become it."""
    for number, name, mode in ((1, "stdout", os.O_RDONLY), (2, "stderr", os.O_WRONLY)):
        if getattr(sys, name) is None:
            os.dup2(os.open(os.devnull, mode), number)
            setattr(sys, name, open(number, "w"))  # noqa: SIM115
        if isinstance(stream := getattr(sys, name), io.TextIOWrapper):  # not in a test that captures it
            stream.reconfigure(errors="backslashreplace")


def end_in_one_line(program: str) -> None:
    """From now on, end ``program`` in one line on stderr where the user can solve the problem.

    These are ``UserError``, ``OSError``, a missing package, too little memory, Ctrl-C (exit status 130) and
    SIGTERM (143). Every other exception keeps its traceback. With the environment variable TRACEBACK, all do.
    """

    def terminate(*_: object) -> NoReturn:
        raise Terminated

    def hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        """End the program: with one line if the user can solve ``error``, else with its traceback."""
        status, message = 1, str(error)
        if isinstance(error, UserError):
            status = error.status
        elif isinstance(error, KeyboardInterrupt):
            status, name = (143, "SIGTERM") if isinstance(error, Terminated) else (130, "Ctrl-C")
            message = f"stopped by {name}" + (f": {message}" if message else "")
        elif isinstance(error, MemoryError) or (
            isinstance(error, RuntimeError) and re.search("out of memory|CPUAllocator", message)
        ):  # torch has a class for this on CUDA only
            message = "not enough memory; in training, try a smaller --batch-size"
        elif isinstance(error, OSError) and error.strerror:
            message = f"{error.filename or 'standard output'}: {error.strerror}"
        elif isinstance(error, ModuleNotFoundError):
            message += f": pip install {error.name}"
        elif not isinstance(error, OSError):
            return sys.__excepthook__(kind, error, traceback)
        if os.environ.get("TRACEBACK"):
            sys.__excepthook__(kind, error, traceback)
        try:
            sys.stdout.flush()
        except OSError:  # Python would flush again at exit, and print a traceback
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(f"{program}: {'' if status > 2 else 'error: '}{printable(message)}", file=sys.stderr)
        sys.exit(status)

    sys.excepthook = hook
    signal.signal(signal.SIGTERM, terminate)
