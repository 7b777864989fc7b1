"""Draw what the network was shown, beside the picture it was found in."""

import io
import math

import numpy as np
from PIL import Image, ImageDraw

from datasets.pictures import Floats
from predict.preprocess import FRAME, Found

HEIGHT, CELL, TEXT = 448, 4 * FRAME, 14  # pixels: the sheet, an enlarged image, the line below it
BOX_COLOR = (220, 30, 60)


def draw_sheet(rgb: Floats, found: list[Found], answers: list[str]) -> bytes:
    """Return a PNG: the picture ``rgb`` (H, W, 3) with a box around each of ``found``, then their images.

    Each of ``answers`` is written above its box and below its image.
    """
    scale = HEIGHT / max(rgb.shape)
    size = tuple(max(1, math.floor(side * scale + 0.5)) for side in rgb.shape[1::-1])
    picture = Image.fromarray(np.floor(rgb * 255 + 0.5).astype(np.uint8)).resize((size[0], size[1]))
    rows = HEIGHT // (CELL + TEXT)
    columns = math.ceil(len(found) / rows)
    sheet = Image.new("RGB", (HEIGHT + columns * (CELL + 4), HEIGHT), (90, 90, 90))
    sheet.paste(picture, (0, 0))
    pen = ImageDraw.Draw(sheet)
    for i, (one, answer) in enumerate(zip(found, answers, strict=True)):
        text = answer.encode("ascii", "backslashreplace").decode()  # Pillow's font has few letters
        left, top, right, bottom = (side * scale for side in one.box)
        pen.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=BOX_COLOR)
        pen.text((left, max(0, top - TEXT)), text, fill=BOX_COLOR)
        x, y = HEIGHT + 4 + i // rows * (CELL + 4), i % rows * (CELL + TEXT)
        sheet.paste(Image.fromarray(one.image).resize((CELL, CELL), Image.Resampling.NEAREST), (x, y))
        pen.text((x, y + CELL), text, fill="white")
    file = io.BytesIO()
    sheet.save(file, "PNG")
    return file.getvalue()
