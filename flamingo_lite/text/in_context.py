"""Words tokenized as a part of the text around them, as if that had been tokenized in one go.

Many tokenizers put a blank before the first word of whatever they are given (SentencePiece's dummy prefix, GPT-2's
add_prefix_space). Of words in the middle of a text that would be a blank too many. And words are never special tokens:
what a user or a data set says must not end a turn.
"""

import json
from typing import Any, Literal, NamedTuple
from weakref import WeakKeyDictionary

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from flamingo_lite.errors import FlamingoError

Place = Literal["start", "token", "text"]
"""What stands before the words: nothing, a single token, or other words."""


class _Copies(NamedTuple):
    """Of one tokenizer, as it was when it had so many tokens."""

    tokens: int
    by_place: dict[Place, Tokenizer]


_COPIES: WeakKeyDictionary[PreTrainedTokenizerBase, _Copies] = WeakKeyDictionary()


def tokenize_in_context(tokenizer: PreTrainedTokenizerBase, words: str, place: Place) -> list[int]:
    """The ids of the words, none of them a special token.

    Errors: `FlamingoError` for a tokenizer that is not of the tokenizers library: its blanks cannot be told.
    """
    return _copy(tokenizer, place).encode(words, add_special_tokens=False).ids


def _copy(tokenizer: PreTrainedTokenizerBase, place: Place) -> Tokenizer:
    copies = _COPIES.get(tokenizer)
    if copies is None or copies.tokens != len(tokenizer):
        copies = _COPIES[tokenizer] = _Copies(len(tokenizer), {})
    if place not in copies.by_place:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise FlamingoError(
                f"{type(tokenizer).__name__} is no fast tokenizer, which conversation templates need; load one with "
                "use_fast=True, or train without template.conversation"
            )
        core = json.loads(backend.to_str())
        core["truncation"] = core["padding"] = None
        if place != "start":
            core["normalizer"] = _without_prefix(core["normalizer"], place)
            core["pre_tokenizer"] = _without_prefix(core["pre_tokenizer"], place)
        copy = Tokenizer.from_str(json.dumps(core))
        copy.encode_special_tokens = True
        copies.by_place[place] = copy
    return copies.by_place[place]


def _without_prefix(part: dict[str, Any] | None, place: Place) -> dict[str, Any] | None:
    """A normalizer or pre-tokenizer that puts no blank before words that stand at such a place in a text."""
    if part is None:
        return None
    if part["type"] == "Sequence":
        name = "normalizers" if "normalizers" in part else "pretokenizers"
        kept = [_without_prefix(inner, place) for inner in part[name]]
        return {**part, name: [inner for inner in kept if inner is not None]}
    if part["type"] == "Metaspace" and (place == "text" or part["prepend_scheme"] == "first"):
        return {**part, "prepend_scheme": "never"}
    if place == "text" and part["type"] == "Prepend":
        return None
    if place == "text" and part["type"] == "ByteLevel":
        return {**part, "add_prefix_space": False}
    return part
