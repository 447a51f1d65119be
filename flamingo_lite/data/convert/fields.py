"""The fields of a foreign record: those that its format has, of the right kinds, and no others.

What does not fit is a `SampleError` that names the field: a format that has changed is not guessed at.
"""

import base64
import binascii
from collections.abc import Mapping
from typing import Any

from flamingo_lite.document import END_OF_CHUNK, IMAGE_TOKEN, Image
from flamingo_lite.errors import SampleError

Kinds = Mapping[str, type | tuple[type, ...]]

_BASE64 = str.maketrans("-_", "+/")


def check_fields(record: Any, where: str, required: Kinds, optional: Kinds | None = None) -> dict[str, Any]:
    """The record, when it is an object that has exactly these fields. `where` names it in messages.

    Errors: `SampleError` ("fields") naming the field that is missing, unknown or of another kind.
    """
    known = {**required, **(optional or {})}
    if not isinstance(record, dict):
        raise SampleError(
            f"{where}: is a {type(record).__name__}; expected an object with {_list(required)}", "fields"
        )
    if missing := [name for name in required if name not in record]:
        raise SampleError(f"{where}: has no {_list(missing)}; expected {_list(required)}", "fields")
    if extra := [str(name) for name in record if name not in known]:
        raise SampleError(f"{where}: has an unknown field {_list(extra[:5])}; expected {_list(known)}", "fields")
    for name, value in record.items():
        kinds = known[name] if isinstance(known[name], tuple) else (known[name],)
        # True is an int to Python, but not in JSON.
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            expected = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
            found = "null" if value is None else type(value).__name__
            raise SampleError(f"{where}: {name} is a {found}; expected {expected}", "fields")
    return record


def check_list(values: list[Any], kind: type, where: str) -> list[Any]:
    """The list, when all of it is of one kind. Errors: `SampleError` ("fields") naming the entry that is not."""
    for number, value in enumerate(values):
        if not isinstance(value, kind) or isinstance(value, bool):
            raise SampleError(
                f"{where}: entry {number} is a {type(value).__name__}; expected {kind.__name__}", "fields"
            )
    return values


def plain_text(value: str, where: str) -> str:
    """The text without blanks at its ends.

    Errors: `SampleError` for a text that is empty ("empty"), holds `<image>` or `<|endofchunk|>` ("mark": they would
    be read as an image or as the end of a chunk), or cannot be written as UTF-8 ("text").
    """
    text = value.strip()
    if not text:
        raise SampleError(f"{where}: is empty; expected a text", "empty")
    check_text(text, where)
    return text


def check_text(text: str, where: str) -> None:
    """Errors: as `plain_text`, but a text may be empty."""
    for mark in (IMAGE_TOKEN, END_OF_CHUNK):
        if mark in text:
            raise SampleError(f"{where}: holds the mark {mark}; expected a text without it", "mark")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise SampleError(f"{where}: is no text in UTF-8 (a lone surrogate)", "text") from error


def image_from_base64(text: str, where: str) -> Image:
    """The image that a text in base64 holds, in either of its alphabets, with or without a `data:` head.

    Errors: `SampleError` ("image") where it is no base64.
    """
    _, _, body = text.rpartition("base64,")
    body = "".join(body.split()).translate(_BASE64).rstrip("=")
    try:
        return Image(base64.b64decode(body + "=" * (-len(body) % 4), validate=True), name=where)
    except (binascii.Error, ValueError) as error:
        raise SampleError(f"{where}: is no image in base64 ({error})", "image") from error


def _list(names: Any) -> str:
    return ", ".join(f"'{name}'" for name in names)
