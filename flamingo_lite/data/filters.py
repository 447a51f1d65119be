"""What a converted document must be like: pure functions of a document, its images and a few limits.

An image is judged by its bytes, then decoded once, which proves it whole, and judged by its pixels. Each
judgement is a `SampleError` whose reason is the word under which it is counted.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from flamingo_lite.data.deny import DenyList
from flamingo_lite.data.limits import DENY_DISTANCE, Limits
from flamingo_lite.data.strict_json import is_encodable
from flamingo_lite.document import END_OF_CHUNK, IMAGE_TOKEN, Document, Image, Text, decode_image
from flamingo_lite.errors import FlamingoError, SampleError

LIMITS = Limits()
"""What is above them would be refused when the shards are read."""


def option(default: Any, help: str) -> Any:
    """A field of options with the line that the command shows for it."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Filters:
    """The limits that all formats share; None: no limit. Errors: `FlamingoError` naming a value that cannot be."""

    min_bytes: int = option(0, "an encoded image has more bytes than this")
    min_side: int | None = option(None, "pixels of an image's shorter side, at least")
    max_side: int | None = option(None, "pixels of an image's longer side, at most")
    max_aspect: float | None = option(None, "an image's longer side over its shorter one, at most")
    min_similarity: float | None = option(None, "cosine of image and text, at least, where the data have it")
    min_text: int = option(0, "characters of a document, at least")
    max_text: int = option(LIMITS.characters, "characters of a document, at most")
    min_images: int = option(0, "images of a document, at least")
    max_images: int = option(LIMITS.images, "images of a document, at most")
    single_images: float = option(
        1.0, "the share of documents with a single image that stay, by a hash of their key"
    )
    deny: str | None = option(None, "a list of images to keep out, made by flamingo-lite data deny")
    deny_distance: int = option(
        DENY_DISTANCE, "bits of 64 in which the perceptual hash of a denied image may differ"
    )

    def __post_init__(self) -> None:
        for name in ("min_bytes", "min_side", "max_side", "min_text", "max_text", "min_images", "max_images"):
            if (value := getattr(self, name)) is not None and value < 0:
                raise FlamingoError(f"{name} is {value}; expected 0 or more")
        for low, high in (("min_side", "max_side"), ("min_text", "max_text"), ("min_images", "max_images")):
            least, most = getattr(self, low), getattr(self, high)
            if least is not None and most is not None and least > most:
                raise FlamingoError(f"{low} is {least} and {high} is {most}: nothing would be left")
        if self.max_aspect is not None and not self.max_aspect >= 1:
            raise FlamingoError(
                f"max_aspect is {self.max_aspect}; expected 1 or more (longer to shorter side)"
            )
        if self.min_similarity is not None and not -1 <= self.min_similarity <= 1:
            raise FlamingoError(
                f"min_similarity is {self.min_similarity}; expected a cosine, -1 to 1 (such as 0.24)"
            )
        if not 0 <= self.single_images <= 1:
            raise FlamingoError(f"single_images is {self.single_images}; expected a share, 0 to 1")
        if not 0 <= self.deny_distance <= 63:
            raise FlamingoError(f"deny_distance is {self.deny_distance}; expected 0 to 63 bits")


def check_image(image: Image, filters: Filters, deny: DenyList | None = None) -> None:
    """Errors: `SampleError` for an image that is too small or large in bytes or pixels, broken, or denied."""
    check_bytes(image, filters)
    pixels = decode_image(image.data, image.name)
    check_size(pixels.size, image.name, filters)
    if deny is not None and (denied := deny.find(image.data, pixels, filters.deny_distance)):
        raise SampleError(f"{image.name}: {denied}", "denied")


def check_bytes(image: Image, filters: Filters) -> None:
    """Errors: `SampleError` unless the encoded image has more than `min_bytes` bytes."""
    if len(image.data) <= filters.min_bytes and filters.min_bytes:
        raise SampleError(
            f"{image.name}: {len(image.data):,} bytes; expected more than {filters.min_bytes:,}",
            "small_image",
        )


def check_size(size: tuple[int, int], name: str, filters: Filters) -> None:
    """Errors: `SampleError` for an image with a side too short or too long, or too far from a square."""
    short, long = min(size), max(size)
    shown = f"{name}: {size[0]} x {size[1]} pixels"
    if filters.min_side is not None and short < filters.min_side:
        raise SampleError(f"{shown}; expected {filters.min_side} or more each way", "small_image")
    if filters.max_side is not None and long > filters.max_side:
        raise SampleError(f"{shown}; expected {filters.max_side} or fewer each way", "large_image")
    if filters.max_aspect is not None and long > filters.max_aspect * short:
        raise SampleError(f"{shown}; expected sides within 1 : {filters.max_aspect:g}", "aspect")


def check_similarity(similarity: float | None, name: str, filters: Filters) -> None:
    """Errors: `SampleError` for an image whose similarity to its text is under the threshold, or not known."""
    if filters.min_similarity is None:
        return
    if similarity is None:
        raise SampleError(f"{name}: has no similarity; leave min_similarity out", "layout")
    if similarity < filters.min_similarity:
        raise SampleError(
            f"{name}: similarity {similarity:.3f}, under {filters.min_similarity:g}", "similarity"
        )


def check_texts(document: Document, name: str, filters: Filters) -> None:
    """Errors: `SampleError` for texts too short or too long together, or that no tokenizer or template can take."""
    for text in (text.text for text in document.texts):
        for mark in (IMAGE_TOKEN, END_OF_CHUNK):
            if mark in text:
                raise SampleError(f"{name}: a text holds {mark}, which is a mark and no word", "marks")
        if not is_encodable(text):
            raise SampleError(f"{name}: a text holds half of a surrogate pair", "text")
    length = sum(len(text.text) for text in document.texts)
    if length < filters.min_text:
        raise SampleError(
            f"{name}: {length:,} characters of text; expected {filters.min_text:,} or more", "text"
        )
    if length > filters.max_text:
        raise SampleError(
            f"{name}: {length:,} characters of text; expected {filters.max_text:,} or fewer", "text"
        )


def check_bulk(document: Document, name: str) -> None:
    """Errors: `SampleError` for a document that would be refused, by its bytes, when the shards are read."""
    members = [len(image.data) for image in document.images]
    # As JSON, where a character outside ASCII takes six bytes; the other half is for what else stands there.
    written = sum(len(json.dumps(text.text)) for text in document.texts)
    if max(members, default=0) > LIMITS.member_bytes or sum(members) > LIMITS.sample_bytes * 0.9:
        raise SampleError(f"{name}: {sum(members):,} bytes of images, too many for a sample", "bytes")
    if written > LIMITS.json_bytes // 2:
        raise SampleError(f"{name}: {written:,} bytes of text as JSON, too many for a sample", "bytes")


def check_count(images: int, key: str, name: str, filters: Filters) -> None:
    """Errors: `SampleError` for too few or too many images, or one image where only a share of these stays."""
    if images < filters.min_images:
        raise SampleError(f"{name}: {images} images; expected {filters.min_images} or more", "images")
    if images > filters.max_images:
        raise SampleError(f"{name}: {images} images; expected {filters.max_images} or fewer", "images")
    if images == 1 and not in_share(key, filters.single_images):
        raise SampleError(
            f"{name}: one image; {filters.single_images:g} of these documents stay", "single_image"
        )


def in_share(key: str, share: float) -> bool:
    """Whether the key is among this share of all keys: by its hash, so that the answer is always the same."""
    return int.from_bytes(hashlib.sha256(f"single/{key}".encode()).digest()[:8]) < share * 2**64


def mark_chunks(segments: Sequence[Text | Image]) -> list[Text | Image]:
    """Interleaved segments with the ends of chunks where OpenFlamingo has them: a chunk is an image with its text,
    so it ends before the next image and at the end; what precedes the first image is no chunk."""
    marked: list[Text | Image] = []
    seen_image = False
    for position, segment in enumerate(segments):
        if isinstance(segment, Image):
            seen_image = True
            marked.append(segment)
            continue
        is_last = position + 1 == len(segments)
        ends = is_last or (seen_image and isinstance(segments[position + 1], Image))
        marked.append(Text(segment.text, segment.loss, segment.role, ends))
    return marked


def join_texts(segments: Sequence[Text | Image], joint: str) -> list[Text | Image]:
    """Texts that stand side by side as one, with `joint` between them."""
    joined: list[Text | Image] = []
    for segment in segments:
        if joined and isinstance(segment, Text) and isinstance(joined[-1], Text):
            joined[-1] = Text(f"{joined[-1].text}{joint}{segment.text}", segment.loss, segment.role)
        else:
            joined.append(segment)
    return joined
