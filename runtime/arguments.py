"""Read a command line."""

import argparse
import os
from typing import NoReturn

from runtime.errors import UsageError


def text(value: str) -> str:
    """Read an argument that is text. An empty one, as of an unset shell variable, is refused."""
    if not value:
        raise argparse.ArgumentTypeError("must not be empty")
    return os.path.expanduser(value)  # a shell leaves the ~ of --flag=~/folder as it is


class Parser(argparse.ArgumentParser):
    """An argument parser that raises ``UsageError``, and allows no abbreviations of flags."""

    def __init__(self, program: str, description: str) -> None:
        super().__init__(program, description=description, allow_abbrev=False)
        self.register("type", None, text)  # of arguments without a type
        self.register("type", str, text)

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)
