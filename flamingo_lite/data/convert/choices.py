"""Options from words: KEY=VALUE, by the types of a dataclass."""

import types
import typing
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from flamingo_lite.errors import FlamingoError
from flamingo_lite.names import check_choice

WORDS: dict[Any, str] = {
    int: "whole number",
    float: "number",
    bool: "true or false",
    str: "text",
    Path: "path",
}
Chosen = TypeVar("Chosen")
TRUE, FALSE = ("true", "yes", "1"), ("false", "no", "0")


def make_options(kind: type[Chosen], words: Mapping[str, str], name: str) -> Chosen:
    """The options that the words give, the others at their defaults. `name`: what they are options of.

    Errors: `FlamingoError` for a key that is no option, with the nearest one, or a value of another type.
    """
    hints = typing.get_type_hints(kind)
    known = [field.name for field in fields(typing.cast(Any, kind))]
    values = {}
    for key, word in words.items():
        check_choice(f"option of {name}", key, known)
        values[key] = parse(hints[key], word, key)
    return kind(**values)


def parse(hint: Any, word: str, key: str) -> Any:
    """The word as a value of the type. Errors: `FlamingoError` naming the option."""
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if type(None) in kinds and word.lower() in ("none", "null"):
        return None
    kind = next(kind for kind in kinds if kind is not type(None))
    if typing.get_origin(kind) is typing.Literal:
        check_choice(f"value of {key}", word, typing.get_args(kind))
        return word
    if kind is bool:
        if word.lower() not in TRUE + FALSE:
            raise FlamingoError(f"{key}={word}: expected true or false")
        return word.lower() in TRUE
    if kind is Path:
        return Path(word)
    try:
        return kind(word)
    except ValueError as error:
        raise FlamingoError(f"{key}={word}: expected a {WORDS[kind]}") from error


def shown(kind: type[Any]) -> list[tuple[str, str, str, str]]:
    """(name, type, default, help) of each option, the shared ones first."""
    hints, defaults = typing.get_type_hints(kind), kind()
    rows = []
    for field in fields(kind):
        hint = hints[field.name]
        parts = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        words = [WORDS.get(part, str(part)) for part in parts if part is not type(None)]
        if typing.get_origin(hint) is typing.Literal:
            words = [str(choice) for choice in typing.get_args(hint)]
        default = getattr(defaults, field.name)
        rows.append((field.name, " or ".join(words), str(default), field.metadata.get("help", "")))
    return rows
