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
from flamingo_lite.data.tar import is_member
from flamingo_lite.document import Document, Image, Text, image_format
from flamingo_lite.errors import FlamingoError

# No dot (it ends the key), no slash (it is a path), and short enough for every tar format.
KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,79}")
SLOT_LISTS = ("roles", "loss", "ends_chunk", "words")


def to_sample(key: str, document: Document) -> dict[str, str | bytes]:
    """The members of one sample: `{"__key__": key, "json": ..., "0.jpg": ..., ...}`; images keep their bytes.

    Errors: `FlamingoError` naming the key, when the key is no plain name, an image is none, or the document's
    meta would not come back equal from JSON.
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
        except FlamingoError as error:
            raise FlamingoError(f"sample {key}: {error}") from error
        slots.append((name, None))
    meta = {
        "roles": [s.role if isinstance(s, Text) else None for s in document],
        "loss": [s.loss if isinstance(s, Text) else None for s in document],
        "ends_chunk": [s.ends_chunk if isinstance(s, Text) else None for s in document],
        "words": [s.words if isinstance(s, Image) else None for s in document],
        "document": dict(document.meta),
    }
    sample = {"images": [image for image, _ in slots], "texts": [text for _, text in slots], "meta": meta}
    members["json"] = _dumps(key, sample).encode()
    return members


def from_sample(members: Mapping[str, Any], where: str) -> Document:
    """The document of one sample. `where` (shard and key) is named in errors, and in those of its images.

    Errors: `FlamingoError` for a sample without interleaved JSON, with lists that are not parallel, with a
    slot that has not exactly one value, or whose image is missing or none.
    """
    if "json" not in members:
        raise FlamingoError(
            f"{where}: the sample has no json; expected interleaved JSON with images and texts"
        )
    sample = _loads(members["json"], where)
    images, texts = sample.get("images"), sample.get("texts")
    if not isinstance(images, list) or not isinstance(texts, list) or len(images) != len(texts):
        raise FlamingoError(f"{where}: not interleaved JSON; expected parallel lists 'images' and 'texts'")
    meta = sample.get("meta") or {}
    if not isinstance(meta, dict):
        raise FlamingoError(f"{where}: meta is a {type(meta).__name__}; expected an object")
    roles, losses, ends, words = (_slot_list(meta, name, len(images), where) for name in SLOT_LISTS)
    segments: list[Text | Image] = []
    for slot, (image, text) in enumerate(zip(images, texts, strict=True)):
        if (image is None) == (text is None):
            raise FlamingoError(
                f"{where}: slot {slot} has both an image and a text, or neither; expected one"
            )
        if image is not None:
            segments.append(_image(members, image, _typed(words[slot], str, None, where, slot), where))
            continue
        segments.append(
            Text(
                _typed(text, str, "", where, slot),
                loss=_typed(losses[slot], bool, True, where, slot),
                role=_typed(roles[slot], str, None, where, slot),
                ends_chunk=_typed(ends[slot], bool, False, where, slot),
            )
        )
    own = meta.get("document", {k: v for k, v in meta.items() if k not in SLOT_LISTS})
    return Document(segments, _typed(own, dict, {}, where, "meta"), name=where)


def _image(members: Mapping[str, Any], name: Any, words: str | None, where: str) -> Image:
    # Lower case, because webdataset lowers the names of members.
    data = members.get(name.lower()) if isinstance(name, str) and is_member(name) else None
    if not isinstance(data, bytes):
        raise FlamingoError(f"{where}: image {name!r} is not in the shard, or no jpg, jpeg, png or webp")
    if image_format(data) is None:
        raise FlamingoError(f"{where}.{name}: not an image; expected JPEG, PNG or WebP")
    return Image(data, words=words, name=f"{where}.{name}")


def _slot_list(meta: dict[str, Any], name: str, length: int, where: str) -> list[Any]:
    values = meta.get(name)
    if values is None:
        return [None] * length
    if not isinstance(values, list) or len(values) != length:
        raise FlamingoError(f"{where}: meta.{name} is not a list of {length} entries, one per slot")
    return values


def _typed(value: Any, kind: type, default: Any, where: str, slot: int | str) -> Any:
    if value is None:
        return default
    if not isinstance(value, kind):
        found = type(value).__name__
        raise FlamingoError(f"{where}: slot {slot} holds a {found} where a {kind.__name__} was expected")
    return value


def _dumps(key: str, sample: dict[str, Any]) -> str:
    try:
        text = json.dumps(sample)
        # NaN, tuples and keys that are not strings pass through JSON, but come back as something else.
        if json.loads(text) == sample:
            return text
        reason = "it comes back changed"
    except (TypeError, ValueError, RecursionError) as error:
        reason = str(error)
    raise FlamingoError(
        f"sample {key}: meta cannot be kept as JSON ({reason}); use str keys, lists and numbers"
    )


def _loads(data: bytes, where: str) -> dict[str, Any]:
    try:
        sample = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FlamingoError(f"{where}: the sample's json cannot be parsed ({error})") from error
    if not isinstance(sample, dict):
        raise FlamingoError(f"{where}: not interleaved JSON; expected an object with images and texts")
    return sample
