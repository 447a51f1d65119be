"""A document to token ids, labels and the local media index, under any Hugging Face tokenizer."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import AddedToken, PreTrainedTokenizerBase

from flamingo_lite.batch import IGNORED, NO_IMAGE
from flamingo_lite.document import END_OF_CHUNK, IMAGE_TOKEN, Document, Image
from flamingo_lite.errors import FlamingoError, SampleError
from flamingo_lite.text.template import Template
from flamingo_lite.text.writing import cut_at_turn, write

PAD_TOKEN = "<|pad|>"
MOST_ADDED = 3
"""How many tokens `add_tokens` adds to a tokenizer that has none of them."""


@dataclass(frozen=True)
class Encoded:
    """One document as numbers: three lists of one length t, and its images in order.

    `labels` are not shifted; `media_index` counts the document's own images from 0, -1 before the first.
    `name` is what error messages call the document. `connector_text`: what the connector reads beside each of its
    images, in ids of the connector's own tokenizer. `cut`: the answers of a conversation that were left out because it
    was too long.
    """

    input_ids: list[int]
    labels: list[int]
    media_index: list[int]
    images: tuple[Image, ...]
    name: str = "document"
    connector_text: tuple[int, ...] = ()
    cut: int = 0

    @property
    def media_keys(self) -> list[tuple[str, tuple[int, ...]]]:
        """For each image, what its media tokens depend on: equal keys, equal tokens."""
        return [(image.id, self.connector_text) for image in self.images]

    def __len__(self) -> int:
        return len(self.input_ids)


def add_tokens(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str] = (END_OF_CHUNK, IMAGE_TOKEN)
) -> list[str]:
    """Adds `tokens` and a padding token, each only if missing; returns what was added.

    Ids that exist keep their meaning. Calling it again adds nothing.
    """
    known = tokenizer.get_vocab()
    added = [token for token in tokens if token not in known]
    if added:
        # normalized=False: the mark is matched in the raw text, whatever the tokenizer's normalizer does.
        tokenizer.add_tokens(
            [AddedToken(t, special=True, normalized=False) for t in added], special_tokens=True
        )
    if tokenizer.pad_token is None:
        if PAD_TOKEN not in known:
            added.append(PAD_TOKEN)
        tokenizer.add_special_tokens({"pad_token": AddedToken(PAD_TOKEN, special=True, normalized=False)})
    return added


def encode(
    document: Document,
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    complete: bool = False,
    max_length: int | None = None,
    name: str = "document",
) -> Encoded:
    """The document as the template writes it. A prompt's ids are the first ids of the complete document's. A
    document's first token has label -100: nothing predicts it.

    complete: write the end token, and cut on the right what exceeds `max_length`; an image whose marks do not
    all fit goes with them, and a conversation is cut behind an answer. Otherwise the document is a prompt, which is
    never cut.
    Errors: naming the document, `SampleError` for a text that holds `<image>`, a conversation that is none or whose
    first answer does not fit, and a document that comes to no tokens; `FlamingoError` for a prompt longer than
    `max_length`.
    """
    _refuse_marks(document, name)
    written, cut = write(document, tokenizer, template, complete, name), 0
    if complete and max_length is not None and any(piece.ends_turn for piece, _ in written):
        written, cut = cut_at_turn(written, max_length, name)
    input_ids: list[int] = []
    labels: list[int] = []
    media_index: list[int] = []
    current = NO_IMAGE
    for piece, ids in written:
        current += piece.kind == "image"
        if complete and max_length is not None and len(input_ids) + len(ids) > max_length:
            if piece.kind == "image":
                current -= 1
                break
            ids = ids[: max_length - len(input_ids)]
        input_ids += ids
        labels += ids if piece.loss else [IGNORED] * len(ids)
        media_index += [current] * len(ids)
        if complete and len(input_ids) == max_length:
            break
    if max_length is not None and len(input_ids) > max_length:
        raise FlamingoError(
            f"{name}: the prompt has {len(input_ids)} tokens, the limit is {max_length}; "
            f"use fewer shots or less text"
        )
    if not input_ids:
        raise SampleError(
            f"{name}: comes to no tokens (max_length={max_length}); it needs some text or an image", "text"
        )
    labels[0] = IGNORED
    return Encoded(input_ids, labels, media_index, document.images[: current + 1], name, cut=cut)


def _refuse_marks(document: Document, name: str) -> None:
    for position, segment in enumerate(document):
        if not isinstance(segment, Image) and IMAGE_TOKEN in segment.text:
            raise SampleError(
                f"{name}: segment {position} is a text that contains {IMAGE_TOKEN}, the mark of an image; "
                "put an Image there, or remove the mark",
                "text",
            )
