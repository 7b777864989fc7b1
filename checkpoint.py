"""A run's folder: make it, write into it, read it back."""

import contextlib
import csv
import io
import os
import pickle
import platform
import time
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
import torchvision
from torch import nn

from model import Net

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

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


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep every other process out of ``folder``, where the platform can, until this one ends.

    Raises ``RunError`` when another process is in it. Removes what a killed process left half written.
    """
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"{folder} is in use by another process: wait until it has ended") from None
        for leftover in folder.glob(".*.tmp"):
            leftover.unlink()
        yield
    finally:
        os.close(handle)


def replace_file(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path``, and to the disk, whole; after any failure ``path`` is as it was before.

    Raises ``OSError`` with a message for the user.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
        if os.name == "posix":  # the new name is on the disk once the folder is
            folder = os.open(path.parent, os.O_RDONLY)
            with contextlib.suppress(OSError):  # not every file system can
                os.fsync(folder)
            os.close(folder)
    except OSError as error:
        raise OSError(f"{path} can't be written: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):
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
    if rows:
        writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    replace_file(path, text.getvalue().encode())


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read what ``save_checkpoint`` wrote, whatever is in it, onto the CPU, running no code from it.

    Raises ``RunError`` when ``path`` isn't there or isn't a dictionary of tensors and plain values.
    """
    try:
        content = path.read_bytes()
        # What torch.save writes is a zip file, whose CRCs torch ignores.
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"{damaged} in it has changed since it was written")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch comments on foreign formats, then refuses them
            checkpoint: dict[str, Any] = torch.load(
                io.BytesIO(content), map_location="cpu", weights_only=True
            )
    except FileNotFoundError:
        raise RunError(f"{path} does not exist") from None
    except OSError as error:
        raise RunError(f"{path} can't be read: {error.strerror or error}") from None
    except zipfile.BadZipFile as error:
        raise RunError(f"{path} is damaged, or no checkpoint: {error}") from None
    except pickle.UnpicklingError:
        raise RunError(
            f"{path} is refused: it is damaged, or holds more than tensors and plain values"
        ) from None
    except Exception as error:  # damaged bytes lead zipfile and torch into whatever error they happen to
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise RunError(f"{path} can't be read as a checkpoint: {reason}") from None
    if not isinstance(checkpoint, dict):
        raise RunError(f"{path} is not a checkpoint of this project: it has no entry 'model'")
    return checkpoint


def check_weights(path: Path, weights: object) -> None:
    """Raise ``RunError`` unless ``weights``, of ``path``, are finite ones of the network in model.py."""

    def kind(value: object) -> object:
        return isinstance(value, torch.Tensor) and (value.shape, value.dtype, value.layout, value.device)

    if not isinstance(weights, dict):
        raise RunError(f"{path} is not a checkpoint of this project: it has no entry 'model'")
    with torch.random.fork_rng(devices=[]):
        expected = Net().state_dict()
    if {name: kind(value) for name, value in weights.items()} != {n: kind(v) for n, v in expected.items()}:
        raise RunError(f"{path} holds another network than the one in model.py")
    for name, value in weights.items():
        if not torch.isfinite(value).all():
            raise RunError(f"{path} is refused: {name} holds NaN or infinity")


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint with trained weights, onto the CPU, running no code from it.

    Raises ``RunError`` when ``path`` isn't there or isn't a checkpoint of this network with finite weights.
    """
    checkpoint = read_checkpoint(path)
    check_weights(path, checkpoint.get("model"))
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
    if found:
        return found[-1]
    ours = Path(__file__).parent / "weights" / "best.pt"
    if ours.exists():
        return ours.relative_to(Path.cwd()) if ours.is_relative_to(Path.cwd()) else ours
    raise RunError("there are no trained weights under runs/: train with python main.py, or name --weights")


def save_best(folder: Path, model: nn.Module, row: Row, progress: dict[str, Any]) -> None:
    """Write best.pt: the weights of ``model``, its ``row`` of metrics.csv and the settings."""
    names = ("epoch", "test_accuracy", "holdout_accuracy")
    checkpoint = {"model": model.state_dict(), **{name: row[name] for name in names if name in row}}
    save_checkpoint(folder / "best.pt", checkpoint | {n: progress[n] for n in ("settings", "versions")})


def save_progress(folder: Path, progress: dict[str, Any], states: dict[str, Any]) -> None:
    """Write metrics.csv and then last.pt, which holds ``progress`` and the ``states`` of ``snapshot``."""
    write_metrics(folder / "metrics.csv", progress["rows"])
    save_checkpoint(folder / "last.pt", progress | states)


def snapshot(
    parts: dict[str, Any], device: torch.device, generator: torch.Generator | None
) -> dict[str, Any]:
    """Return the states of the ``parts`` of a run and of all that is random in it, the loader's included."""
    random = {"cpu": torch.get_rng_state()}
    if generator is not None:
        random["loader"] = generator.get_state()
    if device.type == "cuda":
        random["device"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        random["device"] = torch.mps.get_rng_state()
    return {name: part.state_dict() for name, part in parts.items()} | {"random": random}


def find_run(path: str) -> Path:
    """Return the folder of the run that ``path``, it or its last.pt, names. Raises ``RunError``."""
    folder = Path(path).parent if Path(path).name == "last.pt" else Path(path)
    if not (folder / "last.pt").exists():
        raise RunError(f"{folder} can't be resumed: it has no last.pt; name a folder that a run has written")
    return folder


def load_progress(folder: Path) -> dict[str, Any]:
    """Read the last.pt of the run in ``folder``: its progress, and from epoch 1 on the states of its parts.

    Raises ``RunError`` like ``load_checkpoint``, and when what belongs to a run's progress is missing.
    """
    path = folder / "last.pt"
    progress = read_checkpoint(path)
    kinds = {"settings": dict, "device": str, "epoch": int, "best": float, "rows": list, "finished": bool}
    if any(not isinstance(progress.get(name), kind) for name, kind in kinds.items()) or not isinstance(
        progress["settings"].get("given"), dict
    ):
        raise RunError(f"{path} does not hold a run's progress: it can't be resumed")
    if progress["epoch"] > 0:
        check_weights(path, progress.get("model"))
    return progress


def restore(
    folder: Path,
    progress: dict[str, Any],
    parts: dict[str, Any],
    device: torch.device,
    generator: torch.Generator | None,
) -> None:
    """Bring the ``parts`` of a run, all that is random and metrics.csv to ``progress``, of last.pt.

    ``parts`` are the network, the optimiser and so on, by the name of their state in ``progress``.
    Raises ``RunError`` where one doesn't fit, and ``OSError``.
    """
    try:
        for name, part in parts.items():
            if part.state_dict().keys() != progress[name].keys():
                raise ValueError(f"another kind of {name}")
            part.load_state_dict(progress[name])
        random = progress["random"]
        torch.set_rng_state(random["cpu"])
        if generator is not None:
            generator.set_state(random["loader"])
        if device.type == "cuda":
            torch.cuda.set_rng_state(random["device"], device)
        elif device.type == "mps":
            torch.mps.set_rng_state(random["device"])
        write_metrics(folder / "metrics.csv", progress["rows"])
    except OSError:
        raise
    except Exception as error:  # a last.pt of another version can fail to fit in any way
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise RunError(f"{folder / 'last.pt'} does not fit this version of the project: {reason}") from None
