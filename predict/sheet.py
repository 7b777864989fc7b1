"""Draw what the network was shown, beside the picture that it is from."""

import io
import math

import numpy as np
from PIL import Image, ImageDraw

from datasets.pictures import Floats
from predict.preprocess import FRAME, DigitImage

HEIGHT, CELL, LINE = 448, 4 * FRAME, 14  # pixels: the sheet, an enlarged image, the line of text below it
BOX_COLOR = (220, 30, 60)


def draw_sheet(rgb: Floats, digits: list[DigitImage], answers: list[str]) -> bytes:
    """Return a PNG: ``rgb``, (H, W, 3) in [0, 1], with a box around each digit, and the digits' images.

    Each digit's answer is above its box and below its image.
    """
    scale = HEIGHT / max(rgb.shape)
    width, height = (max(1, math.floor(side * scale + 0.5)) for side in rgb.shape[1::-1])
    picture = Image.fromarray(np.floor(rgb * 255 + 0.5).astype(np.uint8)).resize((width, height))
    rows = HEIGHT // (CELL + LINE)
    sheet = Image.new("RGB", (HEIGHT + math.ceil(len(digits) / rows) * (CELL + 4), HEIGHT), (90, 90, 90))
    sheet.paste(picture)
    pen = ImageDraw.Draw(sheet)
    for i, (digit, answer) in enumerate(zip(digits, answers, strict=True)):
        answer = answer.encode("ascii", "backslashreplace").decode()  # Pillow's font has few letters
        left, top, right, bottom = (side * scale for side in digit.box)
        pen.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=BOX_COLOR)
        pen.text((left, max(0, top - LINE)), answer, fill=BOX_COLOR)
        x, y = HEIGHT + 4 + i // rows * (CELL + 4), i % rows * (CELL + LINE)
        sheet.paste(Image.fromarray(digit.image).resize((CELL, CELL), Image.Resampling.NEAREST), (x, y))
        pen.text((x, y + CELL), answer, fill="white")
    file = io.BytesIO()
    sheet.save(file, "PNG")
    return file.getvalue()
