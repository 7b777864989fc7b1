"""Any picture of a digit becomes one of MNIST's; what holds no digit is refused with a reason."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from draw_digits import PENS, draw
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray
from PIL import Image

from datasets import MNIST, load_mnist
from model import Net
from pictures import Floats, colors, decode, read
from predict.prepare import centre, crop, read_digits, resampling
from runtime.errors import UserError
from trained import load_trained

ROOT = Path(__file__).parents[1]
BLACK, WHITE = (0, 0, 0), (255, 255, 255)
Bytes = NDArray[np.uint8]
Color = tuple[int, int, int]
Set = tuple[Bytes, Bytes]


@pytest.fixture(scope="module")
def net() -> Net:
    return load_trained(ROOT / "weights" / "best.pt").model


@pytest.fixture(scope="module")
def test_set() -> Set:
    images, labels = load_mnist(train=False)
    return images.numpy(), labels.numpy()


@pytest.fixture(scope="module")
def ten(test_set: Set) -> Bytes:
    """The second test image of each digit (the first 5 is one that people, too, take for a 6)."""
    images, labels = test_set
    return np.stack([images[np.flatnonzero(labels == digit)[1]] for digit in range(10)])


@torch.inference_mode()
def predictions(net: Net, digits: list[Bytes]) -> list[int]:
    images = torch.from_numpy(np.stack(digits)).unsqueeze(1) / 255
    labels: list[int] = net((images - MNIST.mean) / MNIST.std).argmax(dim=1).tolist()
    return labels


def preprocess(picture: Image.Image) -> Bytes:
    return read_digits(colors(decode(picture)))[0][0].image


def prepare(file: BinaryIO) -> Bytes:
    return read_digits(read(file)[0])[0][0].image


def as_mnist(ink: Floats) -> Bytes:
    """Return ``ink`` (H, W) as ``centre`` makes it, after the cut and the crop."""
    ink = np.clip((ink / ink.max() - 0.15) / 0.7, 0, 1)
    left, top, right, bottom = crop(ink)
    return centre(ink[top:bottom, left:right])


def enlarged(digit: Bytes, side: int = 112) -> Floats:
    """Return ``digit`` as the share of ink, (side, side) in [0, 1]."""
    image = Image.fromarray(digit).resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(image, dtype=np.float64) / 255


def painted(ink: Floats, color: Color = BLACK, paper: Color = WHITE) -> Image.Image:
    rgb = np.array(paper) + ink[:, :, None] * (np.array(color) - np.array(paper))
    return Image.fromarray((rgb + 0.5).astype(np.uint8))


def black_on_white(digit: Bytes, mode: str) -> Image.Image:
    """Return ``digit`` enlarged, black on white, in ``mode``."""
    grey = 1 - enlarged(digit)
    if mode == "I;16B":
        return Image.frombytes(mode, (grey.shape[1], grey.shape[0]), (grey * 65535).astype(">u2").tobytes())
    if mode in ("I", "F"):
        return Image.fromarray((grey * 60000).astype(np.int32 if mode == "I" else np.float32))
    return Image.fromarray((grey * 255).astype(np.uint8)).convert("RGB").convert(mode)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "CMYK", "HSV", "I;16B", "I", "F"])
def test_modes(mode: str, net: Net, ten: Bytes) -> None:
    pictures = [black_on_white(digit, mode) for digit in ten]
    assert {picture.mode for picture in pictures} == {mode}
    assert predictions(net, [preprocess(picture) for picture in pictures]) == list(range(10))


def test_sixteen_bits_are_read_as_eight() -> None:
    values = np.random.default_rng(1).integers(0, 256, (40, 50), dtype=np.uint8)
    eight, sixteen = Image.fromarray(values), Image.fromarray(values.astype(np.uint16) * 257)
    assert sixteen.mode == "I;16"
    assert np.array_equal(preprocess(eight), preprocess(sixteen))


@pytest.mark.parametrize(("color", "hidden"), [(BLACK, BLACK), (WHITE, WHITE), ((120, 120, 120), BLACK)])
def test_transparent_background(color: Color, hidden: Color, net: Net, ten: Bytes) -> None:
    pictures = []
    for digit in ten:
        ink = enlarged(digit)
        rgba = np.empty((*ink.shape, 4), dtype=np.uint8)
        rgba[:, :, :3] = np.where(ink[:, :, None] > 0, color, hidden)
        rgba[:, :, 3] = np.round(255 * ink)
        pictures.append(Image.fromarray(rgba))
    assert predictions(net, [preprocess(picture) for picture in pictures]) == list(range(10))


def test_palette_with_transparency(net: Net, ten: Bytes) -> None:
    digits = []
    for digit in ten:
        picture = Image.fromarray((enlarged(digit) > 0.5).astype(np.uint8))
        picture.putpalette([255, 255, 255, 250, 250, 250])  # white on transparent white
        file = io.BytesIO()
        picture.save(file, "PNG", transparency=0)
        assert Image.open(file).mode == "P"
        digits.append(prepare(file))
    assert predictions(net, digits) == list(range(10))


@pytest.mark.parametrize("pair", [((255, 255, 0), (0, 0, 200)), ((90, 90, 90), (140, 140, 140))])
def test_colors_either_way(pair: tuple[Color, Color], net: Net, ten: Bytes) -> None:
    for color, paper in (pair, pair[::-1]):
        digits = [preprocess(painted(enlarged(digit), color, paper)) for digit in ten]
        assert predictions(net, digits) == list(range(10))


def test_inverting_changes_nothing(test_set: Set) -> None:
    for digit in test_set[0][:50]:
        light, dark = preprocess(Image.fromarray(digit)), preprocess(Image.fromarray(255 - digit))
        assert np.abs(light.astype(int) - dark).max() <= 1


@pytest.mark.parametrize(("top", "left"), [(0, 88), (57, 80)])
def test_place_changes_nothing(top: int, left: int, ten: Bytes) -> None:
    for digit in ten:
        frame = np.zeros((200, 200))
        frame[top : top + 112, left : left + 112] = enlarged(digit)
        assert np.array_equal(preprocess(painted(frame)), preprocess(painted(enlarged(digit))))


@pytest.mark.parametrize("side", [20, 56, 1100])
def test_sizes(side: int, net: Net, ten: Bytes) -> None:
    some = ten[7:8] if side > 1000 else ten
    digits = [preprocess(painted(enlarged(digit, side))) for digit in some]
    assert predictions(net, digits) == ([7] if side > 1000 else list(range(10)))


UPRIGHT: dict[int, Callable[[Bytes], Bytes]] = {
    **{1: lambda x: x, 2: np.fliplr, 3: lambda x: np.rot90(x, 2), 4: np.flipud, 5: np.transpose},
    **{
        6: lambda x: np.rot90(x, -1),
        7: lambda x: np.rot90(x, 2).T,
        8: np.rot90,
        9: lambda x: x,
    },  # 9: unknown
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation(orientation: int, ten: Bytes) -> None:
    """A picture is turned even if another tag is damaged."""
    stored = Image.fromarray(255 - ten[7])
    entries = struct.pack("<2HIHH", 0x0112, 3, 1, orientation, 0), struct.pack("<2HI4s", 0x011A, 2, 4, b"abc")
    prepared = []
    for exif in (entries[:1], entries):
        content = struct.pack("<2sHIH", b"II", 42, 8, len(exif)) + b"".join(exif) + bytes(4)
        file = io.BytesIO()
        stored.save(file, "PNG", exif=content)
        prepared.append(prepare(file))
    upright = preprocess(Image.fromarray(UPRIGHT[orientation](255 - ten[7])))
    assert np.array_equal(prepared[0], upright) and np.array_equal(prepared[1], upright)
    tiff = io.BytesIO()  # Pillow turns it itself
    stored.save(tiff, "TIFF", tiffinfo={0x0112: orientation})
    assert np.array_equal(prepare(tiff), prepared[0])


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage!garbage", b"Exif\0\0II*\0"])
def test_exif_that_cannot_be_read_is_ignored(exif: bytes, ten: Bytes) -> None:
    file = io.BytesIO()
    Image.fromarray(255 - ten[7]).save(file, "PNG", exif=exif)
    assert np.array_equal(prepare(file), preprocess(Image.fromarray(255 - ten[7])))


def test_digits_of_mnist_stay_what_they_are(net: Net, test_set: Set) -> None:
    images, labels = test_set[0][::40], test_set[1][::40]  # 250
    prepared = [preprocess(Image.fromarray(image)) for image in images]
    before = np.mean(predictions(net, list(images)) == labels)
    after = np.mean(predictions(net, prepared) == labels)
    assert after > before - 0.01
    centres = np.array([centre_of_mass(digit) for digit in prepared])
    centred = np.abs(centres - 14).max(axis=1) < 0.51  # as in MNIST itself, and 0.01 for rounding to uint8
    assert centred.mean() > 0.99  # the others would leave the frame


def centre_of_mass(image: NDArray[np.generic]) -> Floats:
    weights = np.asarray(image, dtype=np.float64)
    return np.array([(weights * axis).sum() / weights.sum() for axis in np.mgrid[:28, :28]])


inks = npst.arrays(
    np.float64,
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    elements=st.floats(0, 1, width=32),
    fill=st.just(0.0),
)


@settings(max_examples=30, deadline=None)
@given(inks)
def test_every_digit_is_20_long_and_centred(ink: Floats) -> None:
    if ink.max() < 0.1:
        return
    digit = as_mnist(ink)
    assert digit.shape == (28, 28)
    assert digit.max() == 255
    rows, columns = np.flatnonzero(digit.any(axis=1)), np.flatnonzero(digit.any(axis=0))
    assert max(np.ptp(rows), np.ptp(columns)) < 20
    for middle, used in zip(centre_of_mass(digit), (rows, columns), strict=True):
        # As near to 14 as whole pixels and 255 levels allow, unless the digit would leave the frame.
        assert abs(middle - 14) <= 0.55 or used[0] <= 1 or used[-1] >= 26


@pytest.mark.parametrize(("height", "width"), [(20, 20), (80, 37), (1, 90), (5, 2)])
def test_longer_side_is_20_pixels(height: int, width: int) -> None:
    ink = np.zeros((100, 100))
    ink[3 : 3 + height, 5 : 5 + width] = 1
    digit = as_mnist(ink)
    scale = 20 / max(height, width)
    assert digit.any(axis=1).sum() == max(1, int(height * scale + 0.5))
    assert digit.any(axis=0).sum() == max(1, int(width * scale + 0.5))


def test_specks_and_grain_do_not_widen_the_digit(net: Net, ten: Bytes) -> None:
    rng = np.random.default_rng(2)
    digits = []
    for digit in ten:
        ink = np.zeros((300, 300))
        ink[70:238, 60:228] = enlarged(digit, 168)
        shade = np.linspace(0, 0.3, 300)[:, None]
        ink = np.clip(0.9 * (1 - ink) - shade + rng.normal(0, 0.02, ink.shape), 0, 1)
        ink[5, 5] = ink[290, 280] = 0
        digits.append(preprocess(Image.fromarray((255 * ink).astype(np.uint8))))
    assert predictions(net, digits) == list(range(10))


def test_scraps_at_the_border_are_dropped(ten: Bytes) -> None:
    """A card's edge with a round corner, a line along a side, a piece of a neighbour, a corner of a frame."""
    y, x = np.mgrid[:160, :120]
    edge = (
        ((x == 4) & (y > 8))
        | ((y == 3) & (x > 10))
        | ((x - y + 6 == 0) & (x < 5))
        | ((x + y == 13) & (x < 11))
    )
    scraps = [
        edge | ((y == 0) & (x > 60)),
        x > 115,
        (y < 12) & (abs(x - 60) < 6),
        ((y < 3) & (x < 60)) | ((x < 3) & (y < 60)),
    ]
    for digit in ten:
        ink = np.zeros((160, 120))
        ink[40:124, 20:104] = enlarged(digit, 84)
        for scrap in scraps:
            assert np.array_equal(preprocess(painted(np.maximum(ink, scrap))), preprocess(painted(ink)))


def test_frames_are_dropped(ten: Bytes, net: Net) -> None:
    """A box, two boxes, a circle, and three boxes in a row; but not a zero around a speck or a stroke."""
    y, x = np.mgrid[:200, :200]
    away = np.maximum(abs(y - 100), abs(x - 100))  # from the middle
    circle = abs(np.hypot(y - 100, x - 100) - 80) < 3
    for digit in ten:
        ink = np.zeros((200, 200))
        ink[50:150, 50:150] = enlarged(digit, 100)
        for frame in ((away > 60) & (away < 64), abs(away - 75) % 10 < 2, circle):
            frame = frame & (away > 55) & (away < 95)
            assert np.array_equal(preprocess(painted(np.maximum(ink, frame))), preprocess(painted(ink)))
    row = np.concatenate([np.pad(enlarged(ten[digit], 100), 20) for digit in (4, 0, 7)], axis=1)
    walls = np.zeros((160, 440))
    walls[10:150, 10:430] = 1
    for left in (13, 155, 290):
        walls[13:147, left : left + 130] = 0
    row = np.maximum(np.pad(row, ((10, 10), (10, 10))), walls)
    (line,) = read_digits(colors(decode(painted(row))))
    assert predictions(net, [digit.image for digit in line]) == [4, 0, 7]
    for inside in (np.s_[65:75, 65:75], np.s_[57:83, 68:71]):
        zero = np.pad(enlarged(ten[0], 100), 20)
        zero[inside] = 1
        assert predictions(net, [preprocess(painted(zero))]) == [0]


def test_a_digit_at_the_border_stays(net: Net, ten: Bytes) -> None:
    digits = []
    for digit in ten:
        rows, columns = (np.flatnonzero(digit.any(axis=axis)) for axis in (1, 0))
        tight = digit[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        size = (5 * tight.shape[1], 5 * tight.shape[0])
        digits.append(preprocess(Image.fromarray(255 - tight).resize(size, Image.Resampling.BICUBIC)))
    assert sum(np.equal(predictions(net, digits), range(10))) >= 9


def test_a_frame_is_no_background(ten: Bytes) -> None:
    for digit in ten:
        ink = enlarged(digit)
        framed = np.pad(1 - ink, 3)  # black on white, framed in black
        assert np.array_equal(preprocess(painted(1 - framed)), preprocess(painted(ink)))


def test_a_background_that_varies(net: Net, ten: Bytes) -> None:
    """A shadow over half of the paper, and a strong gradient."""
    y, x = np.mgrid[:240, :240]
    shadow, gradient = np.where(x + y / 3 < 150, 0.6, 1.0), 0.3 + 0.7 * x / 239
    for light in (shadow, gradient):
        digits = []
        for digit in ten:
            ink = np.pad(enlarged(digit, 140), 50)
            digits.append(preprocess(Image.fromarray((230 * light * (1 - 0.85 * ink)).astype(np.uint8))))
        assert sum(np.equal(predictions(net, digits), range(10))) >= 9


@pytest.mark.parametrize("width", [1.5, 4, 12])
def test_thin_strokes_become_strong(width: float, net: Net) -> None:
    digits = []
    for name in PENS:
        ink = draw(name, (400, 400), (30, 30, 340, 340), width)
        digits.append(preprocess(painted(ink)))
        assert (digits[-1] == 255).sum() >= 0.2 * (digits[-1] > 25).sum()
    assert sum(np.equal(predictions(net, digits), [int(name[0]) for name in PENS])) >= 19


def test_each_digit_is_prepared_as_if_it_were_alone(ten: Bytes) -> None:
    page = np.zeros((400, 700))
    for i, digit in enumerate(ten):
        top, left = 30 + 180 * (i // 5), 30 + 130 * (i % 5)
        page[top : top + 112, left : left + 112] = enlarged(digit)
    lines = read_digits(np.repeat(1 - page[:, :, None], 3, axis=2))
    assert list(map(len, lines)) == [5, 5]
    for found, digit in zip([each for line in lines for each in line], ten, strict=True):
        alone = preprocess(painted(enlarged(digit)))
        assert np.abs(found.image.astype(int) - alone).max() <= 2  # painted rounds to 8 bits
        assert page[found.box.top : found.box.bottom, found.box.left : found.box.right].max() > 0.9


@pytest.mark.parametrize(("n", "m"), [(7, 3), (100, 20), (5, 1)])
def test_shrinking_averages_areas(n: int, m: int) -> None:
    values = np.random.default_rng(3).random(n)
    expected = np.repeat(values, m).reshape(m, n).mean(axis=1)  # m copies of each, in m groups of n
    assert np.allclose(resampling(n, m) @ values, expected)


@pytest.mark.parametrize(("n", "m"), [(1, 4), (3, 7), (20, 20)])
def test_enlarging_is_linear(n: int, m: int) -> None:
    values = np.random.default_rng(4).random(n)
    expected = F.interpolate(torch.from_numpy(values)[None, None], size=m, mode="linear", align_corners=False)
    assert np.allclose(resampling(n, m) @ values, expected[0, 0].numpy())


def test_small_pictures_are_enlarged(ten: Bytes) -> None:
    """Fourfold, as by PyTorch, and their boxes are in pixels of the file."""
    for digit in ten:
        small = torch.from_numpy(255 - digit[1:, 1:])[None, None].float()
        large = F.interpolate(small, scale_factor=4, mode="bicubic", antialias=True).clamp(0, 255).round()
        (found,), (expected,) = (
            read_digits(each[0, 0, :, :, None].expand(-1, -1, 3).double().numpy() / 255, scale)[0]
            for each, scale in ((small, 4), (large, 1))
        )
        assert found.box == expected.box
        assert np.abs(found.image.astype(int) - expected.image).max() <= 8  # a grey level is scaled, too


def png_of(width: int, height: int) -> bytes:
    """Return a PNG of a few bytes that claims to hold ``width`` times ``height`` grey pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def saved(picture: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind)
    return file.getvalue()


SAMPLE = painted(np.eye(40), (10, 20, 30), (250, 250, 250))
BAD = [
    (saved(Image.new("RGB", (50, 40), (130, 130, 130)), "PNG"), "blank"),
    (saved(Image.new("RGBA", (9, 9), (0, 0, 0, 0)), "PNG"), "blank"),
    (saved(Image.new("F", (9, 9), float("nan")), "TIFF"), "a pixel is not a number"),
    (saved(Image.new("L", (1, 1)), "PNG"), "blank"),
    (b"", "not a picture"),
    (b"seven\n", "not a picture"),
    (b"\0\0\0\x18ftypheic" + bytes(40), "HEIC.*pip install pillow-heif"),
    (saved(SAMPLE, "JPEG")[:-200], "it can't be read: Truncated"),
    (png_of(10_000, 10_000), "too large"),
    (png_of(2**31 - 1, 2**31 - 1), "too large"),
]


@pytest.mark.parametrize(("content", "reason"), BAD, ids=range(len(BAD)))
def test_no_digit(content: bytes, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        prepare(io.BytesIO(content))
    assert "\n" not in str(caught.value)


def check_outcome(content: bytes) -> None:
    try:
        digit = prepare(io.BytesIO(content))
    except UserError as error:
        assert str(error).isprintable()
    else:
        assert digit.shape == (28, 28)
        assert digit.dtype == np.uint8
        assert digit.max() == 255


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"\xff\xd8\xff", b"II*\0", b"P6 "]),
    st.binary(),
)
def test_any_bytes(start: bytes, content: bytes) -> None:
    check_outcome(start + content)


KINDS = ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO", "TGA", "PCX", "JPEG2000"]


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.sampled_from(KINDS), st.lists(st.tuples(st.integers(0, 400), st.binary(max_size=4)), max_size=4))
def test_damaged_files(kind: str, changes: list[tuple[int, bytes]]) -> None:
    content = bytearray(saved(SAMPLE.convert("P") if kind == "GIF" else SAMPLE, kind))
    for offset, patch in changes:
        content[offset : offset + len(patch)] = patch
    check_outcome(bytes(content))
