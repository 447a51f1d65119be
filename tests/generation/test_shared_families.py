"""Shared beginnings and trees of candidates in language models of many families: the same as without."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))

from language_families import FAMILIES, FIRST_NEW, PACKED_ALONE, join, random_language

from flamingo_lite.document import Image
from flamingo_lite.generation.generate import continuations
from flamingo_lite.generation.score import log_probabilities
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.text.stop import Stop
from flamingo_lite.text.tokenizer import Encoded

EVERY = {**FAMILIES, **PACKED_ALONE}
QUICK = ("Llama", "GPT-2", "OPT", "MPT", "Gemma2", "Falcon, ALiBi", "GPT-Neo")
ANSWERS = [[7], [7, 8], [7, 8, 9], [7, 9], [10, 11, 12, 13], [10, 11, 14], [15, 15, 15, 15, 15, 15]]


def prompts(images: list[Image]) -> list[Encoded]:
    """Three that share 18 tokens, two that share 20 of others, and one alone."""

    def prompt(ids: list[int], used: list[int]) -> Encoded:
        index, current = [], -1
        for token in ids:
            current += token == FIRST_NEW
            index.append(current)
        return Encoded(ids, ids, index, tuple(images[i] for i in used))

    one = [FIRST_NEW, *range(3, 12), FIRST_NEW, *range(20, 27)]
    two = [5, 5, FIRST_NEW, *range(30, 47)]
    return [
        prompt([*one, FIRST_NEW, 4], [0, 1, 2]),
        prompt([*one, 6, 6, 6, 6], [0, 1]),
        prompt([*two, FIRST_NEW, 9], [1, 0]),
        prompt([3, FIRST_NEW, 8], [2]),
        prompt([*one, FIRST_NEW, 4], [0, 1, 0]),
        prompt([*two, 3], [1]),
    ]


def processor() -> Any:
    """What the two ask of one."""

    def pixels(image: Image) -> torch.Tensor:
        return torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(int(image.id[:8], 16)))

    return SimpleNamespace(
        tokenizer=SimpleNamespace(
            pad_token_id=0, eos_token_id=None, get_vocab=dict, decode=lambda ids, **_: str(ids)
        ),
        image_transform=pixels,
        connector_text=lambda texts: {},
        template=SimpleNamespace(end_of_chunk=None, stop=None),
    )


@pytest.fixture(
    params=[pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in EVERY]
)
def family_model(request: Any, vision_directory: Path, set_gates: Any) -> VisionLanguageModel:
    return set_gates(join(random_language(EVERY[request.param]), vision_directory), 0.7).eval()


def test_a_family_finds_the_same_with_shared_beginnings_and_trees(
    family_model: VisionLanguageModel, image_of: Any
) -> None:
    encoded, its = prompts([image_of(i) for i in range(3)]), processor()
    scores, texts = {}, {}
    for share in (False, True):
        found = log_probabilities(family_model, its, encoded, ANSWERS, batch_size=64, share=share)
        scores[share] = torch.stack([row for _, row in sorted(found, key=lambda pair: pair[0])])
        texts[share] = dict(continuations(family_model, its, encoded, 4, Stop(), batch_size=64, share=share))
    torch.testing.assert_close(scores[True], scores[False], atol=1e-4, rtol=1e-4)
    for place, continuation in texts[False].items():
        assert texts[True][place].text == continuation.text
        assert texts[True][place].margin == pytest.approx(continuation.margin, abs=1e-3)
