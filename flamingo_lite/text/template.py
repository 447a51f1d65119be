"""A template says how a document is written: which special tokens stand where, and what is trained on.

It works on strings alone; `tokenizer.py` turns its pieces into ids.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from flamingo_lite.document import END_OF_CHUNK, IMAGE_TOKEN, Document, Image
from flamingo_lite.errors import FlamingoError
from flamingo_lite.text.conversation import ConversationTemplate
from flamingo_lite.text.conversations import conversation_from
from flamingo_lite.text.pieces import Piece


@dataclass(frozen=True)
class Template:
    """Interleaved text: the begin token if the tokenizer has one; each image as `image_tokens` marks; each
    text as it is, then the end-of-chunk token if it ends its chunk; the end token if the document is complete.
    Roles are not written, unless there is a `conversation`: then it alone says how texts with roles are written.

    `begin_after_images`: images that open the document come before the begin token, as in BLIP-2.
    `image_tokens`: 1 under cross-attention fusion, the connector's n under prefix fusion. `end_of_chunk`: None
    writes nothing there. `around_images`: a token before, between and behind images in a row, as in IDEFICS.
    """

    begin: bool = True
    end: bool = True
    image_tokens: int = 1
    end_of_chunk: str | None = END_OF_CHUNK
    around_images: str | None = None
    begin_after_images: bool = False
    conversation: ConversationTemplate | None = None

    def __post_init__(self) -> None:
        # A name or plain fields, where it comes from YAML or JSON.
        object.__setattr__(self, "conversation", conversation_from(self.conversation))
        if self.image_tokens < 1:
            raise FlamingoError(f"template: image_tokens is {self.image_tokens}; expected 1 or more")

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """What a tokenizer must have, in the order in which it gets what it lacks."""
        return tuple(t for t in (self.end_of_chunk, IMAGE_TOKEN, self.around_images) if t is not None)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, of which a template is made again. One without conversations says nothing of them: it is what it
        was before there were any, and so is what is named by it."""
        return {
            name: value for name, value in asdict(self).items() if name != "conversation" or value is not None
        }

    def image(self, follows_image: bool = False) -> Iterator[Piece]:
        """The pieces of one image. `follows_image`: another one stands just before it."""
        if self.around_images is not None and not follows_image:
            yield Piece("token", self.around_images)
        yield Piece("image", IMAGE_TOKEN, count=self.image_tokens)
        if self.around_images is not None:
            yield Piece("token", self.around_images)

    def write(self, document: Document, bos: str | None, eos: str | None, complete: bool) -> Iterator[Piece]:
        """The pieces of a document without roles, in order. `bos`, `eos`: the tokenizer's own tokens, None if it has none.

        The end token is trained on unless the document ends in a text that is not. It is not written behind an end of
        chunk that is the same token (LLaVA's).
        """
        begins = self.begin and bos is not None
        if begins and not self.begin_after_images:
            yield Piece("token", str(bos))
            begins = False
        trained, follows_image, has_ended = True, False, False
        for segment in document:
            if begins and not isinstance(segment, Image):
                yield Piece("token", str(bos))
                begins = False
            if isinstance(segment, Image):
                trained, has_ended = True, False
                yield from self.image(follows_image)
                follows_image = True
                continue
            trained, follows_image = segment.loss, False
            yield Piece("text", segment.text, trained)
            has_ended = segment.ends_chunk and self.end_of_chunk == eos
            if segment.ends_chunk and self.end_of_chunk is not None:
                yield Piece("token", self.end_of_chunk, trained)
        if begins:
            yield Piece("token", str(bos))
        if complete and self.end and eos is not None and not has_ended:
            yield Piece("token", eos, trained)
