"""The three pipelines that `data.py` compares, each in a process of its own that times a burst whenever it is asked.

ours: shards to batches, as in training. theirs: OpenFlamingo's `get_mmc4_dataset`, its own code. limit: images that are
in memory are decoded and resized, by the same decoder at the same draft scale, and nothing else is done.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import io
import json
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch.utils.data import DataLoader, Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from flamingo_lite.data.make import DataConfig
from flamingo_lite.data.shards import Shards, read_shards
from flamingo_lite.image_transform import ImageTransform
from flamingo_lite.processing import VisionLanguageProcessor
from flamingo_lite.training.datamodule import ONLY_SOURCE, ShardDataModule
from flamingo_lite.training.settings import StageConfig

TOKENIZER = Path(__file__).parents[1] / "flamingo_lite" / "backbones" / "language"
MAX_LENGTH = 256  # their constant
PREFETCH = 2  # batches that each worker of a DataLoader prepares ahead
EPOCHS = 1000


def ours(folder: Path, batch_size: int, workers: int) -> Iterator[int]:
    """The images of each of our batches, as the training loop gets them and puts them on its device, here the CPU."""
    directory = str(folder / "shards")
    data = DataConfig(directory=directory)
    stage = StageConfig(steps=10**9, batch_size=batch_size)
    processor = VisionLanguageProcessor(tokenizer(), ImageTransform())
    module = ShardDataModule(
        {ONLY_SOURCE: Shards(directory)},
        data,
        stage,
        processor,
        seed=0,
        max_length=MAX_LENGTH,
        workers=workers,
    )
    for batch in module.train_dataloader():
        if batch.rejects:
            raise SystemExit(f"a document was not used: {batch.rejects[0].message}")
        yield len(batch.to("cpu").batch.pixel_values)


def theirs(folder: Path, batch_size: int, workers: int) -> Iterator[int]:
    """The images of each of their batches. Half of what they decode for documents of one image they then drop; each
    that is left counts twice."""
    module = open_flamingo_data()
    tars = sorted((folder / "mmc4").glob("*.tar"))
    arguments = argparse.Namespace(
        mmc4_shards=str(folder / "mmc4" / f"{{{tars[0].stem}..{tars[-1].stem}}}.tar"),
        dataset_resampled=True,
        train_num_samples_mmc4=10**9,
        batch_size_mmc4=batch_size,
        mmc4_textsim_threshold=0.24,
        mmc4_min_num_images=1,
        mmc4_max_num_images=6,
        workers=workers,
        world_size=1,
        seed=0,
    )
    data = module.get_mmc4_dataset(arguments, open_clip_transform(), their_tokenizer())
    for images, _ in data.dataloader:
        counts = (images.abs().amax(dim=(2, 3, 4)) > 0).sum(dim=1)  # the others are padding
        yield int((counts + (counts == 1)).sum())


def open_flamingo_data() -> Any:
    """`open_flamingo/train/data.py`. It is loaded by its path: the package imports models that need not be installed."""
    package = importlib.util.find_spec("open_flamingo")
    if package is None or package.origin is None:
        raise SystemExit("open-flamingo is not installed; expected open-flamingo==2.0.1 (make setup)")
    sys.path.insert(0, str(Path(package.origin).parent / "train"))  # it says `from data_utils import *`
    module = importlib.import_module("data")
    # webdataset >= 0.2.90 marks the end of a tar, which their grouping does not know.
    members = importlib.import_module("data_utils")
    members.tar_file_expander = functools.partial(members.tar_file_expander, eof_value=None)
    # Theirs would keep 5,000 documents of half a megabyte in each worker.
    module._SAMPLE_SHUFFLE_SIZE, module._SAMPLE_SHUFFLE_INITIAL = 200, 100
    logging.disable(logging.WARNING)  # a line for each document that they drop
    return module


def open_clip_transform() -> Any:
    """The evaluation transform of OpenAI's CLIP models, with which they train."""
    from open_clip.transform import PreprocessCfg, image_transform_v2

    return image_transform_v2(PreprocessCfg(size=(224, 224)), is_train=False)


def their_tokenizer() -> PreTrainedTokenizerBase:
    """The same tokenizer with their tokens, and two attributes that transformers 5 no longer has."""
    found = tokenizer()
    tokens = ["<|endofchunk|>", "<image>"]
    found.add_tokens(tokens, special_tokens=True)
    found.additional_special_tokens = tokens
    found.additional_special_tokens_ids = found.convert_tokens_to_ids(tokens)
    return found


def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(TOKENIZER)


def limit(folder: Path, batch_size: int, workers: int) -> Iterator[int]:
    """The images of documents that are in memory, decoded and resized; only their number leaves the worker."""
    loader = DataLoader(
        Bare(folder / "shards", batch_size), batch_size=None, shuffle=True, num_workers=workers
    )
    for _ in range(EPOCHS):
        yield from loader


class Bare(Dataset[int]):
    def __init__(self, directory: Path, batch_size: int) -> None:
        self.documents = [[image.data for image in d.images] for d in read_shards(directory)]
        self.batch_size = batch_size

    def __len__(self) -> int:
        return EPOCHS * len(self.documents) // self.batch_size

    def __getitem__(self, number: int) -> int:
        first = number * self.batch_size
        images = [
            image
            for i in range(first, first + self.batch_size)
            for image in self.documents[i % len(self.documents)]
        ]
        for image in images:
            decode_and_resize(image)
        return len(images)


def decode_and_resize(data: bytes, edge: int = 224) -> torch.Tensor:
    with PIL.Image.open(io.BytesIO(data)) as image:
        image.draft(None, (edge, edge))
        image.decodermaxblock = len(data)  # as ours
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    height, width = pixels.shape[1:]
    size = [edge * height // min(height, width), edge * width // min(height, width)]
    return torch.nn.functional.interpolate(pixels[None], size, mode="bicubic", antialias=True)[0]


PIPELINES = {"ours": ours, "theirs": theirs, "limit": limit}


def main() -> None:
    """Answers each line on stdin with a line of JSON, after a burst of so many batches as the line says."""
    _, name, folder, batch_size, workers = sys.argv
    torch.set_num_threads(1)
    batches = PIPELINES[name](Path(folder), int(batch_size), int(workers))
    ahead = PREFETCH * int(workers)
    next(batches)
    print(json.dumps({"ready": name}), flush=True)
    for line in sys.stdin:
        # What was prepared ahead of this burst is no part of it.
        for _ in range(ahead):
            next(batches)
        images, start = 0, time.perf_counter()
        for _ in range(int(line)):
            images += next(batches)
        seconds = time.perf_counter() - start
        # The workers go on until they are that far ahead; the next pipeline has the machine to itself.
        time.sleep(0.2 + 2 * ahead * seconds / int(line))
        print(json.dumps({"images": images, "seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
