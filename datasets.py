"""The data sets: read one into images and labels, and describe what depends on which one it is."""

import gzip
import hashlib
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision import datasets as torchvision_datasets

from config import ORIGINAL, TORCHVISION
from errors import UserError

Floats = NDArray[np.float64]
Images = tuple[Tensor, Tensor]  # uint8 (N, 28, 28), and their labels, int64 (N,)
T = TypeVar("T")

FOLDER = Path(__file__).parent / "data" / "mnist"
SHA256 = {  # of the archives
    "train-images-idx3-ubyte.gz": "0b367032e93c5d0cea0925647cfdb18614af8ee15f83e6f2fc2ad904a6835971",
    "train-labels-idx1-ubyte.gz": "1787548bbe0bff1ec2ecdc0ef292b02df999e2d1a6002d27500982c652b17203",
    "t10k-images-idx3-ubyte.gz": "1a1a05eab793c14bb050b398624a11b0ffd1a2953baed553b1b9bd079e2a20be",
    "t10k-labels-idx1-ubyte.gz": "b91679a0acfe4ba0e50a2437a903084cba1f5f92592b016a25a7dfd00455798b",
}
SIDE = 28  # pixels of an image
LONGEST_SIDE = 1000  # pixels of a picture; more would only cost time, as few are left in the end
NEARLY_ALL = 0.99  # of the training images, for what is said of them all
GREY = (0.299, 0.587, 0.114)  # share of red, green and blue in a grey (ITU-R BT.601, as in Pillow)


@dataclass(frozen=True)
class Dataset:
    """What depends on the data; it is stored with the weights. Raises ``UserError`` where it can't be."""

    name: str  # as ``--dataset`` has it
    classes: tuple[str, ...]  # their names, in the order of the labels
    mean: float  # of the training images' pixels, scaled to [0, 1]
    std: float
    light_on_dark: bool  # the images' background is dark
    digit_like: bool  # and they have MNIST's form: 20 pixels long, the centre of mass in the middle
    target_accuracy: float | None  # in percent; a run stops there unless told otherwise

    def __post_init__(self) -> None:
        target = self.target_accuracy
        good = isinstance(self.name, str) and isinstance(self.classes, tuple) and len(self.classes) >= 2
        good = good and all(isinstance(name, str) for name in self.classes)
        good = good and isinstance(self.mean, float) and isinstance(self.std, float)
        good = good and 0 <= self.mean <= 1 and 0 < self.std <= 1
        good = good and isinstance(self.light_on_dark, bool) and isinstance(self.digit_like, bool)
        if not (good and (target is None or (isinstance(target, float) and 0 <= target <= 100))):
            raise UserError(f"no data set can be like this: {self}")


MEAN, STD = 0.1307, 0.3081  # of MNIST
MNIST = Dataset("mnist", tuple("0123456789"), MEAN, STD, True, True, ORIGINAL.target_accuracy)


def read_archive(name: str) -> bytearray:
    """Return what the archive ``name`` of MNIST holds. Raises ``UserError`` if it is missing or damaged."""
    path = FOLDER / name
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror}): git checkout data") from None
    if hashlib.sha256(content).hexdigest() != SHA256[name]:
        raise UserError(f"{path} is damaged, its SHA-256 is not that of MNIST: git checkout data")
    return bytearray(gzip.decompress(content))


def load_mnist(train: bool) -> Images:
    """Read MNIST from the archives in data/mnist.

    Returns images, uint8 (N, 28, 28), and labels, int64 (N,) in 0 to 9: 60,000 for ``train``, else
    10,000, in the published order. Raises ``UserError`` when a file is missing or damaged.
    """
    part = "train" if train else "t10k"
    # The IDX headers, 16 and 8 bytes, need no parsing: the checksum has vouched for every byte.
    images = torch.frombuffer(read_archive(f"{part}-images-idx3-ubyte.gz"), dtype=torch.uint8, offset=16)
    labels = torch.frombuffer(read_archive(f"{part}-labels-idx1-ubyte.gz"), dtype=torch.uint8, offset=8)
    return images.view(-1, SIDE, SIDE), labels.long()


def load_torchvision(name: str, data_path: str, train: bool) -> tuple[Images, tuple[str, ...]]:
    """Read a data set by torchvision's class for it, which downloads it to ``data_path`` where it isn't yet.

    Returns images and labels like ``load_mnist``, and the classes' names. Raises ``UserError`` where it can't
    be downloaded, with what to fetch by hand, or a file is damaged; and ``OSError``.
    """
    kind = getattr(torchvision_datasets, TORCHVISION[name])
    raw = Path(data_path, kind.__name__, "raw")
    try:
        found = kind(data_path, train=train, download=True)
        images, labels, classes = found.data, found.targets, tuple(found.classes)
        if images.shape != (len(labels), SIDE, SIDE):
            raise ValueError(f"images of the shape {tuple(images.shape)}")
        if labels.min() < 0 or labels.max() >= len(classes):
            raise ValueError("a label that is no class")
    except Exception as error:  # torchvision's readers and urllib have no common error
        if isinstance(error, OSError) and error.filename is not None:
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        missing = [file for file, _ in kind.resources if not (raw / file.removesuffix(".gz")).exists()]
        if missing:
            how = f"fetch {', '.join(missing)} from {kind.mirrors[0]} and gunzip them into {raw}"
            raise UserError(f"{name} can't be downloaded ({reason}): {how}") from None
        part = raw / ("train-*" if train else "t10k-*")
        raise UserError(f"{part} are damaged ({reason}): delete them, to download them again") from None
    return (images, labels), classes


def load_folder(data_path: str, train: bool) -> tuple[Images, tuple[str, ...]]:
    """Read pictures from folders named for their classes, in the layout of torchvision's ``ImageFolder``.

    They are in train/CLASS and test/CLASS under ``data_path``; or in CLASS alone, of which a fifth, rounded
    up, is the test set, always the same for the same files, and each class keeps its share.
    Returns images as ``fit`` makes them and labels, in the order of ``ImageFolder``, and the classes' names.
    Raises ``UserError`` where that can't be, naming the file or folder, and ``OSError``.
    """
    root = Path(data_path)
    is_split = (root / "train").is_dir() and (root / "test").is_dir()
    if not is_split and any(path.is_dir() for path in (root / "train").glob("*")):
        raise UserError(f"--data-path {root}: classes lie in train, so test is needed beside it")
    folder = root / ("train" if train else "test") if is_split else root
    try:
        found = torchvision_datasets.ImageFolder(str(folder))
    except OSError as error:  # FileNotFoundError also where a class, or the folder, is empty
        raise UserError(f"--data-path {folder}: {error.strerror or error}") from None
    classes, labels = tuple(found.classes), torch.tensor(found.targets)
    if len(classes) < 2:
        raise UserError(f"--data-path {folder}: pictures of one class only, {classes[0]!r}: two are needed")
    samples = found.samples
    if not is_split:
        if (alone := labels.bincount() == 1).any():
            path = samples[int((labels == alone.nonzero()[0]).nonzero()[0])][0]
            raise UserError(
                f"{path}: the only picture of its class: one to train on and one to test are needed"
            )
        index = split_holdout(labels, -(-len(labels) // 5))[0 if train else 1]
        samples, labels = [samples[i] for i in index.tolist()], labels[index]
    images = np.empty((len(samples), SIDE, SIDE), dtype=np.uint8)
    for i, (path, _) in enumerate(samples):
        try:
            with open(path, "rb") as file:
                images[i] = read_picture(file, fit)
        except PictureError as error:
            raise UserError(f"{path}: {error}") from None
    return (torch.from_numpy(images), labels), classes


def split_holdout(labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Choose ``count`` of the ``labels``, int64 (N,), so that each class keeps its share.

    Returns the indices of the others and of the chosen, int64, always the same for the same labels.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(9798))
    by_class = order[labels[order].argsort(stable=True)]
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    chosen[by_class[torch.arange(count) * len(labels) // max(count, 1)]] = True
    return (~chosen).nonzero().view(-1), chosen.nonzero().view(-1)


def load(name: str, data_path: str, train: bool) -> tuple[Images, tuple[str, ...]]:
    """Read the training or the test set of the data set ``name``: images, labels, and the classes' names.

    Raises ``UserError``, which says how to get what is missing, and ``OSError``.
    """
    if name == MNIST.name:
        return load_mnist(train), MNIST.classes
    return load_folder(data_path, train) if name == "folder" else load_torchvision(name, data_path, train)


def load_train(name: str, data_path: str) -> tuple[Dataset, Images]:
    """Read the training set of the data set ``name``, and describe it. Raises what ``load`` does."""
    images, classes = load(name, data_path, train=True)
    return MNIST if name == MNIST.name else describe(name, classes, images[0]), images


def load_test(dataset: Dataset, data_path: str) -> Images:
    """Read the test set of ``dataset``. Raises what ``load`` does, also where its classes are others."""
    images, classes = load(dataset.name, data_path, train=False)
    if classes != dataset.classes:
        differing = ", ".join(sorted(set(classes) ^ set(dataset.classes)))
        raise UserError(f"--data-path {data_path}: the test set has not the classes trained on: {differing}")
    return images


def describe(name: str, classes: tuple[str, ...], images: Tensor) -> Dataset:
    """Measure what there is to know of the training ``images``, uint8 (N, 28, 28).

    Mean and deviation are rounded to four digits, as MNIST's are. Raises ``UserError`` if nothing is in them.
    """
    counts = torch.bincount(images.flatten(), minlength=256).double()
    levels, total = torch.arange(256, dtype=torch.float64) / 255, counts.sum()
    mean = (counts * levels).sum() / total
    std = round(((counts * (levels - mean) ** 2).sum() / total).sqrt().item(), 4)
    if std == 0:
        raise UserError(f"{name}: all pixels of the training images are alike")
    background = np.median(border(images.numpy().transpose(1, 2, 0)), axis=0)
    light_on_dark = bool((background < 64).mean() >= NEARLY_ALL)
    digit_like = light_on_dark and bool(has_mnists_form(images).double().mean() >= NEARLY_ALL)
    return Dataset(name, classes, round(mean.item(), 4), std, light_on_dark, digit_like, None)


def has_mnists_form(images: Tensor) -> Tensor:
    """Find which ``images``, uint8 (N, 28, 28), have the form of MNIST's, bool (N,).

    They are 20 pixels high or wide, and their centre of mass is at 14, to half a pixel. 99.7 % of MNIST's
    training images have that form, and none of Fashion-MNIST's.
    """
    rows, columns = images.sum(dim=2).double(), images.sum(dim=1).double()
    position = torch.arange(SIDE, dtype=torch.float64)
    centered = [((sums @ position) / sums.sum(dim=1) - 14).abs() <= 0.5 for sums in (rows, columns)]
    length = torch.maximum((rows > 0).sum(dim=1), (columns > 0).sum(dim=1))
    return centered[0] & centered[1] & (length == 20)


class PictureError(UserError):
    """No image can be had from a picture; the message says why."""


def read_picture(file: BinaryIO, prepare: Callable[[Image.Image], T]) -> T:
    """Return what ``prepare`` makes of the picture in ``file``; of an animation's first frame.

    Raises ``PictureError`` where there is none, or a damaged or enormous one.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of damaged metadata: if the pixels can be had, that is enough
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(file) as picture:
                return prepare(picture)
        except PictureError:
            raise
        except UnidentifiedImageError:
            raise PictureError("it is not a picture that Pillow can read") from None
        except (Image.DecompressionBombWarning, Image.DecompressionBombError):
            raise PictureError(f"it is too large: the limit is {Image.MAX_IMAGE_PIXELS:,} pixels") from None
        except Exception as error:  # Pillow's decoders have no common error: each has its own
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise PictureError(f"it is damaged: {reason}") from None


def read_colors(picture: Image.Image) -> Floats:
    """Return the colours of ``picture``, RGB (H, W, 3) in [0, 1]: steps 1 to 3 in predict/preprocess.py.

    Raises what Pillow's decoders raise where the file is damaged, which can be any ``Exception``.
    """
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I;16"):
        low, high, picture = 0.0, 65535.0, picture.convert("I")
    elif picture.mode in ("I", "F"):
        low, high = (float(value) for value in picture.getextrema())  # type: ignore[arg-type]
    else:
        low, high, picture = 0.0, 255.0, picture.convert("RGBA")
    longer = max(picture.size)
    if longer > LONGEST_SIDE:
        picture = picture.reduce(math.ceil(longer / LONGEST_SIDE))
    values = (np.asarray(picture, dtype=np.float64) - low) / max(high - low, 1e-9)
    if values.ndim == 2:
        return np.repeat(values[:, :, None], 3, axis=2)
    rgb, alpha = values[:, :, :3], values[:, :, 3:]
    opaque = (rgb * alpha).sum(axis=(0, 1)) / max(alpha.sum(), 1e-9)
    ground = 1.0 if (1 - opaque).max() >= opaque.max() else 0.0
    return np.asarray(rgb * alpha + ground * (1 - alpha))


def border(pixels: NDArray[Any]) -> NDArray[Any]:
    """Return the outermost of ``pixels``, (H, W, …), each once, as (n, …)."""
    return np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])


def fit(picture: Image.Image) -> NDArray[np.uint8]:
    """Return ``picture`` as a grey image, uint8 (28, 28): all of it, its aspect kept, in the middle.

    The longer side becomes 28 pixels by Pillow's bicubic filter, and what is left over the median of the
    picture's border; a grey picture of 28×28 stays as it is. Raises what ``read_colors`` does.
    """
    picture.draft(None, (8 * SIDE, 8 * SIDE))  # a JPEG of many pixels need not be decoded in full
    values = np.floor(read_colors(picture) @ GREY * 255 + 0.5).astype(np.uint8)
    grey, scale = Image.fromarray(values), SIDE / max(values.shape)
    width, height = (max(1, math.floor(side * scale + 0.5)) for side in grey.size)
    image = Image.new("L", (SIDE, SIDE), int(np.median(border(values))))
    image.paste(grey.resize((width, height)), ((SIDE - width) // 2, (SIDE - height) // 2))
    return np.array(image)
