"""Tiny directories as other people's classes write them, and random documents to read with both sides."""

from __future__ import annotations

import atexit
import io
import json
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import CLIPImageProcessor, PreTrainedTokenizerFast

import flamingo_lite as fl
from flamingo_lite.batch import Batch
from flamingo_lite.document import Document, Image
from flamingo_lite.errors import FlamingoError
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.processing import VisionLanguageProcessor

TOLERANCE = 1e-4
WORDS = 260
"""How many tokens `tokenizer` has without `<image>`: every byte, `<pad>`, `<s>`, `</s>` and `<unk>`."""


_FOLDERS = ExitStack()
atexit.register(_FOLDERS.close)


def folder() -> Path:
    """A new folder that is gone when the tests have ended: what lies in it is kept over tests."""
    return Path(_FOLDERS.enter_context(tempfile.TemporaryDirectory(prefix="flamingo-")))


@dataclass(frozen=True)
class Pair:
    """A directory, the reference that wrote it, and what was read of it here."""

    directory: Path
    theirs: Any
    model: VisionLanguageModel
    processor: VisionLanguageProcessor


def tokenizer(*more: str) -> PreTrainedTokenizerFast:
    """A token for each byte, which puts `<s>` before a text; `more` special tokens come last."""
    specials = ["<pad>", "<s>", "</s>", "<unk>", *more]
    vocabulary = {
        token: i for i, token in enumerate([*specials[:4], *sorted(pre_tokenizers.ByteLevel.alphabet())])
    }
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    core.add_special_tokens(specials)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def image_processor(size: int) -> CLIPImageProcessor:
    return CLIPImageProcessor(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        image_mean=[0.5] * 3,
        image_std=[0.3] * 3,
    )


def randomised(model: Any, seed: int) -> Any:
    # Stock weights leave logits so flat, and norms so plain, that a difference would go unnoticed.
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(
                1 + 0.1 * noise if "norm" in name.lower() and name.endswith("weight") else 0.2 * noise
            )
    return model.eval()


def picture(draw: Random, size: int | None = None) -> Image:
    """Noise, of any size unless one is given."""
    width, height = (draw.randint(8, 24), draw.randint(8, 24)) if size is None else (size, size)
    numbers = np.random.default_rng(draw.randint(0, 10**6)).integers(
        0, 256, (height, width, 3), dtype=np.uint8
    )
    buffer = io.BytesIO()
    PIL.Image.fromarray(numbers).save(buffer, "png")
    return Image(buffer.getvalue())


def words(draw: Random, most: int = 12) -> str:
    return "".join(draw.choice("abcdefgh ?") for _ in range(draw.randint(1, most)))


def interleaved(draw: Random) -> list[Document]:
    """Text first, no image, images in a row, of unequal lengths."""
    layouts = ["it", "titi", "t", "iit", "tit", "i"]
    chosen = [*draw.sample(layouts, 2), "titt"]
    return [Document([picture(draw) if kind == "i" else words(draw) for kind in layout]) for layout in chosen]


def with_position_ids(batch: Batch) -> dict[str, Any]:
    """What a reference class of transformers takes of a batch."""
    taken = {name: batch[name] for name in ("input_ids", "position_ids")}
    taken["attention_mask"] = batch.attention_mask.long()
    if len(batch.pixel_values):
        taken["pixel_values"] = batch.pixel_values
    return taken


def change(directory: Path, **fields: Any) -> None:
    """Other values in config.json."""
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def refused(directory: Path) -> str:
    """The one line with which a directory is refused."""
    with pytest.raises(FlamingoError) as caught:
        fl.load(directory)
    assert "\n" not in str(caught.value)
    return str(caught.value)
