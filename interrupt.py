"""Ctrl-C and SIGTERM end a command in one line, also while torch is being imported: nothing heavy is here."""

import os
import signal
import socket
import sys
import threading
import time
from types import FrameType

GRACE = 1.0  # seconds to clean up in, before the command is ended wherever it is
SIGNALS = (signal.SIGINT, signal.SIGTERM)

_ending = threading.Lock()
_program, _saved, _cleans_up = "", "nothing was saved", False


class Interrupted(BaseException):
    """Ctrl-C or SIGTERM arrived; the argument is the signal's number."""


def end(number: int) -> None:
    """Say on stderr that signal ``number`` came and what was saved; exit with status 128 + ``number``."""
    with _ending:  # is never left, so the line is printed once
        try:
            sys.stdout.flush()
            name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
            print(f"\n{_program}: stopped by {name}: {_saved}", file=sys.stderr, flush=True)
        finally:
            os._exit(128 + number)


def saved(text: str) -> None:
    """Set what ``end`` says was saved."""
    global _saved
    _saved = text


def clean_up() -> None:
    """From now on a signal raises ``Interrupted``, for the command to clean up and call ``end``."""
    global _cleans_up
    _cleans_up = True


def watch(program: str) -> None:
    """From now on, Ctrl-C and SIGTERM end the command called ``program`` within ``GRACE`` seconds.

    Python hears of a signal only between two steps of its own, and a step in C++ can take long. So a
    thread, which hears of it at once, ends the command where that hasn't happened in time.
    """
    global _program
    _program = program
    listen, speak = socket.socketpair()
    speak.setblocking(False)

    def on_signal(number: int, frame: FrameType | None) -> None:
        for other in SIGNALS:
            signal.signal(other, signal.SIG_IGN)  # a second Ctrl-C must not break into the cleaning up
        if not _cleans_up:
            end(number)
        raise Interrupted(number)

    def wait() -> None:
        number = listen.recv(1)[0]
        while number not in SIGNALS:
            number = listen.recv(1)[0]
        time.sleep(GRACE)
        end(number)

    for number in SIGNALS:
        signal.signal(number, on_signal)
    signal.set_wakeup_fd(speak.detach(), warn_on_full_buffer=False)
    threading.Thread(target=wait, daemon=True).start()
