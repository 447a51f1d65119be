"""`IdeficsForVisionText2Text` with random weights, in a directory as transformers saves it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    IdeficsConfig,
    IdeficsForVisionText2Text,
    IdeficsImageProcessor,
    IdeficsProcessor,
    PreTrainedTokenizerFast,
)

from flamingo_lite.batch import Batch
from tests.conftest import byte_tokenizer

WORDS = 259
IMAGE, FAKE, TURN = "<image>", "<fake_token_around_image>", "<end_of_utterance>"


@dataclass
class Case:
    """One random configuration of IDEFICS."""

    width: int = 32
    depth: int = 2
    heads: int = 2
    every: int = 1
    qk_norm: bool = True
    gate: str = "float"
    is_tied: bool = False
    latents: int = 3
    has_resampler: bool = True
    resampler_depth: int = 1
    resampler_heads: int = 2
    resampler_qk_norm: bool = True
    vision_width: int = 24
    vision_depth: int = 2
    is_instructed: bool = False
    seed: int = 0


def tokenizer_of(case: Case) -> PreTrainedTokenizerFast:
    tokenizer = byte_tokenizer()
    turn = [TURN] if case.is_instructed else []
    tokenizer.add_special_tokens({"additional_special_tokens": [FAKE, IMAGE, *turn]})
    return tokenizer


def config_of(case: Case) -> IdeficsConfig:
    return IdeficsConfig(
        vocab_size=WORDS,
        additional_vocab_size=2 + case.is_instructed,
        hidden_size=case.width,
        intermediate_size=case.width + 8,
        num_hidden_layers=case.depth,
        num_attention_heads=case.heads,
        cross_layer_interval=case.every,
        qk_layer_norms=case.qk_norm,
        alpha_type=case.gate,
        tie_word_embeddings=case.is_tied,
        use_resampler=case.has_resampler,
        max_position_embeddings=128,
        pad_token_id=258,
        bos_token_id=256,
        eos_token_id=256,
        vision_config={
            "embed_dim": case.vision_width,
            "image_size": 16,
            "patch_size": 8,
            "intermediate_size": 2 * case.vision_width,
            "num_hidden_layers": case.vision_depth,
            "num_attention_heads": 2,
        },
        perceiver_config={
            "use_resampler": case.has_resampler,
            "resampler_n_latents": case.latents,
            "resampler_depth": case.resampler_depth,
            "resampler_n_heads": case.resampler_heads,
            "resampler_head_dim": 8,
            "qk_layer_norms_perceiver": case.resampler_qk_norm,
        },
    )


def reference(case: Case, directory: Path) -> Any:
    """The model, saved with its processor in `directory`."""
    torch.manual_seed(case.seed)
    model = IdeficsForVisionText2Text(config_of(case)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Stock norms are 1 and 0, gates 0, and stock weights so small that a leak would hide below the tolerance.
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(directory)
    images = IdeficsImageProcessor(image_size=16)
    IdeficsProcessor(images, tokenizer_of(case), image_size=16).save_pretrained(directory)
    return model


def their_inputs(batch: Batch) -> dict[str, Tensor]:
    """A batch as their forward takes it: images (b m c h w) padded with blanks, and the mask (b t m) of who sees which."""
    counts = [len({i for i in row.tolist() if i >= 0}) for row in batch.media_index]
    most = max(1, *counts)
    pixels = torch.zeros(len(counts), most, *batch.pixel_values.shape[1:])
    mask = torch.zeros(*batch.input_ids.shape, most, dtype=torch.int64)
    start = 0
    for row, count in enumerate(counts):
        pixels[row, :count] = batch.pixel_values[start : start + count]
        for number in range(count):
            mask[row, :, number] = batch.media_index[row] == start + number
        start += count
    return {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask.long(),
        "pixel_values": pixels,
        "image_attention_mask": mask,
    }
