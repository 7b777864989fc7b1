"""The data sets: what is read is what lies there, and what can't be read is named with what to do."""

import gzip
import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from conftest import ROOT, Set
from PIL import Image
from torch import Tensor
from torchvision.datasets import KMNIST, ImageFolder

import datasets
from config import ORIGINAL
from datasets import (
    MEAN,
    MNIST,
    STD,
    Dataset,
    describe,
    fit,
    load_folder,
    load_mnist,
    load_test,
    load_torchvision,
    load_train,
    read_picture,
    split_holdout,
)
from runtime.errors import UsageError, UserError
from utils import get_loaders

CPU = torch.device("cpu")
PUBLISHED = {  # SHA-256 of the files that MNIST's authors published, uncompressed
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


@pytest.fixture(scope="module")
def torchvision_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that torchvision's MNIST reads, unpacked from the archives."""
    root = tmp_path_factory.mktemp("data")
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, digest in PUBLISHED.items():
        content = gzip.decompress((ROOT / "data" / "mnist" / f"{name}.gz").read_bytes())
        assert hashlib.sha256(content).hexdigest() == digest
        (raw / name).write_bytes(content)
    return root


def test_same_data_as_torchvision(torchvision_root: Path, train_set: Set, test_set: Set) -> None:
    for train, (images, labels) in [(True, train_set), (False, test_set)]:
        theirs = torchvision.datasets.MNIST(str(torchvision_root), train=train)
        assert images.shape == (60_000 if train else 10_000, 28, 28) and images.dtype == torch.uint8
        assert torch.equal(images, theirs.data) and torch.equal(labels, theirs.targets)


@pytest.mark.parametrize("harm", ["missing", "empty", "half", "one bit", "another of the four", "a folder"])
def test_a_damaged_file_is_named_with_how_to_get_it_back(
    harm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(ROOT / "data" / "mnist", tmp_path / "mnist")
    monkeypatch.setattr(datasets, "FOLDER", folder)
    path = folder / "t10k-labels-idx1-ubyte.gz"
    content = path.read_bytes()
    path.unlink()
    if harm == "a folder":
        path.mkdir()
    elif harm != "missing":
        flipped = content[:99] + bytes([content[99] ^ 1]) + content[100:]
        other = (folder / "train-labels-idx1-ubyte.gz").read_bytes()
        half = content[: len(content) // 2]
        path.write_bytes({"empty": b"", "half": half, "one bit": flipped}.get(harm, other))
    load_mnist(train=True)
    with pytest.raises(UserError) as caught:
        load_mnist(train=False)
    message = str(caught.value)
    assert message.startswith(str(path)) and message.endswith(": git checkout data") and "\n" not in message


def test_reading_writes_nothing() -> None:
    def state() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (ROOT / "data").rglob("*")}

    before = state()
    get_loaders(ORIGINAL, CPU)
    assert state() == before


def test_measuring_mnist_gives_its_constants(train_set: Set) -> None:
    pixels = train_set[0].double() / 255
    assert round(pixels.mean().item(), 4) == MEAN
    assert round(pixels.std(unbiased=False).item(), 4) == STD
    found = describe("folder", MNIST.classes, train_set[0])
    assert found == Dataset("folder", MNIST.classes, MEAN, STD, True, True, None)


def test_what_is_said_of_the_images_form(train_set: Set) -> None:
    def form(images: Tensor) -> tuple[bool, bool]:
        found = describe("folder", MNIST.classes, images)
        return found.light_on_dark, found.digit_like

    digits = train_set[0][:2000]
    assert form(digits) == (True, True)
    assert form(255 - digits) == (False, False)
    assert form(digits.roll(2, dims=2)) == (True, False)  # off the centre
    assert form(digits[:, ::2, ::2].repeat_interleave(2, 1).repeat_interleave(2, 2) // 2 + 100) == (
        False,
        False,
    )
    with pytest.raises(UserError, match="all pixels of the training images are alike"):
        form(torch.full((9, 28, 28), 7, dtype=torch.uint8))


def test_holdout_is_stratified_disjoint_and_always_the_same(train_set: Set) -> None:
    labels = train_set[1]
    kept, chosen = split_holdout(labels, 10_000)
    assert len(chosen) == 10_000
    assert torch.equal(torch.cat([kept, chosen]).sort().values, torch.arange(60_000))
    share = labels[chosen].bincount(minlength=10) * 6 - labels.bincount(minlength=10)
    assert share.abs().max() <= 6
    assert torch.equal(split_holdout(labels, 10_000)[1], chosen)


def test_holdout_keeps_the_test_set_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def training_set_only(train: bool) -> Set:
        assert train, "the test set was read"
        return load_mnist(train)

    monkeypatch.setattr(datasets, "load_mnist", training_set_only)
    train_loader, holdout_loader = get_loaders(replace(ORIGINAL, holdout=10_000), CPU)
    assert len(train_loader.labels) == 50_000 and len(holdout_loader.labels) == 10_000


def write_pictures(root: Path, images: Tensor, labels: Tensor) -> Path:
    """Write ``images`` as PNGs into folders named for their labels; the files' names keep their order."""
    for i, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        (root / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.numpy()).save(root / str(label) / f"{i:05}.png")
    return root


def write_idx(path: Path, content: Tensor) -> None:
    """Write ``content``, uint8, in the format of MNIST's files: type, dimensions, sizes, then bytes."""
    header = bytes([0, 0, 8, content.ndim]) + b"".join(size.to_bytes(4, "big") for size in content.shape)
    path.write_bytes(header + content.numpy().tobytes())


@pytest.fixture
def kmnist(tmp_path: Path, test_set: Set) -> Path:
    """A folder with 200 and 50 images of MNIST as KMNIST, where torchvision looks for it."""
    raw = tmp_path / "data" / "KMNIST" / "raw"
    raw.mkdir(parents=True)
    for part, chosen in (("train", slice(0, 200)), ("t10k", slice(200, 250))):
        write_idx(raw / f"{part}-images-idx3-ubyte", test_set[0][chosen])
        write_idx(raw / f"{part}-labels-idx1-ubyte", test_set[1][chosen].byte())
    return tmp_path / "data"


@pytest.mark.parametrize("count", [700, pytest.param(7000, marks=pytest.mark.slow)])
def test_mnist_as_a_folder_of_pictures_is_mnist(
    count: int, train_set: Set, test_set: Set, tmp_path: Path
) -> None:
    sets = {
        "train": [part[: count * 6 // 7] for part in train_set],
        "test": [p[: count // 7] for p in test_set],
    }
    for name, (images, labels) in sets.items():
        write_pictures(tmp_path / name, images, labels)
    for name, (images, labels) in sets.items():
        (found, found_labels), classes = load_folder(str(tmp_path), train=name == "train")
        order = labels.argsort(stable=True)  # ImageFolder's: by class, then by file name
        assert torch.equal(found, images[order]) and torch.equal(found_labels, labels[order])
        assert found.dtype == torch.uint8 and found_labels.dtype == torch.int64
        assert classes == MNIST.classes
        theirs = ImageFolder(str(tmp_path / name))
        assert [label for _, label in theirs.samples] == found_labels.tolist()
    dataset, _ = load_train("folder", str(tmp_path))
    assert (dataset.name, dataset.digit_like, dataset.target_accuracy) == ("folder", True, None)


def test_of_classes_alone_a_stratified_fifth_is_the_test_set(train_set: Set, tmp_path: Path) -> None:
    images, labels = train_set[0][:203], train_set[1][:203]
    write_pictures(tmp_path, images, labels)
    (kept, kept_labels), _ = load_folder(str(tmp_path), train=True)
    (chosen, chosen_labels), _ = load_folder(str(tmp_path), train=False)
    assert len(chosen) == 41 and len(kept) == 162

    def as_set(images: Tensor) -> set[bytes]:
        return {image.numpy().tobytes() for image in images}

    assert as_set(kept) | as_set(chosen) == as_set(images) and not as_set(kept) & as_set(chosen)
    share = chosen_labels.bincount(minlength=10) * 5 - labels.bincount(minlength=10)
    assert share.abs().max() <= 5
    assert torch.equal(kept_labels.bincount() + chosen_labels.bincount(), labels.bincount())
    assert torch.equal(load_folder(str(tmp_path), train=False)[0][0], chosen)


def picture(mode: str, size: tuple[int, int], seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "CMYK", "I;16"])
@pytest.mark.parametrize("size", [(28, 28), (56, 56), (90, 30), (7, 20), (1, 500)])
def test_any_picture_is_fitted_in(mode: str, size: tuple[int, int]) -> None:
    if mode == "I;16":
        grey = picture("L", size)
        given = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    else:
        given = picture(mode, size)
        grey = given.convert("RGB").convert("L")
    found = fit(given)
    assert found.shape == (28, 28) and found.dtype == np.uint8
    width, height = (max(1, round(28 * side / max(size))) for side in size)
    left, top = (28 - width) // 2, (28 - height) // 2
    inside = found[top : top + height, left : left + width].astype(int)
    expected = np.asarray(grey.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(inside - expected).max() <= 2  # Pillow rounds colours to grey otherwise
    if mode == "L" and size == (28, 28):
        assert np.array_equal(found, np.asarray(grey))
    around = np.asarray(grey).astype(int)
    edge = [*around[0], *around[-1], *around[1:-1, 0], *around[1:-1, -1]]
    outside = np.delete(
        found.flatten(), np.arange(784).reshape(28, 28)[top : top + height, left : left + width]
    )
    assert all(abs(int(value) - np.median(edge)) <= 2 for value in outside)


def test_a_large_jpeg_is_read_without_decoding_it_in_full(tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 3000).astype(np.uint8)
    Image.fromarray(np.tile(ramp, (2000, 1))).save(tmp_path / "large.jpg", quality=95)
    with open(tmp_path / "large.jpg", "rb") as file:
        found = read_picture(file, fit)
    # 3000 × 2000 become 28 × 19, from row 4 on.
    assert np.abs(found[10].astype(int) - (np.arange(28) + 0.5) / 28 * 255).max() <= 6


def make_folder(root: Path) -> None:
    for split in ("train", "test"):
        for number, name in enumerate(["cat", "dog"]):
            (root / split / name).mkdir(parents=True)
            for i in range(3):
                picture("L", (30, 20), 10 * number + i).save(root / split / name / f"{i}.png")


def do_harm(harm: str, root: Path) -> None:
    """Damage the folder that ``make_folder`` made at ``root``."""
    gone = {
        "nothing there": ".",
        "no test set": "test",
        "no pictures": "*/*/*.png",
        "an empty class": "test/dog/*",
    }
    for path in [root] if harm == "nothing there" else list(root.glob(gone.get(harm, "*/dog"))):
        if harm in gone or harm == "one class":
            path.unlink() if path.is_file() else shutil.rmtree(path)
    cut = root / "test" / "cat" / "2.png"
    if harm == "a class more":
        shutil.copytree(root / "test" / "cat", root / "test" / "cow")
    elif harm == "text":
        (root / "train" / "dog" / "1.png").write_text("dog")
    elif harm == "half":
        cut.write_bytes(cut.read_bytes()[:200])
    elif harm == "a dead link":
        (root / "test" / "cat" / "9.png").symlink_to("nowhere")


HARMS = {  # what is done to a good folder; what the message says
    "nothing there": "No such file",
    "no test set": "test is needed beside it",
    "no pictures": "cat, dog",
    "an empty class": "classes dog",
    "one class": "one class only, 'cat'",
    "a class more": ": cow",
    "text": "dog/1.png: it is not a picture",
    "half": "cat/2.png: it is damaged",
    "a dead link": "cat/9.png",
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_folder_that_cannot_be_used_is_named(harm: str, tmp_path: Path) -> None:
    root = tmp_path / "pictures"
    make_folder(root)
    get_loaders(replace(ORIGINAL, dataset="folder"), CPU, str(root))
    do_harm(harm, root)
    with pytest.raises((UserError, OSError)) as caught:
        get_loaders(replace(ORIGINAL, dataset="folder"), CPU, str(root))
    text = f"{getattr(caught.value, 'filename', None)}: {caught.value}"
    assert str(root) in text and HARMS[harm] in text and "\n" not in text


def test_a_class_of_one_picture_cannot_be_split(tmp_path: Path) -> None:
    for name in ("a/1.png", "a/2.png", "b/3.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        picture("L", (28, 28)).save(tmp_path / name)
    with pytest.raises(UserError, match=r"b/3\.png: the only picture of its class"):
        load_folder(str(tmp_path), train=True)
    picture("L", (28, 28), 1).save(tmp_path / "b" / "4.png")
    parts = [load_folder(str(tmp_path), train)[0][1] for train in (True, False)]
    assert sorted(set(parts[0].tolist())) == [0, 1] and len(parts[1]) == 1


def test_a_holdout_of_all_images_is_refused(kmnist: Path) -> None:
    train_loader, loader = get_loaders(replace(ORIGINAL, dataset="kmnist", holdout=199), CPU, str(kmnist))
    assert (len(train_loader.labels), len(loader.labels)) == (1, 199)
    with pytest.raises(UsageError, match="argument --holdout: must be less than the 200 training images"):
        get_loaders(replace(ORIGINAL, dataset="kmnist", holdout=200), CPU, str(kmnist))


def test_kmnist_is_read_and_measured(kmnist: Path, test_set: Set) -> None:
    dataset, (images, labels) = load_train("kmnist", str(kmnist))
    assert torch.equal(images, test_set[0][:200]) and torch.equal(labels, test_set[1][:200])
    assert dataset.name == "kmnist" and dataset.classes == tuple(KMNIST.classes)
    pixels = test_set[0][:200].double() / 255
    assert dataset.mean == round(pixels.mean().item(), 4)
    assert dataset.std == round(pixels.std(unbiased=False).item(), 4)
    assert dataset.target_accuracy is None
    images, labels = load_test(dataset, str(kmnist))
    assert torch.equal(images, test_set[0][200:250]) and torch.equal(labels, test_set[1][200:250])
    loader = get_loaders(replace(ORIGINAL, dataset="kmnist"), CPU, str(kmnist))[1]
    data = torch.cat([data for data, _ in loader])
    expected = (pixels.new_tensor(test_set[0][200:250].numpy()) / 255 - dataset.mean) / dataset.std
    torch.testing.assert_close(data[:, 0].double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("harm", ["half", "empty", "another label", "other sizes", "labels as images"])
def test_a_damaged_file_of_torchvisions_is_named(harm: str, kmnist: Path) -> None:
    raw = kmnist / "KMNIST" / "raw"
    images, labels = raw / "train-images-idx3-ubyte", raw / "train-labels-idx1-ubyte"
    if harm == "half":
        images.write_bytes(images.read_bytes()[:5000])
    elif harm == "empty":
        labels.write_bytes(b"")
    elif harm == "another label":
        labels.write_bytes(labels.read_bytes()[:-1] + b"\x0a")
    elif harm == "other sizes":
        write_idx(images, torch.zeros(200, 32, 32, dtype=torch.uint8))
    else:
        shutil.copy(labels, images)
    with pytest.raises(UserError, match=r"train-\* are damaged .*: delete them") as caught:
        load_torchvision("kmnist", str(kmnist), train=True)
    assert str(raw) in str(caught.value) and "\n" not in str(caught.value)
    load_torchvision("kmnist", str(kmnist), train=False)


def test_where_the_mirror_cannot_be_reached_the_files_are_named(
    kmnist: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(KMNIST, "mirrors", ["http://127.0.0.1:9/"])  # nobody listens at that port
    raw = kmnist / "KMNIST" / "raw"
    (raw / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(UserError) as caught:
        load_torchvision("kmnist", str(kmnist), train=True)
    how = f"fetch t10k-labels-idx1-ubyte.gz from http://127.0.0.1:9/ and gunzip them into {raw}"
    assert str(caught.value).startswith("kmnist can't be downloaded (") and str(caught.value).endswith(how)
    shutil.rmtree(kmnist)
    with pytest.raises(UserError) as caught:
        load_torchvision("kmnist", str(kmnist), train=True)
    assert all(f"{name}.gz" in str(caught.value) for name in PUBLISHED) and "\n" not in str(caught.value)


@pytest.mark.slow
def test_fashion_mnist_by_the_true_files(tmp_path: Path) -> None:
    """The files of Debian's package dataset-fashion-mnist, where it is installed."""
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for name in PUBLISHED:
        archive = Path("/usr/share/datasets/fashion-mnist", f"{name}.gz")
        if not archive.exists():
            pytest.skip("apt-get install dataset-fashion-mnist")
        (raw / name).write_bytes(gzip.decompress(archive.read_bytes()))
    dataset, (images, labels) = load_train("fashion-mnist", str(tmp_path))
    assert dataset.classes[9] == "Ankle boot" and labels.bincount().tolist() == [6000] * 10
    # The figures that most projects use.
    assert (dataset.mean, dataset.std) == (0.286, 0.353)
    assert (dataset.light_on_dark, dataset.digit_like) == (True, False)
    assert images.shape == (60_000, 28, 28) and len(load_test(dataset, str(tmp_path))[1]) == 10_000
