"""Draw the pictures in tests/data: ``python tests/draw_digits.py``. Two of each digit, each in another style.

``draw_page`` makes pages of several digits, ``draw_sheet`` and ``draw_cutout`` a sheet of paper with more
around it. The tests read these without writing them to files.

A digit is the path of a pen: points joined by a Catmull-Rom spline, with x to the right and y downwards in
[0, 1]. None of them comes from MNIST or from a font.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.float64]
Path2D = list[tuple[float, float]]

# fmt: off
PENS: dict[str, list[Path2D]] = {
    "0a": [[(.62, .06), (.36, .10), (.18, .36), (.16, .64), (.33, .92), (.58, .93), (.80, .68), (.82, .36),
           (.68, .10), (.50, .05)]],
    "0b": [[(.68, .10), (.50, .04), (.33, .24), (.25, .58), (.31, .88), (.47, .95), (.63, .77), (.72, .42),
           (.70, .18), (.60, .09)]],
    "1a": [[(.56, .04), (.53, .36), (.49, .66), (.46, .96)]],
    "1b": [[(.30, .27), (.44, .18), (.57, .05)], [(.57, .05), (.55, .40), (.56, .70), (.54, .95)]],
    "2a": [[(.22, .26), (.32, .10), (.54, .05), (.72, .18), (.70, .38), (.52, .62), (.34, .80), (.19, .93)],
           [(.19, .93), (.44, .91), (.62, .94), (.83, .90)]],
    "2b": [[(.26, .20), (.42, .07), (.62, .10), (.70, .28), (.60, .52), (.42, .76), (.26, .90), (.18, .86),
           (.24, .77), (.40, .82), (.58, .93), (.72, .94), (.84, .84)]],
    "3a": [[(.25, .14), (.46, .05), (.68, .13), (.68, .32), (.44, .46)], [(.44, .46), (.66, .52),
           (.77, .70), (.64, .90), (.40, .96), (.20, .86)]],
    "3b": [[(.22, .08), (.48, .08), (.74, .06)], [(.74, .06), (.60, .24), (.45, .41)], [(.45, .41),
           (.68, .45), (.78, .66), (.66, .88), (.44, .95), (.22, .90)]],
    "4a": [[(.34, .07), (.27, .30), (.20, .54)], [(.20, .54), (.46, .55), (.80, .51)], [(.66, .22),
           (.63, .56), (.60, .95)]],
    "4b": [[(.62, .05), (.42, .32), (.18, .63)], [(.18, .63), (.48, .64), (.84, .62)], [(.62, .05),
           (.61, .45), (.63, .96)]],
    "5a": [[(.34, .08), (.31, .26), (.27, .44)], [(.27, .44), (.48, .38), (.70, .50), (.75, .70),
           (.60, .91), (.38, .95), (.20, .86)], [(.34, .08), (.54, .09), (.76, .06)]],
    "5b": [[(.78, .08), (.56, .07), (.38, .10)], [(.38, .10), (.33, .28), (.31, .42)], [(.31, .42),
           (.52, .42), (.69, .55), (.66, .78), (.48, .92), (.22, .93)]],
    "6a": [[(.64, .05), (.42, .22), (.27, .50), (.24, .76), (.38, .94), (.60, .92), (.72, .74), (.62, .57),
           (.44, .57), (.28, .72)]],
    "6b": [[(.50, .04), (.36, .28), (.27, .58), (.30, .84), (.48, .96), (.66, .86), (.68, .68), (.54, .58),
           (.38, .65), (.30, .78)]],
    "7a": [[(.20, .10), (.48, .11), (.78, .08)], [(.78, .08), (.64, .36), (.50, .66), (.42, .95)]],
    "7b": [[(.20, .17), (.24, .09), (.50, .11), (.80, .09)], [(.80, .09), (.66, .34), (.54, .64),
           (.47, .95)], [(.36, .52), (.56, .50), (.76, .51)]],
    "8a": [[(.68, .16), (.48, .05), (.30, .16), (.36, .36), (.56, .50), (.73, .70), (.62, .91), (.40, .94),
           (.26, .78), (.38, .58), (.58, .42), (.70, .26), (.66, .13)]],
    "8b": [[(.50, .05), (.34, .14), (.35, .34), (.52, .45), (.67, .32), (.66, .13), (.50, .05)],
           [(.52, .45), (.30, .58), (.25, .80), (.46, .95), (.70, .86), (.74, .62), (.52, .45)]],
    "9a": [[(.70, .20), (.52, .06), (.32, .14), (.26, .34), (.40, .48), (.60, .42), (.71, .20)],
           [(.71, .20), (.70, .50), (.66, .74), (.61, .96)]],
    "9b": [[(.68, .16), (.48, .06), (.30, .22), (.33, .42), (.50, .48), (.66, .36), (.69, .17)],
           [(.69, .17), (.72, .48), (.68, .76), (.52, .93), (.30, .90)]],
}
# fmt: on


def spline(points: Path2D, steps: int = 60) -> Floats:
    """Return the Catmull-Rom spline through ``points``, (N, 2)."""
    p = np.array([points[0], *points, points[-1]])
    t = np.linspace(0, 1, steps)[:, None]
    pieces = [
        0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
        for a, b, c, d in zip(p, p[1:], p[2:], p[3:], strict=False)
    ]
    return np.concatenate(pieces)


def draw(
    pen: str, size: tuple[int, int], box: tuple[float, float, float, float], width: float, slant: float = 0
) -> Floats:
    """Return how much of each pixel, (height, width) in [0, 1], the path ``pen`` inks.

    ``size`` is width and height of the picture, ``box`` left, top, width and height of the digit's square in
    it, ``width`` the pen's, all in pixels; ``slant`` is how far, per height, the top leans to the right.
    """
    y, x = np.mgrid[: size[1], : size[0]] + 0.5
    nearest = np.full(x.shape, np.inf)
    for stroke in PENS[pen]:
        path = spline(stroke)
        pressure = 1 - 0.3 * np.linspace(-0.6, 1, len(path)) ** 2  # a pen presses hardest after its start
        for (u, v), press in zip(path, pressure, strict=True):
            px, py = box[0] + (u + slant * (0.5 - v)) * box[2], box[1] + v * box[3]
            reach = width / 2 + 1  # farther away, the pen leaves no ink
            rows = slice(max(0, int(py - reach)), max(0, int(py + reach) + 1))
            columns = slice(max(0, int(px - reach)), max(0, int(px + reach) + 1))
            near = np.hypot(x[rows, columns] - px, y[rows, columns] - py) - press * width / 2
            np.minimum(nearest[rows, columns], near, out=nearest[rows, columns])
    return np.clip(0.5 - nearest, 0, 1)


def paint(ink: Floats, colour: tuple[int, int, int], paper: Floats | tuple[int, int, int]) -> Floats:
    """Return RGB, (height, width, 3) in [0, 255]: ``colour`` where there is ``ink``, else ``paper``."""
    return np.asarray(paper + ink[:, :, None] * (np.array(colour) - paper))


def sheet(
    size: tuple[int, int], colour: tuple[int, int, int], shade: float, grain: float, seed: int
) -> Floats:
    """Return a photographed sheet, RGB (height, width, 3): ``colour`` at one corner, darker by ``shade`` (a
    share) at the other, with ``grain``, the standard deviation of each pixel."""
    y, x = np.mgrid[: size[1], : size[0]]
    light = 1 - shade * (x / size[0] + y / size[1]) / 2
    noise = np.random.default_rng(seed).normal(0, grain, (size[1], size[0], 1))
    return np.asarray(light[:, :, None] * np.array(colour) + noise)


def picture(values: Floats, mode: str | None = None) -> Image.Image:
    """Return ``values``, [0, 255], as a picture, converted to ``mode`` where given."""
    image = Image.fromarray(np.clip(values + 0.5, 0, 255).astype(np.uint8))
    return image.convert(mode) if mode else image


def with_alpha(ink: Floats, colour: tuple[int, int, int]) -> Image.Image:
    """Return ``colour`` where there is ``ink`` on a transparent ground."""
    values = np.concatenate([np.full((*ink.shape, 3), colour), 255 * ink[:, :, None]], axis=2)
    return picture(values)


def draw_page(seed: int, digits: list[tuple[int, Floats]]) -> tuple[Image.Image, list[str]]:
    """Return a page with one to three lines of two to nine of ``digits``, and the lines as texts.

    Each of ``digits`` is its class and its ink in [0, 1], of any size. Sizes, gaps, heights, shade, grain and
    colour vary with ``seed``; a third of the pages are light on dark.
    """
    rng = np.random.default_rng(seed)
    size, gap = int(rng.integers(30, 90)), rng.uniform(0.2, 0.6)
    count = int(rng.choice([1, 1, 2, 3]))
    pitch = int(size * rng.uniform(1.6, 2.1))
    page, texts = np.zeros((pitch * count + size, size * 17)), []
    for line in range(count):
        x, text = size // 2, ""
        for i in rng.integers(0, len(digits), rng.integers(2, 10)):
            name, ink = digits[i]
            height = size * rng.uniform(0.8, 1.15) * min(1, 1.2 * ink.shape[0] / ink.shape[1])
            width = max(3, int(height * ink.shape[1] / ink.shape[0]))
            scaled = (
                np.asarray(Image.fromarray((ink * 255).astype(np.uint8)).resize((width, int(height)))) / 255
            )
            y = int(size / 2 + pitch * line + (size - height) / 2 + size * rng.uniform(-0.08, 0.08))
            page[y : y + int(height), x : x + width] = scaled
            x, text = x + width + int(size * gap * rng.uniform(0.8, 1.2)), text + str(name)
        texts.append(text)
    page = page[:, : np.flatnonzero(page.any(axis=0))[-1] + size // 2]
    paper = sheet(page.shape[::-1], (235, 232, 225), rng.uniform(0, 0.3), rng.uniform(0, 6), seed)
    values = paint(page * rng.uniform(0.6, 1), (40, 40, 90), paper)
    return picture(255 - values if rng.random() < 1 / 3 else values), texts


def draw_sheet(seed: int, ink: Floats, kind: str) -> Image.Image:
    """Return a sheet with a digit, whose ``ink`` is (28, 28) in [0, 1], on a darker desk.

    ``kind`` is "desk" for a sheet within the picture, "turned" for one by up to 10°, and "side" or "corner"
    if the desk is only on one side or on two adjacent ones. Sizes, colours and noise vary with ``seed``.
    """
    rng = np.random.default_rng(seed)
    sheet, digit = int(rng.uniform(180, 320)), int(rng.uniform(90, 150))
    paper, pen, desk = rng.uniform(200, 255), rng.uniform(10, 80), rng.uniform(30, 110)
    around = rng.uniform(0.2, 0.6, (2, 2)) * sheet  # above, below, left and right of the sheet
    if kind == "corner":
        around[:, rng.integers(2)] = 0
    elif kind == "side":
        around.flat[np.arange(4) != rng.integers(4)] = 0
    grey = np.full((sheet, sheet), paper)
    scaled = Image.fromarray((ink * 255).astype(np.uint8)).resize((digit, digit), Image.Resampling.BICUBIC)
    start = int((sheet - digit) * rng.uniform(0.3, 0.7))
    grey[start : start + digit, start : start + digit] += np.asarray(scaled) / 255 * (pen - paper)
    widths = around.astype(int)
    values, covered = np.pad(grey, widths, constant_values=paper), np.pad(np.ones_like(grey), widths)
    if kind == "turned":
        angle = float(rng.choice([-1, 1]) * rng.uniform(3, 10))
        values, covered = (
            np.asarray(Image.fromarray(each.astype(np.float32)).rotate(angle, Image.Resampling.BILINEAR))
            for each in (values, covered)
        )
    values = desk + covered * (values - desk) + rng.normal(0, rng.uniform(1, 6), values.shape)
    return picture(values)


def draw_cutout(seed: int, ink: Floats, paper: int) -> Image.Image:
    """Return opaque paper with a digit, and a transparent margin around it.

    ``paper`` is its grey in [0, 255], and the digit's ``ink`` is (28, 28) in [0, 1]. The widths of sheet and
    margin vary with ``seed``.
    """
    rng = np.random.default_rng(seed)
    side, margin = int(rng.uniform(180, 320)), int(rng.uniform(10, 120))
    scaled = Image.fromarray((ink * 255).astype(np.uint8)).resize((side // 2,) * 2, Image.Resampling.BICUBIC)
    grey = np.full((side, side), float(paper))
    grey[side // 4 :, side // 4 :][: side // 2, : side // 2] += np.asarray(scaled) * (1 - 2 * paper / 255)
    grey, alpha = np.pad(grey, margin), np.pad(np.full_like(grey, 255), margin)
    return picture(np.stack([grey, grey, grey, alpha], axis=2))


def pens() -> list[tuple[int, Floats]]:
    """Return the twenty drawn digits for ``draw_page``, each cropped to its ink."""
    found = []
    for name in PENS:
        ink = draw(name, (100, 100), (10, 10, 80, 80), 8)
        rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
        found.append((int(name[0]), ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]))
    return found


def main(folder: Path) -> None:
    """Write the twenty pictures into ``folder``."""
    black, white = (0, 0, 0), (255, 255, 255)

    def save(name: str, image: Image.Image) -> None:
        image.save(folder / name)

    square = (160, 160)
    middle = (20, 20, 120, 120)
    save("0-thick.png", picture(paint(draw("0a", square, middle, 20), black, white), "L"))
    ink = draw("0b", (240, 320), (50, 80, 150, 160), 7)
    save("0-blue-pen.jpg", picture(paint(ink, (30, 40, 150), sheet((240, 320), (250, 244, 225), 0.1, 3, 1))))
    save("1-thin.png", picture(paint(draw("1a", square, middle, 3), black, white), "1"))
    save("1-inverted.png", picture(paint(draw("1b", square, middle, 12), white, black), "L"))
    save(
        "2-yellow-on-blue.png", picture(paint(draw("2a", square, middle, 10), (250, 220, 40), (30, 60, 170)))
    )
    ink = 0.75 * draw("2b", (300, 240), (80, 40, 160, 160), 6)
    save(
        "2-pencil.jpg", picture(paint(ink, (60, 60, 65), sheet((300, 240), (235, 232, 228), 0.25, 5, 2)), "L")
    )
    save("3-small.png", picture(paint(draw("3a", (600, 600), (390, 130, 60, 60), 5), black, white), "L"))
    save("3-alpha.png", with_alpha(draw("3b", square, middle, 9), black))
    grey = 1 - 0.9 * draw("4a", square, middle, 8)
    save("4-16bit.png", Image.fromarray((grey * 60000).astype(np.uint16)))
    save("4-red-on-green.png", picture(paint(draw("4b", square, middle, 16), (200, 30, 40), (90, 170, 100))))
    save("5-thin.png", picture(paint(draw("5a", (400, 400), (80, 60, 260, 280), 4, 0.15), black, white), "L"))
    ink = draw("5b", (240, 240), (50, 40, 150, 160), 11)
    ink *= np.random.default_rng(3).uniform(0.55, 1, ink.shape)
    save("5-chalk.jpg", picture(paint(ink, (235, 235, 230), sheet((240, 240), (40, 75, 60), 0.2, 5, 4))))
    save("6-white-alpha.png", with_alpha(draw("6a", square, middle, 10), white))
    ink = draw("6b", (300, 400), (70, 110, 160, 190), 9, 0.1)
    save(
        "6-shaded-paper.jpg",
        picture(paint(ink, (40, 35, 40), sheet((300, 400), (240, 235, 220), 0.35, 6, 5))),
    )
    save("7-thin.png", picture(paint(draw("7a", square, middle, 4), black, white), "L"))
    save("7-crossed-palette.png", picture(paint(draw("7b", square, middle, 9), (90, 20, 110), white), "P"))
    save("8-corner.png", picture(paint(draw("8a", (300, 200), (0, 95, 100, 100), 8), black, white), "L"))
    save("8-tiny.png", picture(paint(draw("8b", (14, 16), (0, 0, 14, 16), 1.6), black, white), "L"))
    turned = picture(paint(draw("9a", (200, 260), (30, 50, 140, 160), 10), (20, 20, 20), white), "L")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise for viewing, as a phone held upright writes it
    turned.transpose(Image.Transpose.ROTATE_90).save(folder / "9-exif-turned.jpg", exif=exif)
    save("9-cmyk.jpg", picture(paint(draw("9b", square, middle, 8), (20, 90, 60), (250, 235, 240)), "CMYK"))


if __name__ == "__main__":
    main(Path(__file__).parent / "data")
