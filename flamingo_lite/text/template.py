"""A template says how a document is written: which special tokens stand where, and what is trained on.

It works on strings alone; `tokenizer.py` turns its pieces into ids.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from flamingo_lite.document import END_OF_CHUNK, IMAGE_TOKEN, Document, Image
from flamingo_lite.errors import FlamingoError


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a written document. `text`: words to tokenize; `token`: one special token, by name;
    `image`: `count` marks of one image. `loss`: it is trained on."""

    kind: Literal["text", "token", "image"]
    text: str
    loss: bool = False
    count: int = 1


@dataclass(frozen=True)
class Template:
    """Interleaved text: the begin token if the tokenizer has one; each image as `image_tokens` marks; each
    text as it is, then `<|endofchunk|>` if it ends its chunk; the end token if the document is complete.
    Roles are not written.

    `image_tokens`: 1 under cross-attention fusion, the connector's n under prefix fusion.
    """

    begin: bool = True
    end: bool = True
    image_tokens: int = 1

    def __post_init__(self) -> None:
        if self.image_tokens < 1:
            raise FlamingoError(f"template: image_tokens is {self.image_tokens}; expected 1 or more")

    def write(self, document: Document, bos: str | None, eos: str | None, complete: bool) -> Iterator[Piece]:
        """The pieces of the document in order. `bos`, `eos`: the tokenizer's own tokens, None if it has none.

        The end token is trained on unless the document ends in a text that is not.
        """
        if self.begin and bos is not None:
            yield Piece("token", bos)
        trained = True
        for segment in document:
            if isinstance(segment, Image):
                trained = True
                yield Piece("image", IMAGE_TOKEN, count=self.image_tokens)
                continue
            trained = segment.loss
            yield Piece("text", segment.text, trained)
            if segment.ends_chunk:
                yield Piece("token", END_OF_CHUNK, trained)
        if complete and self.end and eos is not None:
            yield Piece("token", eos, trained)
