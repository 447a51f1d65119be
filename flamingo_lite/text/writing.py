"""A document as a template writes it, piece by piece, each with its ids: a conversation turn by turn."""

from collections.abc import Iterator, Sequence
from typing import cast

from transformers import AddedToken, PreTrainedTokenizerBase

from flamingo_lite.document import Document
from flamingo_lite.errors import SampleError
from flamingo_lite.text.conversation import ConversationTemplate, FixedWords
from flamingo_lite.text.in_context import tokenize_in_context
from flamingo_lite.text.own_template import own_template, write_own
from flamingo_lite.text.pieces import Piece, joined
from flamingo_lite.text.template import Template
from flamingo_lite.text.turns import check_turns, has_roles, turns_of

Written = list[tuple[Piece, list[int]]]


def write(
    document: Document, tokenizer: PreTrainedTokenizerBase, template: Template, complete: bool, name: str
) -> Written:
    """The pieces in order. Each text of a document without roles is tokenized alone; the answers of a conversation are
    tokenized apart from the words around them, and as they would be in their midst.

    Errors: `SampleError` naming the document, for turns that are no conversation's.
    """
    conversation = template.conversation
    if conversation is None or not has_roles(document):
        bos, eos = _text(tokenizer.bos_token), _text(tokenizer.eos_token)
        pieces = list(template.write(document, bos, eos, complete))
        return list(zip(pieces, _ids(pieces, tokenizer), strict=True))
    turns = turns_of(document, name)
    check_turns(turns, complete, name)
    if conversation.is_tokenizers:
        said = write_own(turns, complete, tokenizer, conversation, template.image, name)
    else:
        fixed = FixedWords(conversation, tokenizer, template.begin)
        said = conversation.write(turns, complete, fixed, template.image)
    return list(_ids_in_context(joined(said), tokenizer))


def resolved(
    conversation: ConversationTemplate, tokenizer: PreTrainedTokenizerBase
) -> tuple[ConversationTemplate, list[Piece]]:
    """The template as this tokenizer has it, and the pieces of its stop.

    Errors: `FlamingoError` naming what the tokenizer lacks.
    """
    if conversation.is_tokenizers:
        conversation = own_template(conversation, tokenizer)
    return conversation, list(FixedWords(conversation, tokenizer)(conversation.stop))


def cut_at_turn(written: Written, max_length: int, name: str) -> tuple[Written, int]:
    """The conversation up to the last answer that fits whole, and how many answers were left out.

    Errors: `SampleError` ("too_long") naming the document, where not even the first one fits.
    """
    length, fitting = 0, 0
    ends = [number + 1 for number, (piece, _) in enumerate(written) if piece.ends_turn]
    for number, (piece, ids) in enumerate(written):
        length += len(ids)
        if length <= max_length and piece.ends_turn:
            fitting = number + 1
    if length <= max_length:
        return written, 0
    if not fitting:
        first = sum(len(ids) for _, ids in written[: ends[0]])
        raise SampleError(
            f"{name}: its first answer ends at token {first}, max_length is {max_length}; expected one that fits",
            "too_long",
        )
    return written[:fitting], sum(end > fitting for end in ends)


def _ids(pieces: Sequence[Piece], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    texts = [piece.text for piece in pieces if piece.kind == "text"]
    # One call for all texts: the tokenizer's overhead per call is many times the cost of a short text.
    options = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
    tokenized = iter(tokenizer(texts, **options)["input_ids"] if texts else ())
    return [next(tokenized) if piece.kind == "text" else _token_ids(piece, tokenizer) for piece in pieces]


def _ids_in_context(
    pieces: Iterator[Piece], tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[Piece, list[int]]]:
    place = "start"
    for piece in pieces:
        if piece.kind == "text":
            yield piece, tokenize_in_context(tokenizer, piece.text, place)
        else:
            yield piece, _token_ids(piece, tokenizer)
        place = "text" if piece.kind == "text" else "token"


def _token_ids(piece: Piece, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return [cast(int, tokenizer.convert_tokens_to_ids(piece.text))] * piece.count  # one token, one id


def _text(token: str | AddedToken | None) -> str | None:
    return None if token is None else str(token)
