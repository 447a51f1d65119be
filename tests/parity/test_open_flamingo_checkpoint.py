"""Checkpoints of OpenFlamingo's own model: logits and greedy tokens here are those of the model itself."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import flamingo_lite as fl
from flamingo_lite.document import Document, Image
from tests.parity.open_flamingo_reference import (
    FAMILIES,
    WORDS,
    Case,
    make_parts,
    published,
    reference,
    their_inputs,
)

TOLERANCE = 1e-4
SEEDS = range(26)


def random_case(seed: int) -> Case:
    draw = random.Random(seed)
    return Case(
        family=list(FAMILIES)[seed % len(FAMILIES)],
        width=draw.choice([32, 48]),
        depth=draw.choice([1, 2, 3, 4]),
        heads=draw.choice([2, 4]),
        every=draw.choice([1, 1, 2, 3]),
        vision_width=draw.choice([16, 24, 32]),
        final_norm=draw.random() < 0.3,
        latents=draw.choice([None, 1, 5]),
        resampler_depth=draw.choice([1, 2, None]),
        resampler_heads=draw.choice([None, 1, 3]),
        seed=seed,
    )


def random_documents(seed: int, image_of: Callable[[int], Image]) -> list[Document]:
    """Rows of unequal length: no image at all, text before the first image, several, neighbours."""
    draw = random.Random(seed)
    documents = []
    for _ in range(draw.choice([1, 2, 3])):
        segments = [
            image_of(draw.randrange(9)) if draw.random() < 0.4 else "".join(draw.choices("abc xyz 0123", k=4))
            for _ in range(draw.randrange(5))
        ]
        documents.append(Document([*segments, draw.choice(["q", " answer:"])]))
    return documents


def loaded(case: Case, directory: Path, nested: bool = False) -> tuple[Any, Any, Any]:
    """Their model, and ours from the checkpoint that their training would write of it."""
    case.every = min(case.every, case.depth)
    make_parts(case, directory)
    theirs = reference(case, directory)
    state: dict[str, Any] = published(theirs)
    if nested:
        state = {"epoch": 1, "model_state_dict": {f"module.{key}": value for key, value in state.items()}}
    torch.save(state, directory / "checkpoint.pt")
    return (theirs, *fl.load(directory))


def their_greedy(model: Any, inputs: dict[str, Tensor], suppressed: list[int], steps: int) -> Tensor:
    """Greedy tokens by whole forward passes, which need no trust in anyone's cache; `<image>` is never written."""
    start = inputs["lang_x"].shape[1]
    for _ in range(steps):
        logits = model(**inputs).logits[:, -1]
        logits[:, suppressed] = -torch.inf
        ids = logits.argmax(-1, keepdim=True)
        inputs = {
            "vision_x": inputs["vision_x"],
            "lang_x": torch.cat((inputs["lang_x"], ids), 1),
            "attention_mask": torch.cat((inputs["attention_mask"], torch.ones_like(ids)), 1),
        }
    return inputs["lang_x"][:, start:]


@pytest.mark.parametrize("seed", SEEDS)
def test_logits_and_greedy_tokens_are_theirs(
    seed: int, tmp_path: Path, image_of: Callable[[int], Image]
) -> None:
    theirs, model, processor = loaded(random_case(seed), tmp_path, nested=seed % 2 == 1)
    documents = random_documents(seed, image_of)
    # Heads that are not tied are left out of their checkpoints: what they say of new tokens is not kept.
    known = slice(0, None if seed % len(FAMILIES) else WORDS)
    for side in ("left", "right"):
        batch = processor(documents, padding_side=side)
        with torch.no_grad():
            expected, found = theirs(**their_inputs(batch)).logits, model(**batch).logits
        assert found.shape == expected.shape
        real = batch.attention_mask
        torch.testing.assert_close(
            found[real][:, known], expected[real][:, known], atol=TOLERANCE, rtol=TOLERANCE
        )
    batch = processor(documents, padding_side="left")
    suppressed = list(range(WORDS, expected.shape[-1])) if known.stop else [processor.image_token_id]
    with torch.no_grad():
        theirs_next = their_greedy(theirs, their_inputs(batch), suppressed, steps=4)
    ours_next = model.generate(
        batch.input_ids,
        attention_mask=batch.attention_mask,
        pixel_values=batch.pixel_values,
        media_index=batch.media_index,
        max_new_tokens=4,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=processor.tokenizer.pad_token_id,
        suppress_tokens=suppressed,
    )[:, batch.input_ids.shape[1] :]
    assert torch.equal(ours_next, theirs_next)
