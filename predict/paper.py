"""Find the sheet of paper in a picture that shows more than that, such as the desk around it: step 2."""

from collections.abc import Iterator

import numpy as np
from PIL import Image
from scipy import ndimage
from scipy.spatial import ConvexHull

from pictures import Floats, border, distance, round_half_up, to_bytes
from predict.components import Mask, dilate, label

REDUCED = 64  # pixels of the longer side of a reduced picture
CUTS = 0.4, 0.3, 0.2  # shares of the largest distance from the border's colour
SMALLEST, LARGEST = 0.1, 0.9  # a sheet's share of the picture
BLANK = 0.75  # share of a sheet that nothing is written on
CONVEX, RECTANGULAR = 0.91, 0.8  # share of its convex hull, and of the smallest rectangle around it
SHARP = 0.85  # share of the step across its outline that is within 3×3 pixels
CONTRAST = 0.2  # of sheet and rest, as a share of the way from black to white
WRITTEN = 0.3  # contrast of something on the sheet, as a share of that
ANGLES = np.radians(np.arange(0, 180, 2))


def shrink(rgb: Floats) -> Floats:
    """Average ``rgb`` (H, W, 3) in [0, 1] over areas, so that its longer side has 64 pixels."""
    picture = Image.fromarray(to_bytes(rgb))
    width, height = (max(1, round_half_up(side * REDUCED / max(picture.size))) for side in picture.size)
    return np.asarray(picture.resize((width, height), Image.Resampling.BOX)) / 255


def is_rectangular(mask: Mask) -> bool:
    """Tell whether ``mask`` (H, W) fills its convex hull, and the smallest rectangle around it."""
    corners = (np.argwhere(mask)[:, None] + [[0, 0], [0, 1], [1, 0], [1, 1]]).reshape(-1, 2)
    hull = ConvexHull(corners)
    lengths = np.ptp(corners[hull.vertices] @ [np.cos(ANGLES), np.sin(ANGLES)], axis=0)
    rectangle = (lengths * np.roll(lengths, len(lengths) // 2)).min()
    return bool(mask.sum() >= max(CONVEX * hull.volume, RECTANGULAR * rectangle))


def is_sharp(mask: Mask, away: Floats) -> bool:
    """Tell whether ``away`` (H, W) in [0, 1] changes at once along the outline of ``mask``, as at an edge."""
    near, far = (ndimage.maximum_filter(away, n) - ndimage.minimum_filter(away, n) for n in (3, 7))
    step = ndimage.maximum_filter(near, 3) / np.maximum(far, 1e-9)
    return bool(np.median(step[mask & dilate(~mask, 1)]) >= SHARP)


def is_written_on(mask: Mask, rgb: Floats) -> bool:
    """Tell whether something stands out from the sheet ``mask`` (H, W), 3 pixels inside it."""
    colour, other = np.median(rgb[mask], axis=0), np.median(rgb[~mask], axis=0)
    contrast, inside = abs(colour - other).max(), ~dilate(~mask, 3)
    return bool(contrast >= CONTRAST and (distance(rgb, colour)[inside] >= WRITTEN * contrast).any())


def find_sheets(mask: Mask, away: Floats, rgb: Floats) -> Iterator[Mask]:
    """Yield the components of ``mask`` (H, W) that look like paper in ``rgb``, with their holes filled."""
    labels = label(mask)
    areas = np.bincount(labels.ravel())
    for number in np.flatnonzero(areas[1:] >= BLANK * SMALLEST * labels.size) + 1:
        sheet = ndimage.binary_fill_holes(labels == number)
        if (
            areas[number] >= BLANK * sheet.sum()
            and SMALLEST <= sheet.mean() <= LARGEST
            and is_rectangular(sheet)
            and is_sharp(sheet, away)
            and is_written_on(sheet, rgb)
        ):
            yield sheet


def crop_to_sheet(rgb: Floats) -> tuple[Floats, Mask, tuple[int, int]]:
    """Crop ``rgb`` (H, W, 3) to the only sheet in it, and give what is beyond it its colour.

    Returns the colours of the sheet, where in them the sheet is, (H', W'), and their left and top in ``rgb``.
    Without a sheet, or with several, it is the whole picture.
    """
    sheets: list[Mask] = []
    if min(rgb.shape[:2]) >= REDUCED:
        small = shrink(rgb)
        away = distance(small, np.median(border(small), axis=0))
        for cut in CUTS:
            strong = away >= cut * away.max()
            sheets = [sheet for mask in (strong, ~strong) for sheet in find_sheets(mask, away, small)]
            if sheets:
                break
    if len(sheets) != 1:
        return rgb, np.ones(rgb.shape[:2], dtype=np.bool_), (0, 0)
    inside = Image.fromarray(~dilate(~sheets[0], 1))  # without its edge
    sheet = np.asarray(inside.resize(rgb.shape[1::-1], Image.Resampling.NEAREST))
    rows, columns = part = ndimage.find_objects(sheet.astype(np.int8))[0]
    paper = np.where(sheet[part][:, :, None], rgb[part], np.median(rgb[sheet], axis=0))
    return paper, sheet[part], (columns.start, rows.start)
