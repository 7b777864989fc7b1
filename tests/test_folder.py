"""Folders of pictures: all pictures are read as they are, and whatever is not used is named."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Set
from PIL import Image, features
from torch import Tensor
from torchvision.datasets import ImageFolder

from checkpoint import load_tensors, save_tensors
from datasets import MNIST, load
from datasets.folder import fit_to_28x28, load_folder
from pictures import colors, decode, read
from runtime.errors import UserError


def write_pictures(root: Path, images: Tensor, labels: Tensor) -> Path:
    """Write ``images`` as PNGs into folders named after their labels, in order."""
    for i, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        (root / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.numpy()).save(root / str(label) / f"{i:05}.png")
    return root


def load_both(root: Path) -> tuple[Set, Set]:
    """Read the training and the test set, as a run does."""
    _, train_set, test_set = load("folder", str(root))
    return train_set, test_set


@pytest.mark.parametrize("count", [700, pytest.param(7000, marks=pytest.mark.slow)])
def test_mnist_as_a_folder_of_pictures_equals_mnist(
    count: int, train_set: Set, test_set: Set, tmp_path: Path
) -> None:
    parts = {
        "train": [values[: count * 6 // 7] for values in train_set],
        "test": [values[: count // 7] for values in test_set],
    }
    for name, (images, labels) in parts.items():
        write_pictures(tmp_path / name, images, labels)
    for name, (images, labels) in parts.items():
        (read_images, read_labels), classes = load_folder(str(tmp_path), train=name == "train")
        order = labels.argsort(stable=True)  # by class, then by file name
        assert torch.equal(read_images, images[order]) and torch.equal(read_labels, labels[order])
        assert read_images.dtype == torch.uint8 and read_labels.dtype == torch.int64
        assert classes == MNIST.classes
        theirs = ImageFolder(str(tmp_path / name))
        assert [label for _, label in theirs.samples] == read_labels.tolist()
    dataset, _, _ = load("folder", str(tmp_path))
    assert (dataset.name, dataset.digit_like) == ("folder", True)


def test_without_parts_a_stratified_fifth_is_the_test_set(train_set: Set, tmp_path: Path) -> None:
    images, labels = train_set[0][:203], train_set[1][:203]
    write_pictures(tmp_path, images, labels)
    (kept, kept_labels), (held_out, held_out_labels) = load_both(tmp_path)
    assert len(held_out) == 41 and len(kept) == 162

    def as_set(images: Tensor) -> set[bytes]:
        return {image.numpy().tobytes() for image in images}

    assert as_set(kept) | as_set(held_out) == as_set(images) and not as_set(kept) & as_set(held_out)
    excess = held_out_labels.bincount(minlength=10) * 5 - labels.bincount(minlength=10)
    assert excess.abs().max() <= 5
    assert torch.equal(kept_labels.bincount() + held_out_labels.bincount(), labels.bincount())
    assert torch.equal(load_both(tmp_path)[1][0], held_out)


def noise(seed: int) -> Image.Image:
    """Make a grey picture of 28×28 random pixels."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (28, 28), dtype=np.uint8))


def test_every_format_that_pillow_opens_is_read(tmp_path: Path) -> None:
    """Suffixes don't matter. torchvision's list lacks most of these."""
    names = ["1.PNG", "2.gif", "3.jfif", "4.tga", "5.pcx", "6.ico", "7.dds"]
    names += [f"8.{kind}" for kind, name in (("jp2", "jpg_2000"), ("avif", "avif")) if features.check(name)]
    ramp = np.tile(np.linspace(20, 230, 28).astype(np.uint8), (28, 1))
    for label in ("ramp", "turned"):
        (tmp_path / label).mkdir()
        grey = Image.fromarray(ramp if label == "ramp" else ramp.T.copy())
        for name in names:
            (grey.convert("RGB") if name[0] in "78" else grey).save(tmp_path / label / name, sizes=[(28, 28)])
        grey.save(tmp_path / label / "without a suffix", format="png")
    sets = load_both(tmp_path)
    images, labels = (torch.cat(part) for part in zip(*sets, strict=True))
    assert labels.bincount().tolist() == [len(names) + 1] * 2
    expected = torch.from_numpy(np.stack([ramp, ramp.T]))[labels]
    assert (images.int() - expected.int()).abs().max() <= 6  # JPEG and AVIF lose some


def make_folder(root: Path, *parts: str) -> Path:
    """Write three pictures of a class ``cat`` and of a class ``dog`` into each of ``parts``."""
    for seed, part in enumerate(parts or ("train", "test")):
        for label, name in enumerate(("cat", "dog")):
            (root / part / name).mkdir(parents=True)
            for i in range(3):
                noise(100 * seed + 10 * label + i).save(root / part / name / f"{i}.png")
    return root


def as_written(seed: int) -> Tensor:
    """Return the images that ``make_folder`` writes into the part with the index ``seed``."""
    seeds = [100 * seed + 10 * label + i for label in range(2) for i in range(3)]
    return torch.from_numpy(np.stack([np.asarray(noise(each)) for each in seeds]))


@pytest.mark.parametrize(
    "parts",
    [
        *(("train", "test"), ("Training", "TESTING"), ("TRAIN", "Val"), ("train", "valid")),
        *(("training", "validation"), ("train", "test", "val"), ("Train", "Test", "Validation", "extra")),
        ("train", "test", "testing", "training"),
    ],
)
def test_parts_have_any_usual_name(
    parts: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_set, test_set = load_both(make_folder(tmp_path, *parts))
    assert torch.equal(train_set[0], as_written(0)) and torch.equal(test_set[0], as_written(1))
    assert train_set[1].tolist() == test_set[1].tolist() == [0, 0, 0, 1, 1, 1]
    unused = ", ".join(str(tmp_path / part) for part in sorted(parts[2:]))
    warning = f"warning: these are not part of the training or test set: {unused}\n"
    assert capsys.readouterr() == ("", warning if unused else "")


def test_classes_may_have_the_names_of_parts(tmp_path: Path) -> None:
    for name in ("plane", "train"):
        shutil.copytree(make_folder(tmp_path / "source" / name) / "train" / "cat", tmp_path / "all" / name)
    assert load("folder", str(tmp_path / "all"))[0].classes == ("plane", "train")


def test_class_names_that_are_no_unicode_are_kept(tmp_path: Path) -> None:
    """Some file systems allow any bytes. A checkpoint takes them."""
    make_folder(tmp_path / "pictures", ".")
    name = os.fsdecode(b"chaton \xe9")
    try:
        (tmp_path / "pictures" / "cat").rename(tmp_path / "pictures" / name)
    except OSError:
        pytest.skip("this file system allows only names in Unicode")
    dataset, _, _ = load("folder", str(tmp_path / "pictures"))
    assert dataset.classes == (name, "dog")
    save_tensors(tmp_path / "best.pt", {"classes": dataset.classes})
    assert load_tensors(tmp_path / "best.pt")["classes"] == dataset.classes


@pytest.mark.parametrize("parts", [("train", "test"), (".",)])
def test_hidden_and_system_files_are_ignored(
    parts: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = load_both(make_folder(tmp_path, *parts))
    first = tmp_path / parts[0]
    for folder in {tmp_path, first, first / "cat"}:
        for name in (".ipynb_checkpoints", "__MACOSX", "@eaDir"):
            (folder / name).mkdir()
            shutil.copy(first / "dog" / "0.png", folder / name / "copy.png")
        for name in (".DS_Store", "._0.png", "Thumbs.db", "desktop.ini"):
            (folder / name).write_bytes(b"no picture")
    after = load_both(tmp_path)
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old[0], new[0]) and torch.equal(old[1], new[1])
    assert capsys.readouterr() == ("", "")


def test_stray_files_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_folder(tmp_path / "parts")
    make_folder(tmp_path / "classes", ".")
    for path in ("classes/1.png", "parts/2.heic", "parts/train/3.png", "parts/test/4.png"):
        (tmp_path / path).touch()
    load_both(tmp_path / "classes")
    load_both(tmp_path / "parts")
    named = [line.rpartition(": ")[2] for line in capsys.readouterr().err.splitlines()]
    first = f"{tmp_path / 'parts' / '2.heic'}, {tmp_path / 'parts' / 'train' / '3.png'}"
    assert named == [str(tmp_path / "classes" / "1.png"), first, str(tmp_path / "parts" / "test" / "4.png")]
    for i in range(10, 20):
        (tmp_path / "classes" / f"{i}.png").touch()
    load_both(tmp_path / "classes")
    assert capsys.readouterr().err.endswith("13.png and 6 more\n")


def link(path: Path, target: Path) -> None:
    try:
        path.symlink_to(target, target_is_directory=target.is_dir())
    except OSError:
        pytest.skip("this system allows no symbolic links")


def test_links_are_followed(tmp_path: Path) -> None:
    make_folder(tmp_path / "source")
    (tmp_path / "linked" / "train" / "dog").mkdir(parents=True)
    link(tmp_path / "linked" / "test", tmp_path / "source" / "test")
    link(tmp_path / "linked" / "train" / "cat", tmp_path / "source" / "train" / "cat")
    for i in range(3):
        name = f"train/dog/{i}.png"
        link(tmp_path / "linked" / name, tmp_path / "source" / name)
    train_set, test_set = load_both(tmp_path / "linked")
    assert torch.equal(train_set[0], as_written(0)) and torch.equal(test_set[0], as_written(1))


def remove(root: Path, pattern: str) -> None:
    for path in list(root.glob(pattern)):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def replace_by_a_file(root: Path) -> None:
    shutil.rmtree(root)
    root.touch()


def flatten(root: Path) -> None:
    """Move the pictures out of the folders of their classes."""
    for path in list(root.glob("*/*/*")):
        path.rename(path.parent.with_name(f"{path.parent.name}-{path.name}"))
    remove(root, "*/cat")
    remove(root, "*/dog")


def move_into(root: Path, name: str) -> None:
    """Move all that is in ``root`` into a new folder in it."""
    paths = list(root.iterdir())
    (root / name).mkdir()
    for path in paths:
        path.rename(root / name / path.name)


def put_parts_into_classes(root: Path) -> None:
    """Make CLASS/train and CLASS/test of train/CLASS and test/CLASS."""
    move_into(root, "old")
    for path in root.glob("old/*/*"):
        (root / path.name).mkdir(exist_ok=True)
        path.rename(root / path.name / path.parent.name)
    remove(root, "old")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


LAYOUT = "holds folders: --data-path needs CLASS/PICTURE, or train/CLASS/PICTURE and test"
HARMS: dict[str, tuple[Callable[[Path], object], str]] = {  # what is done to a folder; what the error says
    "nothing there": (shutil.rmtree, "pictures"),
    "a file": (replace_by_a_file, "pictures"),
    "an empty folder": (lambda root: remove(root, "*"), "pictures: it needs 2 class folders or more, not 0"),
    "only train": (lambda root: remove(root, "test"), f"train {LAYOUT}"),
    "only test": (lambda root: remove(root, "train"), f"test {LAYOUT}"),
    "an unusual name": (lambda root: (root / "test").rename(root / "evaluation"), f"evaluation {LAYOUT}"),
    "the folder above": (lambda root: move_into(root, "mnist"), f"mnist {LAYOUT}"),
    "a folder in a class": (lambda root: (root / "train" / "cat" / "new").mkdir(), f"cat {LAYOUT}"),
    "parts in classes": (put_parts_into_classes, f"cat {LAYOUT}"),
    "pictures in parts": (flatten, "train: it needs 2 class folders or more, not 0"),
    "an empty class": (lambda root: remove(root, "test/dog/*"), "dog holds no pictures: --data-path needs"),
    "a pipe": (lambda root: os.mkfifo(root / "test" / "cat" / "9.png"), "9.png: it is not a file; remove it"),
    "one class": (lambda root: remove(root, "*/dog"), "train: it needs 2 class folders or more, not 1"),
    "another class": (
        lambda root: shutil.copytree(root / "test" / "cat", root / "test" / "cow"),
        "training and test set differ in the classes cow",
    ),
    "text": (
        lambda root: (root / "train" / "dog" / "labels.csv").write_text("1,dog"),
        "labels.csv: it is not a picture that Pillow can read (HEIC needs: pip install pillow-heif); ",
    ),
    "HEIC": (
        lambda root: (root / "train" / "dog" / "1.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"),
        "1.heic: it is ",
    ),
    "truncated": (lambda root: truncate(root / "test" / "cat" / "2.png"), "2.png: it can't be read"),
    "a dead link": (lambda root: link(root / "test" / "cat" / "9.png", Path("nowhere")), "9.png"),
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_folder_that_cannot_be_used_is_named(harm: str, tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pictures")
    load_both(root)
    damage, message = HARMS[harm]
    damage(root)
    with pytest.raises((UserError, OSError)) as caught:
        load_both(root)
    error = f"{getattr(caught.value, 'filename', None)}: {caught.value}"
    assert str(root) in error and message in error and "\n" not in error


def test_a_class_of_one_picture_cannot_be_split(tmp_path: Path) -> None:
    for name in ("a/1.png", "a/2.png", "b/3.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        noise(0).save(tmp_path / name)
    with pytest.raises(UserError, match=r"3\.png: the only picture of its class"):
        load_both(tmp_path)
    noise(1).save(tmp_path / "b" / "4.png")
    train_set, test_set = load_both(tmp_path)
    assert sorted(set(train_set[1].tolist())) == [0, 1] and sorted(test_set[1].tolist()) == [0, 1]


def test_a_small_class_is_in_both_sets(tmp_path: Path) -> None:
    """Its share of a fifth may be less than one picture."""
    for name, count in (("many", 40), ("rare", 2), ("two", 2)):
        (tmp_path / name).mkdir()
        for i in range(count):
            noise(i).save(tmp_path / name / f"{i}.png")
    (_, train_labels), (_, test_labels) = load_both(tmp_path)
    assert set(train_labels.tolist()) == set(test_labels.tolist()) == {0, 1, 2}
    assert len(train_labels) + len(test_labels) == 44 and 9 <= len(test_labels) <= 11


def coloured(mode: str, size: tuple[int, int]) -> Image.Image:
    """Make a picture of random colours."""
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "CMYK", "I;16"])
@pytest.mark.parametrize("size", [(28, 28), (56, 56), (90, 30), (7, 20), (1, 500)])
def test_any_picture_is_scaled_and_padded(mode: str, size: tuple[int, int]) -> None:
    if mode == "I;16":
        grey = coloured("L", size)
        original = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    else:
        original = coloured(mode, size)
        grey = original.convert("RGB").convert("L")
    image = fit_to_28x28(colors(decode(original)))
    assert image.shape == (28, 28) and image.dtype == np.uint8
    width, height = (max(1, round(28 * side / max(size))) for side in size)
    left, top = (28 - width) // 2, (28 - height) // 2
    inside = np.zeros((28, 28), dtype=bool)
    inside[top : top + height, left : left + width] = True
    expected = np.asarray(grey.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    # Pillow rounds differently when it converts colours to grey.
    assert np.abs(image[inside].reshape(height, width) - expected).max() <= 2
    if mode == "L" and size == (28, 28):
        assert np.array_equal(image, np.asarray(grey))
    pixels = np.asarray(grey).astype(int)
    border = [*pixels[0], *pixels[-1], *pixels[1:-1, 0], *pixels[1:-1, -1]]
    assert all(abs(int(value) - np.median(border)) <= 2 for value in image[~inside])


def test_a_large_jpeg_is_decoded_at_a_fraction_of_its_size(tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 3000).astype(np.uint8)
    Image.fromarray(np.tile(ramp, (2000, 1))).save(tmp_path / "large.jpg", quality=95)
    with open(tmp_path / "large.jpg", "rb") as file:
        image = fit_to_28x28(read(file, 224)[0])
    # 3000 × 2000 pixels become 28 × 19, from row 4 on.
    assert np.abs(image[10].astype(int) - (np.arange(28) + 0.5) / 28 * 255).max() <= 6
