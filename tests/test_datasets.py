"""MNIST and torchvision's data sets: the data is right, and errors name damaged files and the remedy."""

import gzip
import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision
from conftest import ROOT, Set
from torch import Tensor
from torchvision.datasets import KMNIST

import datasets.mnist
from config import ORIGINAL
from datasets import MNIST, load_test, split_holdout
from datasets.describe import describe, has_mnists_form
from datasets.torchvision import load_torchvision
from runtime.errors import UsageError, UserError
from utils import get_loaders

CPU = torch.device("cpu")
PUBLISHED = {  # SHA-256 of the uncompressed files that MNIST's authors published
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


@pytest.fixture(scope="module")
def torchvision_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unpack the archives into a folder that torchvision's MNIST reads."""
    root = tmp_path_factory.mktemp("data")
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, digest in PUBLISHED.items():
        content = gzip.decompress((ROOT / "data" / "mnist" / f"{name}.gz").read_bytes())
        assert hashlib.sha256(content).hexdigest() == digest
        (raw / name).write_bytes(content)
    return root


def test_data_equals_torchvisions(torchvision_root: Path, train_set: Set, test_set: Set) -> None:
    for train, (images, labels) in [(True, train_set), (False, test_set)]:
        theirs = torchvision.datasets.MNIST(str(torchvision_root), train=train)
        assert images.shape == (60_000 if train else 10_000, 28, 28) and images.dtype == torch.uint8
        assert torch.equal(images, theirs.data) and torch.equal(labels, theirs.targets)


@pytest.mark.parametrize("harm", ["missing", "empty", "truncated", "one bit", "another archive", "a folder"])
def test_a_damaged_archive_is_named_with_the_remedy(
    harm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"):
        shutil.copy(ROOT / "data" / "mnist" / name, tmp_path)
    monkeypatch.setattr("datasets.mnist.FOLDER", tmp_path)
    load_mnist = datasets.mnist.load_mnist  # conftest keeps what the other has read
    load_mnist(train=False)
    path = tmp_path / "t10k-labels-idx1-ubyte.gz"
    content = path.read_bytes()
    path.unlink()
    if harm == "a folder":
        path.mkdir()
    elif harm != "missing":
        flipped = content[:99] + bytes([content[99] ^ 1]) + content[100:]
        other = (tmp_path / "t10k-images-idx3-ubyte.gz").read_bytes()
        damaged = {"empty": b"", "truncated": content[: len(content) // 2], "one bit": flipped}
        path.write_bytes(damaged.get(harm, other))
    with pytest.raises(UserError) as caught:
        load_mnist(train=False)
    message = str(caught.value)
    remedy = ": git checkout data/mnist, or copy the folder from another copy of the project"
    assert message.startswith(f"{path} is missing or damaged (") and message.endswith(remedy)
    assert "\n" not in message


def test_reading_writes_nothing() -> None:
    def state() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (ROOT / "data").rglob("*")}

    before = state()
    get_loaders(ORIGINAL, CPU)
    assert state() == before


def test_measuring_mnist_gives_its_constants(train_set: Set) -> None:
    std, mean = torch.std_mean(train_set[0] / 255)
    assert (round(mean.item(), 4), round(std.item(), 4)) == (MNIST.mean, MNIST.std) == (0.1307, 0.3081)
    assert describe("folder", MNIST.classes, train_set[0]) == replace(MNIST, name="folder")
    with pytest.raises(UserError, match="kmnist: its folder has MNIST's images in place of its own"):
        describe("kmnist", MNIST.classes, train_set[0])


def test_mnists_form_against_a_loop(train_set: Set) -> None:
    images = torch.cat(
        [train_set[0][:200], train_set[0][:50].roll(1, dims=1), train_set[0][:50].rot90(dims=(1, 2))]
    )
    images = torch.cat([images, images.new_zeros(1, 28, 28)])
    for image, found in zip(images, has_mnists_form(images), strict=True):
        rows, columns = image.nonzero(as_tuple=True)
        ink = image[rows, columns].double()
        expected = len(ink) > 0 and max(len(rows.unique()), len(columns.unique())) == 20
        for places in (rows, columns):
            expected = expected and abs((places * ink).sum() / ink.sum() - 14) <= 0.5
        assert bool(expected) == bool(found)


def test_the_form_of_the_images_is_measured(train_set: Set) -> None:
    def form(images: Tensor) -> tuple[bool, bool]:
        dataset = describe("folder", MNIST.classes, images)
        return dataset.light_on_dark, dataset.digit_like

    digits = train_set[0][:2000]
    assert form(digits) == (True, True)
    assert form(255 - digits) == (False, False)
    assert form(digits.roll(2, dims=2)) == (True, False)  # off the centre
    assert form(digits // 2 + 100) == (False, False)  # on grey
    with pytest.raises(UserError, match="all pixels of the training images have the same value"):
        form(torch.full((9, 28, 28), 7, dtype=torch.uint8))


def test_holdout_is_stratified_disjoint_and_always_the_same(train_set: Set) -> None:
    labels = train_set[1]
    kept, held_out = split_holdout(labels, 10_000)
    assert len(held_out) == 10_000
    assert torch.equal(torch.cat([kept, held_out]).sort().values, torch.arange(60_000))
    excess = labels[held_out].bincount(minlength=10) * 6 - labels.bincount(minlength=10)
    assert excess.abs().max() <= 6
    assert torch.equal(split_holdout(labels, 10_000)[1], held_out)


def test_what_is_held_out_is_evaluated_in_place_of_the_test_set(train_set: Set) -> None:
    train_loader, holdout_loader = get_loaders(replace(ORIGINAL, holdout=10_000), CPU)
    kept, held_out = split_holdout(train_set[1], 10_000)
    for loader, index in ((train_loader, kept), (holdout_loader, held_out)):
        assert torch.equal(loader.images, train_set[0][index]) and torch.equal(
            loader.labels, train_set[1][index]
        )


def write_idx(path: Path, content: Tensor) -> None:
    """Write ``content``, uint8, in the IDX format: type, number of dimensions, sizes, bytes."""
    header = bytes([0, 0, 8, content.ndim]) + b"".join(size.to_bytes(4, "big") for size in content.shape)
    path.write_bytes(header + content.numpy().tobytes())


@pytest.fixture
def kmnist(tmp_path: Path, test_set: Set) -> Path:
    """Write 200 and 50 images of MNIST where torchvision looks for KMNIST."""
    raw = tmp_path / "data" / "KMNIST" / "raw"
    raw.mkdir(parents=True)
    for part, indices in (("train", slice(0, 200)), ("t10k", slice(200, 250))):
        write_idx(raw / f"{part}-images-idx3-ubyte", test_set[0][indices])
        write_idx(raw / f"{part}-labels-idx1-ubyte", test_set[1][indices].byte())
    return tmp_path / "data"


def test_a_holdout_of_all_images_is_refused(kmnist: Path) -> None:
    train_loader, loader = get_loaders(replace(ORIGINAL, dataset="kmnist", holdout=199), CPU, str(kmnist))
    assert (len(train_loader.labels), len(loader.labels)) == (1, 199)
    with pytest.raises(UsageError, match="argument --holdout: must be less than the 200 training images"):
        get_loaders(replace(ORIGINAL, dataset="kmnist", holdout=200), CPU, str(kmnist))


def test_kmnist_is_read_and_measured(kmnist: Path, test_set: Set) -> None:
    dataset, (images, labels), test = datasets.load("kmnist", str(kmnist))
    assert torch.equal(images, test_set[0][:200]) and torch.equal(labels, test_set[1][:200])
    assert dataset.name == "kmnist" and dataset.classes == tuple(KMNIST.classes)
    pixels = test_set[0][:200].double() / 255
    assert dataset.mean == round(pixels.mean().item(), 4)
    assert dataset.std == round(pixels.std(unbiased=False).item(), 4)
    content = (test_set[0][:200].numpy().tobytes(), test_set[1][:200].numpy().tobytes())
    assert dataset.train_hash == hashlib.sha256(b"".join(content)).hexdigest() != dataset.test_hash
    assert dataset.path == str(kmnist)
    for images, labels in (test, load_test(dataset)):
        assert torch.equal(images, test_set[0][200:250]) and torch.equal(labels, test_set[1][200:250])
    loader = get_loaders(replace(ORIGINAL, dataset="kmnist"), CPU, str(kmnist))[1]
    data = torch.cat([data for data, _ in loader])
    expected = (pixels.new_tensor(test_set[0][200:250].numpy()) / 255 - dataset.mean) / dataset.std
    torch.testing.assert_close(data[:, 0].double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("harm", ["truncated", "empty", "another label", "other sizes", "labels as images"])
def test_a_damaged_file_of_torchvision_is_named(harm: str, kmnist: Path) -> None:
    raw = kmnist / "KMNIST" / "raw"
    images, labels = raw / "train-images-idx3-ubyte", raw / "train-labels-idx1-ubyte"
    if harm == "truncated":
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
        load_torchvision("kmnist", "KMNIST", str(kmnist), train=True)
    assert str(raw) in str(caught.value) and "\n" not in str(caught.value)
    load_torchvision("kmnist", "KMNIST", str(kmnist), train=False)


def test_if_the_download_fails_the_missing_files_are_named(
    kmnist: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(KMNIST, "mirrors", ["http://127.0.0.1:9/"])  # no server has this port
    raw = kmnist / "KMNIST" / "raw"
    (raw / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(UserError) as caught:
        load_torchvision("kmnist", "KMNIST", str(kmnist), train=True)
    remedy = f"fetch t10k-labels-idx1-ubyte.gz from http://127.0.0.1:9/ and gunzip them into {raw}"
    assert str(caught.value).startswith("kmnist can't be downloaded (") and str(caught.value).endswith(remedy)
    shutil.rmtree(kmnist)
    with pytest.raises(UserError) as caught:
        load_torchvision("kmnist", "KMNIST", str(kmnist), train=True)
    assert all(f"{name}.gz" in str(caught.value) for name in PUBLISHED) and "\n" not in str(caught.value)


def test_a_changed_test_set_is_named(kmnist: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset, _, _ = datasets.load("kmnist", str(kmnist))
    load_test(dataset)
    assert capsys.readouterr().err == ""
    write_idx(kmnist / "KMNIST" / "raw" / "t10k-labels-idx1-ubyte", torch.ones(50, dtype=torch.uint8))
    load_test(dataset)
    assert f"warning: {kmnist}: not the test set of the training run" in capsys.readouterr().err
    with pytest.raises(UserError, match="training and test set differ in the classes x"):
        load_test(replace(dataset, classes=(*dataset.classes, "x")))


def test_mnist_needs_no_path_and_says_so_once(capsys: pytest.CaptureFixture[str], train_set: Set) -> None:
    dataset, (images, _), _ = datasets.load("mnist", "/somewhere")
    assert dataset == MNIST and torch.equal(images, train_set[0])
    assert capsys.readouterr().err == "warning: --data-path is not used: MNIST is included\n"


@pytest.mark.slow
def test_fashion_mnist_as_published(tmp_path: Path) -> None:
    """Read the files of Debian's package dataset-fashion-mnist."""
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for name in PUBLISHED:
        archive = Path("/usr/share/datasets/fashion-mnist", f"{name}.gz")
        if not archive.exists():
            pytest.skip("needs Debian's package: apt-get install dataset-fashion-mnist")
        (raw / name).write_bytes(gzip.decompress(archive.read_bytes()))
    dataset, (images, labels), test = datasets.load("fashion-mnist", str(tmp_path))
    assert dataset.classes[9] == "Ankle boot" and labels.bincount().tolist() == [6000] * 10
    # The figures that most projects use.
    assert (dataset.mean, dataset.std) == (0.286, 0.353)
    assert (dataset.light_on_dark, dataset.digit_like) == (True, False)
    assert images.shape == (60_000, 28, 28) and len(test[1]) == 10_000
