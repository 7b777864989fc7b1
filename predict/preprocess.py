"""Bring any picture into the data set's own form; one of a digit into MNIST's.

MNIST's authors (LeCun, Cortes, Burges, http://yann.lecun.com/exdb/mnist/) took black-and-white digits,
scaled each to fit 20×20 pixels, its aspect kept, by anti-aliasing, and put its centre of mass at the centre
of 28×28. ``preprocess`` does the same to a picture as it comes, in the steps below. All numbers are float64;
round(x) is floor(x + 0.5); a pixel's centre has its whole-number index as coordinate.

``datasets.pictures.read_colors`` makes colours of the file:

1.  Turn the picture as its EXIF tag says. 16-bit greys are divided by 65535, 8-bit values by 255; 32-bit
    and floating-point greys are stretched from their own minimum and maximum to 0 and 1.
2.  If a side is longer than 1,000 pixels, average blocks of k×k pixels, k = ceil(longer side / 1000).
3.  Lay a transparent picture on white or black, whichever is further from the mean colour of what is opaque
    (weighted by alpha), white if equal; the distance of two colours is the largest over R, G, B.

``find_ink`` tells ink from background, dark on light, light on dark or coloured:

4.  The background is the median, channel by channel, of these pixels: first row, last row, and first and last
    column without their ends (of an even number the mean of the middle two).
5.  ink = each pixel's distance (as in 3) from the background. Blank if its maximum is below 0.1. If both
    sides are below 28 pixels, it is enlarged fourfold by Pillow's bicubic interpolation (in float32): the cut
    in 6 would else make blocks of strokes that are a pixel wide.

``centre`` makes the digit one of MNIST's:

6.  Divide ink by its maximum; then ink = clip((ink - 0.15) / 0.7, 0, 1). So paper, its grain and most of
    its shading become 0, and strokes even, as in MNIST's black-and-white originals. The cut is symmetric
    about one half, so that it leaves the edge of a blurred stroke where it was.
7.  Crop to the digit's box, h rows by w columns. Only strong ink counts for it: ink where ink >= 0.35, else
    0. Its first row is the first down to which, itself included, lies more than 1 % of all strong ink; its
    last row is the last up from which, itself included, lies more than 1 %; columns likewise. So neither
    shading nor a few specks far from the digit widen it.
8.  Its new size is h' = max(1, round(20 h / max(h, w))) by w' = max(1, round(20 w / max(h, w))):
    ink = R(h, h') @ ink @ R(w, w').T, with the matrix R(n, m), m×n,
    if m < n: R[i, j] = length of the overlap of [i n/m, (i+1) n/m] with [j, j+1], times m/n (area average);
    else: R[i, j] = max(0, 1 - |x - j|) with x = clip((i + 0.5) n/m - 0.5, 0, n - 1) (linear).
9.  Divide by the maximum again: thin strokes, spread over whole pixels, get back to full strength.
10. Centre of mass: cy = sum(y ink) / sum(ink), cx likewise. In 28×28 zeros, put the array's first row at
    clip(round(14 - cy + 1e-6), 0, 28 - h'), its first column at clip(round(14 - cx + 1e-6), 0, 28 - w');
    the 1e-6 lets no error of the last bit decide where a symmetric digit goes, as 14 - cy ends in .5 there.
    (14, not 13.5: there lies the centre of mass in MNIST's files, to half a pixel in all but 2 of 60,000.)

``preprocess`` returns round(255 × that), as uint8.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from datasets.pictures import Floats, PictureError, border, read_colors
from predict.segment import STRONG, Box, find_digits

MIN_CONTRAST = 0.1  # of the way from black to white
UNEVEN = 0.3  # share of the border that is ink: then the background varies
REDUCED, WINDOW = (
    64,
    21,
)  # pixels: the longer side on which a varying background is measured, the median's side
ENLARGE = 4  # times, a picture smaller than MNIST's
LOW, HIGH = 0.15, 0.85  # of the strongest ink: below is paper, above is stroke
SPECKS = 0.01  # share of the strong ink that may lie outside the digit's box at a side
VISIBLE = 0.1  # ink that counts for the strength of a stroke
TIE = 1e-6  # pixels; more than float64 errs in step 12
DIGIT, FRAME = 20, 28  # pixels: the digit's longer side, the picture's sides


def distance(rgb: Floats, background: Floats) -> Floats:
    """Return how far each pixel of ``rgb`` (H, W, 3) is from ``background``, (3,) or (H, W, 3): (H, W)."""
    red, green, blue = (np.abs(rgb[..., i] - background[..., i]) for i in range(3))
    return np.maximum(np.maximum(red, green), blue)


def is_strong(ink: Floats) -> NDArray[np.bool_]:
    """Return where ``ink`` (H, W) is strong after the cut in step 6."""
    return ink >= (LOW + STRONG * (HIGH - LOW)) * ink.max()


def local_background(rgb: Floats) -> Floats:
    """Return the median of ``rgb`` (H, W, 3) around each pixel: step 5."""
    picture = Image.fromarray(np.floor(rgb * 255 + 0.5).astype(np.uint8))
    scale = REDUCED / max(picture.size)
    width, height = (max(1, math.floor(side * scale + 0.5)) for side in picture.size)
    reduced = picture.resize((width, height), Image.Resampling.BOX).filter(ImageFilter.MedianFilter(WINDOW))
    return np.asarray(reduced.resize(picture.size, Image.Resampling.BILINEAR)) / 255


def find_ink(rgb: Floats) -> Floats:
    """Return where the ink is in ``rgb`` (H, W, 3), (H, W) in [0, 1]: steps 4 to 6.

    The ink of a picture smaller than MNIST's is (4 H, 4 W). Raises ``PictureError`` where it is blank.
    """
    ink = distance(rgb, np.median(border(rgb), axis=0))
    strong = is_strong(ink)
    if strong.mean() > 0.5:
        ink = distance(rgb, np.median(rgb, axis=(0, 1)))
        strong = is_strong(ink)
    if min(ink.shape) >= REDUCED and border(strong).mean() > UNEVEN:
        ink = distance(rgb, local_background(rgb))
    if not ink.max() >= MIN_CONTRAST:
        raise PictureError("it is blank: nothing in it stands out from the background")
    if max(ink.shape) < FRAME:
        size = (ENLARGE * ink.shape[1], ENLARGE * ink.shape[0])
        enlarged = Image.fromarray(ink.astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
        ink = np.asarray(enlarged, dtype=np.float64)
    return np.clip((ink / ink.max() - LOW) / (HIGH - LOW), 0, 1)


def resampling(n: int, m: int) -> Floats:
    """Return the matrix (m, n) that resamples n values to m: area average if fewer, else linear (step 8)."""
    if m < n:
        edges = np.arange(m + 1)[:, None] * (n / m)
        j = np.arange(n)
        overlap = np.minimum(edges[1:], j + 1) - np.maximum(edges[:-1], j)
        return np.asarray(np.maximum(overlap, 0) * (m / n))
    x = np.clip((np.arange(m) + 0.5) * (n / m) - 0.5, 0, n - 1)
    return np.asarray(np.maximum(0, 1 - np.abs(x[:, None] - np.arange(n))))


def span(sums: Floats) -> slice:
    """Return where the digit lies, given the strong ``sums`` of the rows or the columns, (n,): step 7."""
    least = SPECKS * sums.sum()
    inside = (np.cumsum(sums) > least) & (np.cumsum(sums[::-1])[::-1] > least)
    first, last = np.flatnonzero(inside)[[0, -1]]
    return slice(int(first), int(last) + 1)


def crop(ink: Floats) -> Box:
    """Return the box of the digit in ``ink`` (H, W): step 9."""
    strong = np.where(ink >= STRONG, ink, 0)
    rows, columns = span(strong.sum(axis=1)), span(strong.sum(axis=0))
    return Box(columns.start, rows.start, columns.stop, rows.stop)


def centre(ink: Floats) -> NDArray[np.uint8]:
    """Return ``ink`` (H, W), cropped to a digit, as MNIST has it, uint8 (28, 28): steps 10 to 12."""
    height, width = ink.shape
    longer = max(height, width)
    new_height, new_width = (max(1, math.floor(DIGIT * side / longer + 0.5)) for side in (height, width))
    ink = resampling(height, new_height) @ ink @ resampling(width, new_width).T
    ink = ink / ink.max()
    visible = np.sort(ink[ink > VISIBLE])
    ink = np.minimum(ink / visible[3 * len(visible) // 4], 1)

    mass = ink.sum()
    top = math.floor(FRAME / 2 - np.arange(new_height) @ ink.sum(axis=1) / mass + TIE + 0.5)
    left = math.floor(FRAME / 2 - np.arange(new_width) @ ink.sum(axis=0) / mass + TIE + 0.5)
    top = min(max(top, 0), FRAME - new_height)
    left = min(max(left, 0), FRAME - new_width)
    framed = np.zeros((FRAME, FRAME), dtype=np.uint8)
    framed[top : top + new_height, left : left + new_width] = np.floor(255 * ink + 0.5)
    return framed


class Found(NamedTuple):
    """A digit in a picture: where it is, and what MNIST would make of it, uint8 (28, 28), light on dark."""

    box: Box
    image: NDArray[np.uint8]


def read_digits(rgb: Floats) -> list[list[Found]]:
    """Return the digits in ``rgb`` (H, W, 3), line by line, with boxes in its pixels: steps 4 to 12."""
    ink = find_ink(rgb)
    scale = ink.shape[0] // rgb.shape[0]  # more than 1 where a small picture was enlarged
    found = []
    for line in find_digits(ink):
        row = []
        for place, part in line:
            box = crop(part)
            image = centre(part[box.top : box.bottom, box.left : box.right])
            left, top = place.left + box.left, place.top + box.top
            right, bottom = place.left + box.right, place.top + box.bottom
            box = Box(left // scale, top // scale, -(-right // scale), -(-bottom // scale))
            row.append(Found(box, image))
        found.append(row)
    return found


def preprocess(picture: Image.Image) -> NDArray[np.uint8]:
    """Return the first digit in ``picture`` as MNIST has it, uint8 (28, 28), light on dark: steps 1 to 12."""
    return read_digits(read_colors(picture))[0][0].image
