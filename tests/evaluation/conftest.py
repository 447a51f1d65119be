"""A model on the disk, and a text generator that solves operator induction by rule, from an image's words: a perfect
reader."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from flamingo_lite.checkpoints.io import save
from flamingo_lite.document import Document, Image
from flamingo_lite.evaluation.answers import Generate
from flamingo_lite.evaluation.results import prompt_sha
from flamingo_lite.models.build import build_processor
from tests.conftest import Built

RULES = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "larger": max,
}


@pytest.fixture(scope="session")
def checkpoint(
    built: Built, model_config: dict[str, Any], set_gates: Any, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The directory of a model whose images matter; tests read it and leave it as it is."""
    directory = tmp_path_factory.mktemp("checkpoint") / "flamingo"
    save(set_gates(built.copied(), 0.7), build_processor(model_config), directory)
    return directory


@pytest.fixture(scope="session")
def solve() -> Generate:
    """Reads operands off images (or their words in the text), takes a rule that all demonstrations obey, and
    applies it; without such a rule, or without operands, it guesses, always alike.
    """
    return lambda documents, max_new_tokens: [_answer(document) for document in documents]


def _answer(document: Document) -> str:
    guess = random.Random(prompt_sha(document))
    words: str | None = None
    seen: list[tuple[str | None, str]] = []
    for segment in document:
        if isinstance(segment, Image):
            words = segment.words
        elif segment.text.startswith("["):
            words = segment.text.strip("[]")
        elif segment.ends_chunk:
            seen.append((words, segment.text.rpartition("=")[2].strip()))
    if words is None:
        return f" {guess.randrange(10)}"
    fitting = [name for name in RULES if all(_obeys(name, shown, answer) for shown, answer in seen)]
    trained = [name for name in fitting if name != "larger"]
    answer = _apply(guess.choice(trained or fitting or list(RULES)), words)
    last = document[len(document) - 1]
    return f" {words} = {answer}" if isinstance(last, Image) else f" {answer}"


def _obeys(rule: str, words: str | None, answer: str) -> bool:
    return words is not None and _apply(rule, words) == answer


def _apply(rule: str, words: str) -> str:
    a, b = map(int, words.split(" ? "))
    return str(RULES[rule](a, b))
