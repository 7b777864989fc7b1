"""Errors that end a command in one line, and how a command starts.

Any function of this project may raise ``UserError`` or ``OSError``. They end the command in one line on
stderr, without a traceback. Docstrings mention them only where they are not obvious.
"""

import contextlib
import errno
import importlib
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import NoReturn

REQUIRED = ("torch", "torchvision", "tqdm", "numpy", "PIL")  # of requirements.txt, or needed by these


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


def run_command(program: str, parse_args: Callable[[], tuple[object, ...]], module: str) -> NoReturn:
    """Read the arguments, then import ``module`` and call its ``main`` with them; exit with what it returns.

    Importing torch takes seconds. In this order, ``--help`` and wrong arguments are answered at once.
    """
    end_in_one_line(program)
    prepare_streams()
    try:
        arguments = parse_args()
        with signals_end_at_once(program):
            command = importlib.import_module(module)
        status: int | None = command.main(*arguments)
    except ModuleNotFoundError as error:
        if error.name not in REQUIRED:
            raise
        solution = "use .venv/bin/python, or pip install -r requirements.txt"
        raise UserError(f"{error.name} is not installed for {sys.executable}: {solution}") from None
    finally:
        sys.stdout.flush()  # here, a failure to write still ends in one line
    sys.exit(status)


@contextlib.contextmanager
def signals_end_at_once(program: str) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end ``program`` within their handler, with the usual line and exit status.

    A handler that raises is not enough while torch is imported: torch's C code imports numpy, drops any
    exception, and goes on without numpy, as if there had been no Ctrl-C.
    """

    def end(number: int, _frame: object) -> NoReturn:
        name = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
        os.write(2, f"{program}: stopped by {name}\n".encode())
        os._exit(128 + number)

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in handlers.items():
        if handler is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def prepare_streams() -> None:
    """Make stdout and stderr take any text, and treat a closed one as other Unix commands do."""
    if sys.stderr is None:  # else the next file that is opened would become stderr
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        sys.stderr = open(2, "w")  # noqa: SIM115
    if sys.stdout is None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF), "standard output")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not in a test that captures it
            stream.reconfigure(errors="backslashreplace")


def end_in_one_line(program: str) -> None:
    """From now on, end ``program`` in one line on stderr where the user can solve the problem.

    These are ``UserError``, ``OSError``, too little memory, Ctrl-C (exit status 130) and SIGTERM (143).
    Every other exception keeps its traceback.
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
        elif isinstance(error, MemoryError) or "out of memory" in message or "CPUAllocator" in message:
            # torch's errors on CUDA and MPS, and on a CPU, by their text, as torch may not be imported.
            message = "not enough memory; in training, try a smaller --batch-size"
        elif isinstance(error, OSError) and error.strerror:
            message = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        elif not isinstance(error, OSError):
            return sys.__excepthook__(kind, error, traceback)
        try:
            if sys.stdout is not None:
                sys.stdout.flush()
        except OSError:  # Python would flush again at exit, and print a traceback
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(f"{program}: {'' if status > 2 else 'error: '}{printable(message)}", file=sys.stderr)
        sys.exit(status)

    sys.excepthook = hook
    signal.signal(signal.SIGTERM, terminate)
