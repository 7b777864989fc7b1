import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.datasets import MNIST
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF

from utils import (
    MEAN,
    STD,
    DataError,
    DeviceLoader,
    get_loaders,
    load_mnist,
    normalise,
    rotate,
    split_holdout,
)

CPU = torch.device("cpu")
Set = tuple[Tensor, Tensor]


def test_same_data_as_torchvision(data_path: str) -> None:
    for train, count in [(True, 60_000), (False, 10_000)]:
        images, labels = load_mnist(data_path, train)
        theirs = MNIST(data_path, train=train)
        assert images.shape == (count, 28, 28) and images.dtype == torch.uint8
        assert torch.equal(images, theirs.data) and torch.equal(labels, theirs.targets)


def test_constants_are_the_training_sets_own(train_set: Set) -> None:
    pixels = train_set[0].double() / 255
    assert round(pixels.mean().item(), 4) == MEAN
    assert round(pixels.std(unbiased=False).item(), 4) == STD


def test_normalise(train_set: Set) -> None:
    expected = TF.normalize(train_set[0][:100, None].float() / 255, [MEAN], [STD])
    torch.testing.assert_close(normalise(train_set[0][:100, None]), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize("limit", [7.0, 90.0])
def test_rotation_is_torchvisions(train_set: Set, interpolation: str, limit: float) -> None:
    images = train_set[0][:1000, None]
    degrees = (torch.rand(1000, generator=torch.Generator().manual_seed(0)) * 2 - 1) * limit
    theirs = torch.stack(
        [
            TF.rotate(image, angle.item(), InterpolationMode(interpolation))
            for image, angle in zip(images, degrees, strict=True)
        ]
    ).float()
    ours = rotate(images.float(), degrees, interpolation)
    assert ours.shape == images.shape
    different = ours != theirs
    if interpolation == "nearest" and limit == 7.0:
        assert not different.any()
    # Elsewhere a tie, between two pixels or two grey levels, may fall the other way.
    assert different.float().mean() < 1e-5
    if interpolation == "bilinear":
        assert (ours - theirs).abs().max() <= 1


def test_rotation_by_quarter_turns_is_exact(train_set: Set) -> None:
    images = train_set[0][:20, None].float()
    assert torch.equal(rotate(images, torch.full((20,), 90.0)), images.rot90(1, dims=(2, 3)))
    assert torch.equal(rotate(images, torch.zeros(20)), images)


def test_shift_moves_by_whole_pixels(train_set: Set) -> None:
    images = train_set[0][:20, None].float()
    shift = torch.tensor([[2.0, -1.0]]).expand(20, 2)
    moved = rotate(images, torch.zeros(20), shift=shift)
    expected = torch.zeros_like(images)
    expected[:, :, 1:, :-2] = images[:, :, :-1, 2:]
    assert torch.equal(moved, expected)


def test_an_epoch_of_training_data(data_path: str, train_set: Set) -> None:
    loader, _ = get_loaders(data_path, CPU, rotation=0)
    assert len(loader) == 469
    batches = list(loader)
    assert [len(target) for _, target in batches] == [128] * 468 + [96]
    data = torch.cat([data for data, _ in batches])
    targets = torch.cat([target for _, target in batches])
    assert data.shape == (60_000, 1, 28, 28) and data.dtype == torch.float32 and targets.dtype == torch.int64
    # A permutation of the training set, each image with its label: compare sums that tell images apart.
    mark = torch.arange(1.0, 785.0, dtype=torch.float64)

    def marks(images: Tensor, labels: Tensor) -> Tensor:
        return (images.flatten(1).double() @ mark + labels * 1e9).sort().values

    torch.testing.assert_close(
        marks(data, targets), marks(normalise(train_set[0][:, None]), train_set[1]), rtol=1e-6, atol=0.1
    )
    assert not torch.equal(targets, train_set[1])


def test_each_epoch_has_an_order_of_its_own_and_the_seed_determines_all(data_path: str) -> None:
    def epochs(seed: int) -> list[Tensor]:
        loader, _ = get_loaders(data_path, CPU, batch_size=6000, seed=seed)
        return [torch.cat([data for data, _ in loader]) for _ in range(2)]

    one, again, other = epochs(1), epochs(1), epochs(2)
    assert torch.equal(one[0], again[0]) and torch.equal(one[1], again[1])
    assert not torch.equal(one[0], one[1]) and not torch.equal(one[0], other[0])


def test_angles_are_uniform(train_set: Set, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Tensor] = []

    def note(images: Tensor, degrees: Tensor, *rest: object) -> Tensor:
        drawn.append(degrees)
        return images

    monkeypatch.setattr("utils.rotate", note)
    list(DeviceLoader(*train_set, 1000, torch.Generator().manual_seed(0), rotation=7.0))
    degrees = torch.cat(drawn)
    assert len(degrees) == 60_000 and degrees.abs().max() <= 7
    # Kolmogorov-Smirnov's distance; 1.95 / sqrt(n) is exceeded once in a thousand
    steps = torch.arange(1, 60_001) / 60_000
    assert (degrees.sort().values / 14 + 0.5 - steps).abs().max() < 1.95 / math.sqrt(60_000)


def test_test_images_come_in_order_and_unchanged(data_path: str) -> None:
    _, loader = get_loaders(data_path, CPU)
    images, labels = load_mnist(data_path, train=False)
    batches = list(loader)
    assert len(batches) == len(loader)
    assert torch.equal(torch.cat([target for _, target in batches]), labels)
    assert torch.equal(torch.cat([data for data, _ in batches]), normalise(images[:, None]))


def test_loaders_leave_the_global_generator_alone(data_path: str) -> None:
    state = torch.get_rng_state()
    for loader in get_loaders(data_path, CPU):
        next(iter(loader))
    assert torch.equal(torch.get_rng_state(), state)


def test_holdout_is_stratified_disjoint_and_always_the_same(train_set: Set) -> None:
    labels = train_set[1]
    kept, chosen = split_holdout(labels, 10_000)
    assert len(chosen) == 10_000
    assert torch.equal(torch.cat([kept, chosen]).sort().values, torch.arange(60_000))
    share = labels[chosen].bincount(minlength=10) * 6 - labels.bincount(minlength=10)
    assert share.abs().max() <= 6
    assert torch.equal(split_holdout(labels, 10_000)[1], chosen)


def test_holdout_keeps_the_test_set_out(data_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def training_set_only(path: str, train: bool) -> Set:
        assert train, "the test set was read"
        return load_mnist(path, train)

    monkeypatch.setattr("utils.load_mnist", training_set_only)
    train_loader, holdout_loader = get_loaders(data_path, CPU, holdout=10_000)
    assert len(train_loader.labels) == 50_000 and len(holdout_loader.labels) == 10_000


def test_without_data_or_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/"])
    with pytest.raises(DataError) as caught:
        get_loaders(str(tmp_path), CPU)
    message = str(caught.value)
    for part in ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte"]:
        assert part in message
    assert "t10k-labels-idx1-ubyte" in message and str(tmp_path) in message
    assert "http://127.0.0.1:9/train-images-idx3-ubyte.gz" in message and "\n" not in message
