"""Read a command line."""

import argparse
from pathlib import Path
from typing import NoReturn

from runtime.errors import UsageError


def text(value: str) -> str:
    """Read an argument that is text. An empty one, as of an unset shell variable, is refused."""
    if not value:
        raise argparse.ArgumentTypeError("must not be empty")
    return value


def folder(value: str) -> Path:
    """Read an argument that names a folder, which need not exist yet."""
    path = Path(text(value))
    if path.exists() and not path.is_dir():
        raise argparse.ArgumentTypeError(f"{path} is a file; name a folder")
    return path


class Parser(argparse.ArgumentParser):
    """An argument parser that raises ``UsageError``, and allows no abbreviations of flags."""

    def __init__(self, program: str, description: str) -> None:
        super().__init__(program, description=description, allow_abbrev=False)
        self.register("type", None, text)  # of arguments without a type
        self.register("type", str, text)
        self.register("type", Path, lambda value: Path(text(value)))

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)

    def values(self) -> tuple[object, ...]:
        """Return the arguments of the command line in the order in which they were added."""
        return tuple(vars(self.parse_args()).values())
