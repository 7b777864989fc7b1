"""Tell ink from its background: steps 4 to 6 in docs/predict.md."""

from functools import reduce

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from pictures import SIDE, Floats, border, round_half_up, to_bytes
from predict.segment import STRONG
from runtime.errors import UserError

MIN_CONTRAST = 0.1  # of the way from black to white
LOW, HIGH = 0.15, 0.85  # of the strongest ink: below is paper, above is stroke
UNEVEN, FRAMED = 0.3, 0.9  # share of the border that is ink if the background varies; more is a frame
REDUCED, WINDOW = 64, 21  # pixels, of a varying background: its longer side, the median's window
ENLARGE = 4  # times, a picture smaller than MNIST's


def distance(rgb: Floats, background: Floats) -> Floats:
    """Return the largest difference over R, G, B, (H, W), of ``rgb`` to ``background``, (3,) or (H, W, 3)."""
    channels = np.moveaxis(abs(rgb - background), 2, 0)
    return reduce(np.maximum, channels)  # several times as fast as .max(axis=2)


def local_background(rgb: Floats) -> Floats:
    """Return the median of ``rgb`` around each pixel, (H, W, 3) like it: step 5."""
    picture = Image.fromarray(to_bytes(rgb))
    scale = REDUCED / max(picture.size)
    width, height = (max(1, round_half_up(side * scale)) for side in picture.size)
    reduced = picture.resize((width, height), Image.Resampling.BOX).filter(ImageFilter.MedianFilter(WINDOW))
    return np.asarray(reduced.resize(picture.size, Image.Resampling.BILINEAR)) / 255


def find_ink(rgb: Floats) -> Floats:
    """Return the ink in ``rgb`` (H, W, 3) as (H, W) in [0, 1]: steps 4 to 6.

    A picture smaller than MNIST's is enlarged: its ink is (4 H, 4 W). A blank one raises ``UserError``.
    """
    cut = LOW + STRONG * (HIGH - LOW)
    ink = distance(rgb, np.median(border(rgb), axis=0))
    if (ink >= cut * ink.max()).mean() > 0.5:
        ink = distance(rgb, np.median(rgb, axis=(0, 1)))
    share = (border(ink) >= cut * ink.max()).mean()
    if min(ink.shape) >= REDUCED and UNEVEN < share < FRAMED:
        ink = distance(rgb, local_background(rgb))
    if not ink.max() >= MIN_CONTRAST:
        raise UserError("it is blank: nothing in it stands out from the background")
    if max(ink.shape) < SIDE:
        enlarged = ImageOps.scale(Image.fromarray(ink.astype(np.float32)), ENLARGE, Image.Resampling.BICUBIC)
        ink = np.asarray(enlarged, dtype=np.float64)
    return np.asarray(np.clip((ink / ink.max() - LOW) / (HIGH - LOW), 0, 1))
