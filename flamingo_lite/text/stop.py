"""Where a generated text ends, and what of it is the answer: the counterpart of what a template writes around answers."""

from collections.abc import Iterable
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from flamingo_lite.document import Document
from flamingo_lite.errors import FlamingoError
from flamingo_lite.text.template import Template
from flamingo_lite.text.turns import has_roles
from flamingo_lite.text.writing import resolved


@dataclass(frozen=True)
class Stop:
    """`token`: at which a text ends; None where only `words` say so. `gap`: what every answer begins with."""

    token: str | None = None
    words: str = ""
    gap: str = ""

    def answer(self, text: str) -> str:
        """The answer in what was generated, decoded up to `token`."""
        text = text.removeprefix(self.gap)
        if self.token is not None:
            return text.removesuffix(self.words)
        return text.split(self.words, 1)[0] if self.words else text


def stop_of(template: Template, tokenizer: PreTrainedTokenizerBase, documents: Iterable[Document]) -> Stop:
    """Where the template ends what is generated after such documents: all of them conversations, or none.

    Errors: `FlamingoError` for some of each under a template of conversations.
    """
    kinds = {has_roles(document) for document in documents}
    if template.conversation is None or kinds == {False}:
        return stop_at(template.end_of_chunk, tokenizer)
    if len(kinds) > 1:
        raise FlamingoError(
            "some documents have roles and others have none, and their answers end differently; generate them apart, or "
            "name a stop"
        )
    conversation, written = resolved(template.conversation, tokenizer)
    words = "".join(piece.text for piece in written if piece.kind == "text")
    token = next((piece.text for piece in written if piece.kind == "token"), None)
    return Stop(token, words, conversation.gap)


def stop_at(stop: str | None, tokenizer: PreTrainedTokenizerBase) -> Stop:
    """A token of the tokenizer, or any words; None for neither."""
    if stop is None:
        return Stop()
    return Stop(token=stop) if stop in tokenizer.get_vocab() else Stop(words=stop)
