"""Documents like MMC4's, made here: tars as OpenFlamingo trains on (one `<key>.json` a document, its images in it as
base64), and what `flamingo-lite data convert` makes of them.

Images are 1/f noise, whose spectrum is that of photographs (Field, 1987), as JPEGs of about a quarter of a byte a pixel;
texts are common words. Every image has a sentence of its own that is alike to it.
"""

from __future__ import annotations

import base64
import io
import json
import random
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

MOST_IMAGES = 6
SENTENCES = (7, 12)  # and so below 256 tokens of the packaged tokenizer: nothing is cut off
WORDS = (4, 9)
QUALITIES = (80, 92)
ALIKE, UNALIKE = 0.3, 0.1  # similarities above and below the usual threshold of 0.24
VOCABULARY = (
    "the a of and to in is that it on was for with as his they at be this from have or by one had not but what all were "
    "when we there can an your which their said if do will each about how up out them then she many some so these would"
)


def photograph_like(width: int, height: int, generator: np.random.Generator) -> PIL.Image.Image:
    """Three correlated planes of noise whose amplitude falls with the frequency."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf
    common = generator.standard_normal((height, width))
    planes = []
    for _ in range(3):
        noise = common + 0.3 * generator.standard_normal((height, width))
        plane = np.fft.irfft2(np.fft.rfft2(noise) / frequency**1.4, (height, width))
        planes.append(127 + 50 * plane / plane.std())
    return PIL.Image.fromarray(np.stack(planes, axis=-1).clip(0, 255).astype(np.uint8))


def jpeg(edges: tuple[int, int], generator: np.random.Generator) -> bytes:
    """One encoded image, its edges and its quality drawn evenly."""
    width, height = (int(n) for n in generator.integers(edges[0], edges[1] + 1, 2))
    quality = int(generator.integers(QUALITIES[0], QUALITIES[1] + 1))
    buffer = io.BytesIO()
    photograph_like(width, height, generator).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def record(number: int, pool: list[bytes], draw: random.Random) -> dict[str, Any]:
    """One document as MMC4 writes it, its images drawn from the pool."""
    words = VOCABULARY.split()
    sentences = [
        " ".join(draw.choices(words, k=draw.randint(*WORDS))) + "." for _ in range(draw.randint(*SENTENCES))
    ]
    count = draw.randint(1, MOST_IMAGES)
    places = sorted(draw.sample(range(len(sentences)), count))
    similarities = [[UNALIKE] * len(sentences) for _ in places]
    for row, place in zip(similarities, places, strict=True):
        row[place] = ALIKE
    images = [
        {
            "image_name": f"{number:08d}_{i}.jpg",
            "raw_url": f"https://images.example/{number:08d}/{i}.jpg",
            "matched_text_index": place,
            "matched_sim": ALIKE,
            "image_base64": base64.b64encode(draw.choice(pool)).decode(),
        }
        for i, place in enumerate(places)
    ]
    return {
        "url": f"https://pages.example/{number:08d}",
        "text_list": sentences,
        "image_info": images,
        "similarity_matrix": similarities,
    }


def make(folder: Path, documents: int, tars: int, edges: tuple[int, int], pool: int, seed: int = 0) -> None:
    """Writes `folder/mmc4/{00000..}.tar` and `folder/shards`, unless they are there from the same numbers."""
    recipe = json.dumps([documents, tars, list(edges), pool, seed])
    made = folder / "recipe.json"
    if made.is_file() and made.read_text() == recipe:
        return
    generator, draw = np.random.default_rng(seed), random.Random(seed)
    images = [jpeg(edges, generator) for _ in range(pool)]
    (folder / "mmc4").mkdir(parents=True, exist_ok=True)
    records = [record(number, images, draw) for number in range(documents)]
    for number in range(tars):
        with tarfile.open(folder / "mmc4" / f"{number:05d}.tar", "w") as tar:
            for place in range(number, documents, tars):
                data = json.dumps(records[place]).encode()
                member = tarfile.TarInfo(f"{place:08d}.json")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    # With all that OpenFlamingo would drop by chance or as too small, so that both read the same documents.
    options = ["single_images=1.0", "min_bytes=0", "--workers", "1", "--overwrite"]
    command = [
        sys.executable,
        "-m",
        "flamingo_lite",
        "data",
        "convert",
        "--from",
        "mmc4",
        str(folder / "mmc4"),
    ]
    subprocess.run([*command, "--to", str(folder / "shards"), *options], check=True)
    made.write_text(recipe)
