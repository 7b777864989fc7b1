"""Data sets of MNIST's form, which torchvision downloads."""

from pathlib import Path

from torchvision import datasets

from datasets.mnist import SIDE, Images
from runtime.errors import UserError


def load_torchvision(name: str, kind: str, path: str, train: bool) -> tuple[Images, tuple[str, ...]]:
    """Read the data set ``name`` with torchvision's class ``kind``, which downloads it to ``path`` if needed.

    Returns images and labels, and the names of the classes. If the download fails, the error says which
    files to fetch by hand.
    """
    source = getattr(datasets, kind)
    raw = Path(path, kind, "raw")
    try:
        dataset = source(path, train=train, download=True)
        images, labels, classes = dataset.data, dataset.targets, tuple(dataset.classes)
        if images.shape != (len(labels), SIDE, SIDE):
            raise ValueError(f"its images have the shape {tuple(images.shape)}")
        if labels.max() >= len(classes):
            raise ValueError("it has a label beyond its classes")
    except Exception as error:  # torchvision's readers and urllib have no common error
        if isinstance(error, OSError) and error.filename is not None:
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        missing = [file for file, _ in source.resources if not (raw / file.removesuffix(".gz")).exists()]
        if missing:
            solution = f"fetch {', '.join(missing)} from {source.mirrors[0]} and gunzip them into {raw}"
            raise UserError(f"{name} can't be downloaded ({reason}): {solution}") from None
        files = raw / ("train-*" if train else "t10k-*")
        raise UserError(f"{files} are damaged ({reason}): delete them, to download them again") from None
    return (images, labels), classes
