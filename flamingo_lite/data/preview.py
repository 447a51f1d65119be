"""Documents as a reader would see them: images inline, texts as they stand, turns where texts have roles.

Images are decoded whole, shrunk and encoded anew, so that no byte of a foreign file reaches the page.
"""

import io
import json
from dataclasses import dataclass

from flamingo_lite.data.pages import data_uri
from flamingo_lite.document import Document, Image, Text
from flamingo_lite.errors import SampleError

SIDE = 480  # the most pixels of a shown image's longer side
CHARACTERS = 2000  # of a text, and of a document's meta; the rest is told in a number
QUALITY = 82


@dataclass(frozen=True)
class Piece:
    """One segment. `picture`: it is an image, `image` its data URI, or None if it cannot be shown (`note` says why);
    `text` is then what it shows in words.

    `turn`: the role whose turn begins here, None if none does; `hidden`: characters that are not shown.
    """

    text: str = ""
    picture: bool = False
    image: str | None = None
    note: str = ""
    loss: bool = True
    ends_chunk: bool = False
    turn: str | None = None
    role: str | None = None
    hidden: int = 0


@dataclass(frozen=True)
class Shown:
    """One document, ready to be drawn. `error`: why it could not be read; the other fields are then empty."""

    name: str
    pieces: tuple[Piece, ...] = ()
    images: int = 0
    characters: int = 0
    meta: str = ""
    error: str = ""
    reason: str = ""


def shown(document: Document | SampleError, name: str) -> Shown:
    """What a page shows of a document, or of the error in its place."""
    if isinstance(document, SampleError):
        return Shown(name, error=str(document), reason=document.reason)
    pieces: list[Piece] = []
    role: str | None = None
    for segment in document:
        if isinstance(segment, Image):
            pieces.append(_picture(segment))
            continue
        pieces.append(_text(segment, turn=segment.role if segment.role != role else None))
        role = segment.role
    meta = json.dumps(dict(document.meta), indent=1, ensure_ascii=False) if document.meta else ""
    return Shown(
        name,
        tuple(pieces),
        images=len(document.images),
        characters=sum(len(text.text) for text in document.texts),
        meta=_cut(meta)[0],
    )


def _text(text: Text, turn: str | None) -> Piece:
    kept, hidden = _cut(text.text)
    return Piece(kept, loss=text.loss, ends_chunk=text.ends_chunk, turn=turn, role=text.role, hidden=hidden)


def _picture(image: Image) -> Piece:
    words = image.words or ""
    try:
        pixels = image.pil()
    except SampleError as error:
        return Piece(words, picture=True, note=str(error))
    note = f"{pixels.width} x {pixels.height}"
    pixels.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    pixels.info.clear()  # Pillow would copy the file's comment
    pixels.save(buffer, "JPEG", quality=QUALITY)
    return Piece(words, True, data_uri(buffer.getvalue(), "jpeg"), note)


def _cut(text: str) -> tuple[str, int]:
    return text[:CHARACTERS], max(0, len(text) - CHARACTERS)
