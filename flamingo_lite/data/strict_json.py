"""Strict JSON: what another program would read otherwise, or could not write again, is refused.

UTF-8 without lone surrogates (tokenizers and files break on them), finite numbers, no field twice (readers
differ in which one they keep), and no nesting that a recursive reader could choke on.
"""

import json
import math
import re
from collections import Counter
from typing import Any

import numpy as np

from flamingo_lite.errors import SampleError, first_line

_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"')
_OTHER = re.compile(r"[^\[\]{}]+")
_STEPS = bytes.maketrans(b"[{]}", bytes([1, 1, 255, 255]))
_MAY_HOLD_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def loads(data: bytes, where: str, max_bytes: int, max_depth: int) -> Any:
    """The value of a JSON text. Errors: `SampleError` naming `where`, "bytes" before anything is parsed, "text" for
    a lone surrogate, "duplicate" for a field that comes twice, "json" for the rest."""
    if len(data) > max_bytes:
        raise SampleError(f"{where}: json of {len(data):,} bytes, above the limit of {max_bytes:,}", "bytes")
    try:
        text = data.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_not_a_number, parse_float=_finite)
    except _FieldTwice as error:
        raise SampleError(
            f"{where}: the json names the field {error} twice; expected once", "duplicate"
        ) from error
    except (ValueError, RecursionError) as error:
        raise SampleError(f"{where}: the json cannot be parsed ({first_line(error)})", "json") from error
    # Brackets are counted first: nearly every sample has fewer of them than may be nested.
    if text.count("[") + text.count("{") > max_depth and _is_deeper(text, max_depth):
        raise SampleError(f"{where}: the json is nested more than {max_depth} deep", "json")
    if _MAY_HOLD_SURROGATE.search(text) and not is_encodable(json.dumps(value, ensure_ascii=False)):
        raise SampleError(
            f"{where}: the json holds half of a surrogate pair; expected whole characters", "text"
        )
    return value


def is_encodable(text: str) -> bool:
    """Whether a text can be written as UTF-8, which half of a surrogate pair cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


class _FieldTwice(Exception):
    """Not a ValueError, which is what the parser's own complaints are."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        (twice, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise _FieldTwice(ascii(twice)[:60])
    return found


def _not_a_number(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _finite(digits: str) -> float:
    if not math.isfinite(value := float(digits)):
        raise ValueError(f"{digits[:20]} is no finite number")
    return value


def _is_deeper(text: str, depth: int) -> bool:
    """Of a text that has been parsed, so that every string in it ends."""
    brackets = _OTHER.sub("", _STRING.sub("", text)).encode("ascii")
    steps = np.frombuffer(brackets.translate(_STEPS), np.int8)
    return bool(np.cumsum(steps, dtype=np.int64).max(initial=0) > depth)
