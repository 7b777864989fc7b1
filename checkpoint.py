"""A run's folder: make it, write into it, read it back."""

import csv
import io
import os
import pickle
import platform
import time
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch
import torchvision

from model import Net

Row = dict[str, float]  # one epoch's line of metrics.csv


class RunError(Exception):
    """A run's folder can't be used; the message says why and what to do."""


def versions() -> dict[str, str]:
    """Return what the results depend on beside the code: Python, torch, torchvision, the machine."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "machine": f"{platform.system()} {platform.machine()}",
    }


def make_run_dir(output_dir: str | None, name: str) -> Path:
    """Claim a folder for a run: ``output_dir``, or a new one for ``name`` under runs/.

    Creating its metrics.csv, which only one process can do, is the claim, so two runs never share
    a folder. Raises ``RunError`` where ``output_dir`` holds anything, and ``OSError``.
    """
    if output_dir is not None:
        path = Path(output_dir)
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()):
            raise RunError(f"--output-dir {path} is not empty: name a new one")
        try:
            (path / "metrics.csv").touch(exist_ok=False)
        except FileExistsError:
            raise RunError(f"--output-dir {path} was just taken by another run: name a new one") from None
        return path
    stem, count = f"{time.strftime('%Y%m%d-%H%M%S')}-{name}", 1
    while True:
        path = Path("runs", stem if count == 1 else f"{stem}-{count}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            count += 1
            continue
        (path / "metrics.csv").touch(exist_ok=False)
        return path


def replace_file(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` so that it is there whole or, after any failure, as it was before."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def save_checkpoint(path: Path, checkpoint: dict[str, Any]) -> None:
    """Write ``checkpoint``, of tensors and plain values, to ``path``, whole or not at all."""
    buffer: BinaryIO = io.BytesIO()
    torch.save(checkpoint, buffer)
    buffer.seek(0)
    replace_file(path, buffer.read())


def write_metrics(path: Path, rows: list[Row]) -> None:
    """Write a line an epoch, under the names of the first row, to ``path``."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    replace_file(path, text.getvalue().encode())


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what ``save_checkpoint`` wrote, onto the CPU, running no code from it.

    Raises ``RunError`` when ``path`` isn't there or isn't a checkpoint of this network with finite weights.
    """
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise RunError(f"{path} does not exist") from None
    except pickle.UnpicklingError:
        raise RunError(
            f"{path} is refused: it is damaged, or holds more than tensors and plain values"
        ) from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise RunError(f"{path} can't be read as a checkpoint: {reason}") from None
    weights = checkpoint.get("model") if isinstance(checkpoint, dict) else None
    if not isinstance(weights, dict):
        raise RunError(f"{path} is not a checkpoint of this project: it has no entry 'model'")
    expected = Net().state_dict()
    found = {name: getattr(value, "shape", None) for name, value in weights.items()}
    if found != {name: value.shape for name, value in expected.items()}:
        raise RunError(f"{path} holds another network than the one in model.py")
    for name, value in weights.items():
        if not torch.isfinite(value).all():
            raise RunError(f"{path} is refused: {name} holds NaN or infinity")
    return checkpoint


def load_net(path: Path) -> tuple[Net, dict[str, Any]]:
    """Read the network in the checkpoint ``path``, on the CPU and in evaluation mode, and the checkpoint.

    Raises ``RunError`` like ``load_checkpoint``.
    """
    checkpoint = load_checkpoint(path)
    with torch.random.fork_rng(devices=[]):
        model = Net()
    model.load_state_dict(checkpoint["model"])
    return model.eval(), checkpoint


def newest_weights() -> Path:
    """Return the best.pt of the newest run under runs/, or else of weights/, which came with the project.

    Raises ``RunError`` when there is neither.
    """
    found = sorted(Path("runs").glob("*/best.pt"), key=lambda path: path.stat().st_mtime)
    found = found[-1:] or [path for path in [Path(__file__).parent / "weights" / "best.pt"] if path.exists()]
    if not found:
        raise RunError(
            "there are no trained weights under runs/: train with python main.py, or name --weights"
        )
    return found[0]
