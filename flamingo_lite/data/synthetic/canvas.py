"""Pictures, 64 pixels wide and 32 high: rendered text, real handwriting, noise and JPEG compression, all from one generator.

Three sources keep training and test apart: `train` uses every font but one and four fifths of the handwritten
scans; `test` uses only the held-out font and the held-out scans; `handwritten` only the held-out scans.
"""

from __future__ import annotations

import functools
import io
import pathlib
import random
from typing import Any, Literal

import matplotlib
import numpy as np
import PIL.Image
from PIL import ImageDraw, ImageFont

Source = Literal["train", "test", "handwritten"]
Colour = tuple[int, int, int]

WIDTH, HEIGHT = 64, 32
HELD_OUT_FONT = "cmss10"
TRAINING_FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSans-BoldOblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSansMono-Oblique",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
    "DejaVuSerif-BoldItalic",
    "STIXGeneral",
    "STIXGeneralBol",
    "STIXGeneralItalic",
    "cmr10",
    "cmb10",
    "cmtt10",
)
HANDWRITTEN_SHARE = 0.25


@functools.lru_cache(maxsize=512)
def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """One of the fonts that matplotlib ships, at `size` pixels."""
    folder = pathlib.Path(matplotlib.get_data_path(), "fonts", "ttf")
    return ImageFont.truetype(str(folder / f"{name}.ttf"), size)


@functools.lru_cache(maxsize=1)
def _scans() -> dict[bool, list[list[np.ndarray]]]:
    """scikit-learn's 1,797 handwritten digits (8 x 8, 0 to 16), keyed by held-out, then by digit."""
    from sklearn.datasets import load_digits  # takes a second: only when a scan is drawn

    digits: Any = load_digits()  # a Bunch; typed as if it might be a pair of arrays
    scans: dict[bool, list[list[np.ndarray]]] = {
        False: [[] for _ in range(10)],
        True: [[] for _ in range(10)],
    }
    for index, (pixels, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        scans[index % 5 == 0][int(digit)].append((pixels * (255 / 16)).astype(np.uint8))
    return scans


def scan(digit: int, height: int, generator: random.Random, held_out: bool) -> PIL.Image.Image:
    """A handwritten `digit` as a grey mask (L, ink is white) of `height` pixels."""
    pixels = generator.choice(_scans()[held_out][digit])
    return PIL.Image.fromarray(pixels).resize((height, height), PIL.Image.Resampling.BICUBIC)


def colours(generator: random.Random) -> tuple[Colour, Colour]:
    """A background and an ink: dark on light three times out of four, otherwise light on dark."""
    light, dark = (
        (generator.randint(low, low + 95), generator.randint(low, low + 95), generator.randint(low, low + 95))
        for low in (160, 10)
    )
    return (light, dark) if generator.random() < 0.75 else (dark, light)


def brightness(colour: tuple[int, ...]) -> float:
    """Rec. 601 luma, 0 to 255."""
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]


def draw_text(text: str, generator: random.Random, source: Source = "train") -> bytes:
    """`text` on a plain ground as JPEG bytes; a space separates glyphs widely, and long texts take two lines."""
    background, ink = colours(generator)
    canvas = PIL.Image.new("RGB", (WIDTH, HEIGHT), background)
    held_out = source != "train"
    by_hand = source == "handwritten" or generator.random() < HANDWRITTEN_SHARE
    name = HELD_OUT_FONT if held_out else generator.choice(TRAINING_FONTS)
    lines = _lines(text)
    longest = max(sum(0.5 if glyph == " " else 1.0 for glyph in line) for line in lines)
    largest = min(WIDTH / (0.66 * longest + 0.3), HEIGHT / len(lines))
    height = max(10, int(largest * generator.uniform(0.8, 1.0)))
    slot = height * 0.66
    spare = HEIGHT - height * len(lines)
    top = generator.uniform(0.1, 0.9) * max(0.0, spare)
    for line in lines:
        width = sum(slot * (0.5 if glyph == " " else 1.0) for glyph in line)
        left = generator.uniform(0.05, 0.95) * max(0.0, WIDTH - width)
        for glyph in line:
            if glyph == " ":
                left += slot * 0.5
                continue
            mask = _glyph(glyph, height, name, by_hand, held_out, generator)
            x = left + (slot - mask.width) / 2 + generator.uniform(-0.04, 0.04) * height
            y = top + (height - mask.height) / 2 + generator.uniform(-0.05, 0.05) * height
            canvas.paste(ink, (round(x), round(y)), mask)
            left += slot
        top += height
    return finish(canvas, generator)


def _lines(text: str) -> list[str]:
    """One line up to seven glyphs; otherwise broken at the space, or the glyph, nearest to the middle."""
    if len(text.replace(" ", "")) <= 7:
        return [text]
    middle = len(text) // 2
    spaces = [i for i, glyph in enumerate(text) if glyph == " "]
    cut = min(spaces, key=lambda i: abs(i - middle)) if spaces else middle
    return [text[:cut].strip(), text[cut:].strip()]


def _glyph(
    glyph: str, height: int, name: str, by_hand: bool, held_out: bool, generator: random.Random
) -> PIL.Image.Image:
    if by_hand and glyph.isdecimal():
        mask = scan(int(glyph), round(height * 0.9), generator, held_out)
    else:
        mask = _typed(glyph, height, name)
    angle = generator.uniform(-8, 8)
    return mask.rotate(angle, PIL.Image.Resampling.BILINEAR) if abs(angle) > 2 else mask


@functools.lru_cache(maxsize=20_000)
def _typed(glyph: str, height: int, name: str) -> PIL.Image.Image:
    """A glyph's mask, as tall as the line, so that baselines agree."""
    type_size = max(6, round(height * 0.95))
    face = font(name, type_size)
    left, _, right, _ = face.getbbox(glyph, anchor="ls")
    mask = PIL.Image.new("L", (max(1, int(right - left) + 2), height), 0)
    ImageDraw.Draw(mask).text((1 - left, round(height * 0.82)), glyph, fill=255, font=face, anchor="ls")
    return mask


def finish(canvas: PIL.Image.Image, generator: random.Random) -> bytes:
    """Sensor noise on half of the pictures, then JPEG at a random quality."""
    if generator.random() < 0.5:
        noise = np.random.default_rng(generator.getrandbits(64)).normal(
            0, generator.uniform(2, 14), (HEIGHT, WIDTH, 1)
        )
        canvas = PIL.Image.fromarray(np.clip(np.asarray(canvas) + noise, 0, 255).astype(np.uint8))
    encoded = io.BytesIO()
    canvas.save(encoded, "JPEG", quality=generator.randint(45, 95))
    return encoded.getvalue()
