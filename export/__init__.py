"""The formats of export.py, a module each.

Each module has ``write(model: Net) -> bytes``, which makes the content of one file. A module whose
file can be run from Python also has ``load(content: bytes) -> Predictor``, by which export.py
checks the file before it writes it.
"""

from collections.abc import Callable

from torch import Tensor

Predictor = Callable[[Tensor], Tensor]  # pictures, uint8 (N, 28, 28), to log-probabilities, float32 (N, 10)


class ExportError(Exception):
    """A file can't be made or checked, or is wrong; the message says why and what to do."""
