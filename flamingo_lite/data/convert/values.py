"""Values of foreign records: what is wrong with one is a `SampleError` that names it."""

import base64
import binascii
from typing import Any

from flamingo_lite.document import Image
from flamingo_lite.errors import SampleError

_BASE64 = str.maketrans("-_", "+/")


def plain_text(value: str, where: str, reason: str = "text") -> str:
    """The text without blanks at its ends. Errors: `SampleError` (`reason`) where nothing is left."""
    if not (text := value.strip()):
        raise SampleError(f"{where}: is empty; expected a text", reason)
    return text


def list_of(kind: type, values: list[Any], where: str) -> list[Any]:
    """The list, when all of it is of one kind. Errors: `SampleError` ("layout") naming the entry that is not."""
    for number, value in enumerate(values):
        if type(value) is not kind:
            raise SampleError(
                f"{where}: entry {number} is a {type(value).__name__}, not a {kind.__name__}", "layout"
            )
    return values


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
