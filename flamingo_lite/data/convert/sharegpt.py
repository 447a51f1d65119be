"""ShareGPT-style messages: `{messages: [{role, content}]}` or `{conversations: [{from, value}]}`, a JSON list or lines.

A content is a text with `<image>` marks, or a list of typed parts as chat interfaces have it. Images are named by the
parts, or by `images` in the order of the marks: files in the folder of --images, or base64 in a `data:` address.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from flamingo_lite.data.convert.frame import Format, Options, Record, Unit, attempt, fields, files
from flamingo_lite.data.convert.json_records import cut, read_records, section
from flamingo_lite.data.convert.sources import image_in, json_lines, parse_json
from flamingo_lite.data.convert.values import image_from_base64
from flamingo_lite.data.filters import option
from flamingo_lite.document import IMAGE_TOKEN, Document, Image, Text
from flamingo_lite.errors import SampleError
from flamingo_lite.text.turns import check_turns, turns_of

ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
LISTS = {"messages": ("role", "content"), "conversations": ("from", "value")}
"""The names that a list of messages has, and those of its messages' fields; either goes with either."""
LINES = (".jsonl", ".jsonl.gz")


@dataclass(frozen=True)
class ShareGptOptions(Options):
    ignore: str = option(
        "", "fields beyond the format's own that records may have, separated by commas; not kept"
    )


def units(inputs: Sequence[Path], options: ShareGptOptions) -> list[Unit]:
    found = files(inputs, ".json", *LINES)
    return [
        part
        for unit in found
        for part in ([unit] if unit.path.name.endswith(LINES) else cut(unit, section(unit.path, list)))
    ]


def read(unit: Unit, options: ShareGptOptions) -> Iterator[Record]:
    if not unit.path.name.endswith(LINES):
        yield from read_records(unit, section(unit.path, list), partial(conversation, options))
        return
    for number, line in json_lines(unit.path):
        where = unit.where(number)
        yield attempt(unit.key(number), partial(_from_line, options, line, where))


def _from_line(options: ShareGptOptions, line: bytes, where: str) -> Document:
    return conversation(options, None, parse_json(line, where), where)


def conversation(options: ShareGptOptions, key: str | None, record: Any, where: str) -> Document:
    """The messages in order; the assistant's are trained on, and each ends a chunk.

    Errors: `SampleError`; "marks" for more or fewer images than marks, "role", "turns" and "answer" for messages that
    are no conversation.
    """
    name = next((name for name in LISTS if isinstance(record, dict) and name in record), "messages")
    ignored = {word.strip(): object for word in options.ignore.split(",") if word.strip()}
    optional = {"id": (str, int), "image": (str, list), "images": (str, list), "system": str, **ignored}
    fields(record, where, {name: list}, optional)
    named = [image for field in ("image", "images") for image in _listed(record.get(field, []))]
    waiting = iter(named)
    segments: list[Text | Image] = []
    if record.get("system"):
        segments.append(Text(record["system"], False, "system"))
    marks = 0
    for number, message in enumerate(record[name]):
        place = f"{where}: message {number}"
        role, parts = _message(message, place)
        marks += sum(part is None for part in parts)
        segments += _segments(role, parts, waiting, options, place)
    if marks != len(named):
        raise SampleError(
            f"{where}: {marks} {IMAGE_TOKEN} marks for {len(named)} images; expected one mark each", "marks"
        )
    document = Document(segments, {"id": record["id"]} if "id" in record else {})
    check_turns(turns_of(document, where), True, where)
    return document


Part = str | tuple[str, str] | None
"""Words, an image by its name (`("image", name)`), or the mark of the next of `images`."""


def _message(message: Any, where: str) -> tuple[str, list[Part]]:
    if not isinstance(message, dict):
        raise SampleError(f"{where}: a {type(message).__name__}; expected a message", "layout")
    speaks, says = next((pair for pair in LISTS.values() if pair[0] in message), LISTS["messages"])
    fields(message, where, {speaks: str, says: (str, list)})
    if message[speaks] not in ROLES:
        raise SampleError(f"{where}: is from {message[speaks]!r}; expected {', '.join(ROLES)}", "role")
    content = message[says]
    parts = [content] if isinstance(content, str) else content
    found = [piece for number, part in enumerate(parts) for piece in _part(part, f"{where}: part {number}")]
    return ROLES[message[speaks]], found


def _part(part: Any, where: str) -> Iterator[Part]:
    """A typed part, or a text of which each mark is one."""
    if isinstance(part, str):
        part = {"type": "text", "text": part}
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    if kind == "text" and isinstance(part.get("text"), str):
        first, *others = part["text"].split(IMAGE_TOKEN)
        yield first
        for words in others:
            yield None
            yield words
        return
    if kind not in ("image", "image_url"):
        raise SampleError(f"{where}: of type {kind!r}; expected a text, an image or an image_url", "layout")
    source = next((part[name] for name in ("image", "path", "url", "image_url") if part.get(name)), None)
    source = source.get("url") if isinstance(source, dict) else source
    if source is not None and not isinstance(source, str):
        raise SampleError(f"{where}: its image is a {type(source).__name__}; expected a name", "layout")
    yield None if source is None else ("image", source)


def _segments(
    role: str, parts: Sequence[Part], waiting: Iterator[Any], options: ShareGptOptions, where: str
) -> Iterator[Text | Image]:
    """A message as texts and images. Its ends lose their blanks, its images the newlines around them."""
    is_trained = role == "assistant"
    kept = [part for part in parts if part != ""]
    if not kept or kept[0] is None or isinstance(kept[0], tuple):
        yield Text("", is_trained, role)  # whose the images are
    last = len(kept) - 1
    for number, part in enumerate(kept):
        if not isinstance(part, str):
            name = part[1] if part is not None else next(waiting, None)
            if name is None:
                raise SampleError(f"{where}: a mark without an image; expected one image each", "marks")
            yield _image(name, options, where)
            continue
        words = (
            part.lstrip() if number == 0 else part if isinstance(kept[number - 1], str) else part.lstrip("\n")
        )
        if number < last and not isinstance(kept[number + 1], str):
            words = words.rstrip("\n")
        words = words.rstrip() if number == last else words
        if words or (is_trained and number == last):
            yield Text(words, is_trained, role, ends_chunk=is_trained and number == last)
    if is_trained and kept and not isinstance(kept[last], str):
        raise SampleError(f"{where}: the assistant's message ends in an image; expected a text", "marks")


def _image(name: Any, options: ShareGptOptions, where: str) -> Image:
    if isinstance(name, str) and name.startswith("data:"):
        return image_from_base64(name, where)
    if isinstance(name, str) and "://" in name:
        raise SampleError(
            f"{where}: image {name!r} is an address, which is not fetched; get it, and name the file",
            "missing",
        )
    return image_in(options.images, name, where)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


FORMAT = Format(
    "ShareGPT-style messages: a JSON list or lines, images by --images", units, read, ShareGptOptions
)
