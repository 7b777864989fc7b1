"""What a user can cause and mend, and how it ends a command: in one line, without a traceback."""

import os
import signal
import sys
from types import TracebackType
from typing import NoReturn


class UserError(Exception):
    """Something that a user can mend; the message is one line that says what is wrong and what to do."""

    status = 1  # of the process that it ends


class UsageError(UserError):
    """A flag, or a setting, asks for what can't be had; the message names the flag."""

    status = 2


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived: it ends a command as Ctrl-C does."""


def end_in_one_line(program: str) -> None:
    """From now on, what a user can cause ends ``program`` in one line on stderr, without a traceback.

    That is a ``UserError`` or ``OSError``, too little memory, Ctrl-C and SIGTERM (exit status 130 and 143,
    the message is the exception's own). Everything else keeps its traceback.
    """

    def terminate(*_: object) -> NoReturn:
        raise Terminated

    def hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        status, text = 1, str(error)
        if isinstance(error, UserError):
            status = error.status
        elif isinstance(error, KeyboardInterrupt):
            status, name = (143, "SIGTERM") if isinstance(error, Terminated) else (130, "Ctrl-C")
            text = f"stopped by {name}: {text or 'nothing was saved'}"
        elif isinstance(error, MemoryError) or kind.__name__ == "OutOfMemoryError" or "CPUAllocator" in text:
            # By name, or by text: torch's own errors, on CUDA and on a CPU, without importing it.
            text = "the memory is not enough; in training, try a smaller --batch-size"
        elif isinstance(error, OSError) and error.strerror:
            text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        elif not isinstance(error, OSError):
            return sys.__excepthook__(kind, error, traceback)
        try:
            sys.stdout.flush()
        except OSError:  # what stdout doesn't take, Python would try again at its end, with a traceback
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(f"{program}: {'' if status > 2 else 'error: '}{text}", file=sys.stderr)
        sys.exit(status)

    sys.excepthook = hook
    signal.signal(signal.SIGTERM, terminate)
