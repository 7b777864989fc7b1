"""Files of tensors, written by ``torch.save`` and read without running code from them."""

import io
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from runtime.errors import UserError
from runtime.files import replace_file


def save_tensors(path: Path, content: dict[str, Any]) -> None:
    """Write ``content``, tensors and plain values by their names, to ``path``, whole or not at all."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    replace_file(path, buffer.getvalue())


def load_tensors(path: Path) -> dict[str, Any]:
    """Read a dictionary of tensors and plain values that ``torch.save`` wrote, onto the CPU."""
    file = path.read_bytes()
    try:
        with zipfile.ZipFile(io.BytesIO(file)) as archive:
            # torch.save doesn't compress; a small compressed file could fill the memory.
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise zipfile.BadZipFile("it is compressed, and torch.save writes no such file")
            damaged = archive.testzip()  # torch ignores the checksums
        if damaged is not None:
            raise zipfile.BadZipFile(f"{damaged} in it has changed since it was written")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch comments on foreign formats, then refuses them
            content = torch.load(io.BytesIO(file), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(f"{path} is refused: damaged, or more than tensors and plain values") from None
    except Exception as error:  # damaged bytes can cause any error in zipfile and torch
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"{path} is damaged, or no checkpoint: {reason}") from None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError(f"{path} is not a checkpoint: it holds no dictionary of names")
    return content
