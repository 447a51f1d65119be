"""A document as a WebDataset sample, and back: canonical interleaved JSON beside the images' own bytes.

`key.json = {"images": [null, "0.jpg"], "texts": ["...", null], "meta": {...}}`: parallel lists, exactly one
non-null per slot; the image "0.jpg" is the member `key.0.jpg`. `meta` holds the lists `roles`, `loss`,
`ends_chunk`, `words`, one entry per slot, and the document's own meta under `document`. Energon's interleaved
samples have the same form without our meta, and are read with its defaults.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from flamingo_lite.data.images import suffix
from flamingo_lite.data.limits import Limits
from flamingo_lite.data.strict_json import loads
from flamingo_lite.data.tar import is_member
from flamingo_lite.document import Document, Image, Text, image_format
from flamingo_lite.errors import FlamingoError, SampleError

# No dot (it ends the key), no slash (it is a path), and short enough for every tar format.
KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,79}")
SLOT_LISTS = ("roles", "loss", "ends_chunk", "words")


def to_sample(key: str, document: Document) -> dict[str, str | bytes]:
    """The members of one sample: `{"__key__": key, "json": ..., "0.jpg": ..., ...}`; images keep their bytes.

    Errors: naming the key, `FlamingoError` when it is no plain name; `SampleError` when an image is none, the
    document's meta would not come back equal from JSON, or the sample would be refused by a reader (`Limits`).
    """
    if not KEY.fullmatch(key):
        raise FlamingoError(f"sample key {key!r}: expected 1 to 80 letters, digits, '-' or '_'")
    members: dict[str, str | bytes] = {"__key__": key}
    slots: list[tuple[str | None, str | None]] = []
    for segment in document:
        if isinstance(segment, Text):
            slots.append((None, segment.text))
            continue
        try:
            name = f"{len(members) - 1}.{suffix(segment)}"
            members[name] = segment.data
        except SampleError as error:
            raise SampleError(f"sample {key}: {error}", error.reason) from error
        slots.append((name, None))
    meta = {
        "roles": [s.role if isinstance(s, Text) else None for s in document],
        "loss": [s.loss if isinstance(s, Text) else None for s in document],
        "ends_chunk": [s.ends_chunk if isinstance(s, Text) else None for s in document],
        "words": [s.words if isinstance(s, Image) else None for s in document],
        "document": dict(document.meta),
    }
    images, texts = [image for image, _ in slots], [text for _, text in slots]
    sample = {"images": images, "texts": texts, "meta": meta}
    _check_amounts(images, texts, f"sample {key}", Limits())
    members["json"] = _dumps(key, sample).encode()
    return members


def from_sample(members: Mapping[str, Any], where: str, limits: Limits | None = None) -> Document:
    """The document of one sample. `where` (shard and key) is named in errors, and in those of its images, which are
    decoded later.

    Errors: `SampleError` for a sample without interleaved JSON, with lists that are not parallel, with a slot that
    has not exactly one value, whose image is missing or none, or that is above a limit.
    """
    limits = limits or Limits()
    if "json" not in members:
        raise SampleError(
            f"{where}: the sample has no json; expected interleaved JSON with images and texts", "json"
        )
    sample = loads(members["json"], where, limits.json_bytes, limits.json_depth)
    if not isinstance(sample, dict):
        raise SampleError(
            f"{where}: not interleaved JSON; expected an object with images and texts", "layout"
        )
    images, texts = sample.get("images"), sample.get("texts")
    if not isinstance(images, list) or not isinstance(texts, list) or len(images) != len(texts):
        raise SampleError(
            f"{where}: not interleaved JSON; expected parallel lists 'images' and 'texts'", "layout"
        )
    _check_amounts(images, texts, where, limits)
    meta = sample.get("meta") or {}
    if not isinstance(meta, dict):
        raise SampleError(f"{where}: meta is a {type(meta).__name__}; expected an object", "layout")
    roles, losses, ends, words = (_slot_list(meta, name, len(images), where) for name in SLOT_LISTS)
    segments: list[Text | Image] = []
    for slot, (image, text) in enumerate(zip(images, texts, strict=True)):
        if (image is None) == (text is None):
            raise SampleError(
                f"{where}: slot {slot} has both an image and a text, or neither; expected one", "layout"
            )
        if image is not None:
            shown = _typed(words[slot], str, None, where, slot)
            segments.append(_image(members, image, shown, where, limits))
            continue
        segments.append(
            Text(
                _typed(text, str, "", where, slot, "text"),
                loss=_typed(losses[slot], bool, True, where, slot),
                role=_typed(roles[slot], str, None, where, slot),
                ends_chunk=_typed(ends[slot], bool, False, where, slot),
            )
        )
    own = meta.get("document", {k: v for k, v in meta.items() if k not in SLOT_LISTS})
    return Document(segments, _typed(own, dict, {}, where, "meta"), name=where)


def _check_amounts(images: list[Any], texts: list[Any], where: str, limits: Limits) -> None:
    if (count := sum(image is not None for image in images)) > limits.images:
        raise SampleError(f"{where}: {count:,} images, above the limit of {limits.images:,}", "images")
    if (characters := sum(len(text) for text in texts if isinstance(text, str))) > limits.characters:
        raise SampleError(
            f"{where}: {characters:,} characters of text, above the limit of {limits.characters:,}", "text"
        )


def _image(members: Mapping[str, Any], name: Any, words: str | None, where: str, limits: Limits) -> Image:
    # Lower case, because webdataset lowers the names of members.
    data = members.get(name.lower()) if isinstance(name, str) and is_member(name) else None
    if not isinstance(data, bytes):
        raise SampleError(
            f"{where}: image {ascii(name)[:80]} is not in the shard, or no jpg, jpeg, png or webp", "member"
        )
    if image_format(data) is None:
        raise SampleError(f"{where}.{name}: not an image; expected JPEG, PNG or WebP", "image")
    return Image(data, words=words, name=f"{where}.{name}", max_pixels=limits.pixels)


def _slot_list(meta: dict[str, Any], name: str, length: int, where: str) -> list[Any]:
    values = meta.get(name)
    if values is None:
        return [None] * length
    if not isinstance(values, list) or len(values) != length:
        raise SampleError(f"{where}: meta.{name} is not a list of {length} entries, one per slot", "layout")
    return values


def _typed(value: Any, kind: type, default: Any, where: str, slot: int | str, reason: str = "layout") -> Any:
    if value is None:
        return default
    if not isinstance(value, kind):
        found = type(value).__name__
        raise SampleError(
            f"{where}: slot {slot} holds a {found} where a {kind.__name__} was expected", reason
        )
    return value


def _dumps(key: str, sample: dict[str, Any]) -> str:
    limits = Limits()
    try:
        text = json.dumps(sample)
        # NaN, tuples and keys that are not strings pass through JSON, but come back as something else.
        if loads(text.encode(), f"sample {key}", limits.json_bytes, limits.json_depth) == sample:
            return text
        reason = "it comes back changed"
    except (TypeError, ValueError, RecursionError) as error:
        reason = str(error)
    except SampleError as error:
        if error.reason not in ("json", "duplicate"):
            raise
        reason = str(error)
    raise SampleError(
        f"sample {key}: meta cannot be kept as JSON ({reason}); use str keys, lists and finite numbers",
        "layout",
    )
