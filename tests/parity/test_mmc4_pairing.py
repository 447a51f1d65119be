"""The pairing of MMC4's images and sentences, against OpenFlamingo's own code where that code pairs rightly: it takes
each image's most similar sentence and leaves the images in the order of their list."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flamingo_lite.data.convert import mmc4
from flamingo_lite.data.convert.frame import Reject, Unit
from flamingo_lite.data.convert.selection import select
from flamingo_lite.document import Document, Image
from flamingo_lite.text.template import Template
from tests.data.convert.pages import mmc4_page, picture, with_images

PICTURES = [picture(i) for i in range(6)]


class Letters:
    """A tokenizer whose tokens are characters, and OpenFlamingo's two marks: their text comes back unchanged."""

    additional_special_tokens = ["<|endofchunk|>", "<image>"]
    additional_special_tokens_ids = [0, 1]
    eos_token = "</s>"
    padding_side = "right"

    def __call__(self, text: str, **_: Any) -> dict[str, torch.Tensor]:
        self.text = text
        marked = text.replace("<|endofchunk|>", "\0").replace("<image>", "\1")
        ids = torch.tensor([[ord(letter) for letter in marked]])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.fixture(scope="module")
def their_data() -> Iterator[ModuleType]:
    """open_flamingo/train/data.py, which imports its neighbours by bare names."""
    spec = importlib.util.find_spec("open_flamingo")
    assert spec is not None and spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0]) / "train"
    names = set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        found = importlib.util.spec_from_file_location("open_flamingo_data", folder / "data.py")
        assert found is not None and found.loader is not None
        module = importlib.util.module_from_spec(found)
        found.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(folder))
        for name in ("data_utils",):
            if name not in names:
                sys.modules.pop(name, None)


def theirs(module: ModuleType, page: dict[str, Any]) -> tuple[str, int] | None:
    """Their text and number of images, None where they refuse the page."""
    tokenizer = Letters()
    try:
        images, _ = module.preprocess_interleaved(
            [json.dumps(page)], tokenizer, lambda image: torch.ones(3, 2, 2), 0.24, 2, 6, 10**6
        )
    except ValueError:
        return None
    return tokenizer.text, int((images.abs().sum((1, 2, 3)) > 0).sum())


def ours(page: dict[str, Any]) -> tuple[str, int] | None:
    """Our document, written by the template that they train with."""
    options = mmc4.Mmc4Options(min_images=2)
    for record in mmc4.page(Unit(Path("a.tar"), "a.tar"), 0, json.dumps(page).encode(), options):
        for outcome in (
            [record] if isinstance(record, Reject) else select(*record, mmc4.FORMAT, options, None)
        ):
            if not isinstance(outcome, Reject):
                return written(outcome[1]), len(outcome[1].images)
    return None


def written(document: Document) -> str:
    pieces = Template(begin=False).write(document, None, Letters.eos_token, complete=True)
    return "".join(piece.text for piece in pieces)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_text_marks_and_images_are_open_flamingos(their_data: ModuleType, data: st.DataObject) -> None:
    sentences = data.draw(st.integers(1, 8))
    images = data.draw(st.integers(0, min(6, sentences)))
    # Where they pair rightly: each image has a sentence to itself, and the images are listed as they stand.
    own = sorted(data.draw(st.permutations(range(sentences)))[:images])
    random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    similarity = random.uniform(-0.2, 0.1, (images, sentences))
    similarity[range(images), own] = random.uniform(0.2, 0.5, images)
    there = data.draw(st.sets(st.sampled_from(range(images)))) if images else set()
    sizes = {i: data.draw(st.sampled_from([PICTURES[i], PICTURES[i][:9_000]])) for i in there}
    page = with_images(mmc4_page([f"Sentence {i}." for i in range(sentences)], similarity), sizes)
    assert ours(page) == theirs(their_data, page)


def test_images_listed_in_another_order_are_paired_rightly_by_us_alone(their_data: ModuleType) -> None:
    """Their marks follow the text while their images follow the list: the first mark gets the picture of B."""
    page = with_images(mmc4_page(["A.", "B."], [[0, 0.5], [0.5, 0]]), dict(enumerate(PICTURES[:2])))
    taken: list[Any] = []
    module = SimpleNamespace(**vars(their_data))
    module.preprocess_interleaved(
        [json.dumps(page)],
        Letters(),
        lambda image: taken.append(image) or torch.ones(3, 2, 2),
        0.24,
        2,
        6,
        10**6,
    )
    assert [np.asarray(image).tobytes() for image in taken] == [
        np.asarray(Image(data).pil()).tobytes() for data in PICTURES[:2]
    ]
    options = mmc4.Mmc4Options(min_images=2)
    [(_, document)] = mmc4.page(Unit(Path("a.tar"), "a.tar"), 0, json.dumps(page).encode(), options)
    assert document.images == (Image(PICTURES[1]), Image(PICTURES[0]))
