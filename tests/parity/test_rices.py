"""OpenFlamingo's own RICES on the same images and encoder: the same neighbours, in the same order."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from flamingo_lite.document import Image
from flamingo_lite.evaluation.demonstrations import Example, uniform_support
from flamingo_lite.evaluation.retrieval import Retrieval
from flamingo_lite.evaluation.selection import Wanted, select
from flamingo_lite.evaluation.tasks import items_of
from flamingo_lite.models.parts import BACKBONES
from flamingo_lite.models.similarity import load_encoder

SHOTS = 6


@pytest.fixture
def their_rices(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Their class, with the packaged CLIP in place of one that would be downloaded."""
    import open_clip

    package = importlib.util.find_spec("open_flamingo")
    if package is None or package.origin is None:
        pytest.skip("open-flamingo 2.0.1 is not installed")
    # The script imports a module beside it by its bare name.
    utils = ModuleType("utils")
    utils.custom_collate_fn = lambda batch: {  # pyrefly: ignore
        "image": [item["image"] for item in batch]
    }
    monkeypatch.setitem(sys.modules, "utils", utils)
    path = Path(package.origin).parent / "eval" / "rices.py"
    spec = importlib.util.spec_from_file_location("their_rices", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = open_clip.create_model_and_transforms(f"local-dir:{BACKBONES / 'clip'}")
    monkeypatch.setattr(open_clip, "create_model_and_transforms", lambda *args, **options: made)
    yield module.RICES


def test_demonstrations_are_those_of_open_flamingo(their_rices: Any) -> None:
    items = items_of("captioning")
    support = [items.support("test", 0).examples[i] for i in range(60)]
    # What they have no rule for, an image that is the query's own, does not occur here.
    queries = [items.query("test", number) for number in range(8)]
    theirs = their_rices(
        [{"image": example.images[0].pil(), "id": example.id} for example in support],
        "cpu", batch_size=16,
    ).find([query.images[0].pil() for query in queries], SHOTS)  # fmt: skip
    retrieval = Retrieval({"image": lambda: load_encoder("tiny", "image")})
    pool = uniform_support("pool", support)
    for number, query in enumerate(queries):
        wanted = Wanted("captioning", "test", number, 0, SHOTS, query, pool)
        ours = select(wanted, "rices_image", "own", retrieval.selectors())
        assert [example.id for example in ours] == [found["id"] for found in theirs[number]]


def test_a_copy_of_the_query_is_shown_by_open_flamingo_and_not_here(their_rices: Any) -> None:
    items = items_of("captioning")
    support = [items.support("test", 0).examples[i] for i in range(20)]
    query = Example("query", (Image(support[7].images[0].data),), "", "")
    theirs = their_rices(
        [{"image": example.images[0].pil(), "id": example.id} for example in support],
        "cpu", batch_size=16,
    ).find([query.images[0].pil()], 2)  # fmt: skip
    wanted = Wanted("captioning", "test", 0, 0, 2, query, uniform_support("pool", support))
    retrieval = Retrieval({"image": lambda: load_encoder("tiny", "image")})
    ours = select(wanted, "rices_image", "own", retrieval.selectors())
    assert theirs[0][-1]["id"] == support[7].id
    assert support[7].id not in {example.id for example in ours}


def test_features_are_those_of_open_clip() -> None:
    import open_clip

    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{BACKBONES / 'clip'}")
    example = items_of("captioning").query("test", 0)
    with torch.no_grad():
        theirs: Any = model.encode_image(transform(example.images[0].pil())[None])  # pyrefly: ignore
    ours = load_encoder("tiny", "image").encode(example.images)
    assert torch.allclose(ours, theirs / theirs.norm(), atol=1e-6)
