"""Documents a minute and core of `flamingo-lite data convert --from mmc4`, every image decoded once, and where the time
goes: decoding the same images alone is timed in turns with it.

    python benchmarks/convert.py

makes JSON lines of pages with three images each and their folder of images, converts them again and again on one process,
and prints the medians. `--help` lists the sizes; `--profile` adds the functions that took most of the time.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import mmc4_like
import numpy as np

from flamingo_lite.data.convert.engine import Job, convert
from flamingo_lite.data.convert.mmc4 import Mmc4Options
from flamingo_lite.document import decode_image

IMAGES = 3
SENTENCES = 12


def page(number: int, names: list[str], draw: random.Random) -> dict[str, Any]:
    """A page whose images have a sentence each that is alike to them."""
    words = mmc4_like.VOCABULARY.split()
    places = draw.sample(range(SENTENCES), len(names))
    return {
        "url": f"https://pages.example/{number:08d}",
        "text_list": [" ".join(draw.choices(words, k=12)) + "." for _ in range(SENTENCES)],
        "similarity_matrix": [
            [draw.uniform(0.25, 0.35) if i == place else draw.uniform(0.05, 0.2) for i in range(SENTENCES)]
            for place in places
        ],
        "image_info": [
            {
                "image_name": name,
                "raw_url": f"https://images.example/{name}",
                "matched_text_index": place,
                "matched_sim": 0.3,
                "face_detections": None,
            }
            for name, place in zip(names, places, strict=True)
        ],
        "could_have_url_duplicate": 0,
    }


def make(folder: Path, documents: int, pool: int, edges: tuple[int, int]) -> list[bytes]:
    """Writes `folder/pages.jsonl` and `folder/images`; returns the images. Pages share a pool of images."""
    generator, draw = np.random.default_rng(0), random.Random(0)
    (folder / "images").mkdir(parents=True)
    names = [f"{i:06d}.jpg" for i in range(pool)]
    images = [mmc4_like.jpeg(edges, generator) for _ in names]
    for name, data in zip(names, images, strict=True):
        (folder / "images" / name).write_bytes(data)
    with (folder / "pages.jsonl").open("w") as file:
        for number in range(documents):
            file.write(json.dumps(page(number, draw.sample(names, IMAGES), draw)) + "\n")
    return images


def convert_once(folder: Path) -> tuple[float, int]:
    """Seconds of this core, and documents, of one conversion on this process."""
    options = Mmc4Options(images=folder / "images")
    start = time.process_time()
    _, converted = convert(
        Job("mmc4", options, folder / "shards", overwrite=True), [folder / "pages.jsonl"], 1
    )
    documents = sum(ledger.documents for ledger, _ in converted)
    return time.process_time() - start, documents


def decode_once(images: list[bytes]) -> float:
    """Seconds of this core to decode an image, on average."""
    start = time.process_time()
    for data in images:
        decode_image(data, "image")
    return (time.process_time() - start) / len(images)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--documents", type=int, default=400)
    parser.add_argument("--pool", type=int, default=120, help="different images")
    parser.add_argument("--edges", type=int, nargs=2, default=(400, 1200), help="pixels of an image's edges")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        images = make(folder, options.documents, options.pool, tuple(options.edges))
        print(f"{len(images)} images, {statistics.mean(map(len, images)) / 1000:.0f} KB on average")
        rates, shares = [], []
        for number in range(options.rounds):
            seconds, documents = convert_once(folder)
            decoding = decode_once(images) * IMAGES
            assert documents == options.documents, f"{documents} documents came of {options.documents}"
            rates.append(60 * documents / seconds)
            shares.append(decoding * documents / seconds)
            print(
                f"round {number + 1}: {rates[-1]:,.0f} documents a minute and core, {shares[-1]:.0%} of it decoding"
            )
        print(f"median: {statistics.median(rates):,.0f} documents a minute and core (wanted: 1,500 or more)")
        print(f"decoding alone: {statistics.median(shares):.0%} of the time")
        if options.profile:
            profile = cProfile.Profile()
            profile.runcall(convert_once, folder)
            pstats.Stats(profile).sort_stats("tottime").print_stats(25)


if __name__ == "__main__":
    main()
