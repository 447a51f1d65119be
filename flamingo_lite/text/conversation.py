"""A conversation template says how turns are written. It is data; `conversations.py` has the known ones.

Of what is written an answer and its stop are trained on, nothing else, and that is decided turn by turn while writing.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from flamingo_lite.document import Image, Text
from flamingo_lite.errors import FlamingoError
from flamingo_lite.text.pieces import Piece
from flamingo_lite.text.special import special_tokens
from flamingo_lite.text.turns import Turn

BEGIN, END = "{begin}", "{end}"
"""Stand in a template for the tokenizer's own begin and end tokens."""

TOKENIZER = "tokenizer"
"""The name of the template that stands for a tokenizer's own `chat_template`."""

NUMBER = "{number}"
"""Stands in `image_label` for the image's number in its conversation, from 1."""

Images = Callable[[bool], Iterator[Piece]]
"""The pieces of one image, by whether another one stands just before it."""


@dataclass(frozen=True)
class ConversationTemplate:
    """What stands around the words of each role. A prompt ends with `assistant_before`, without its last blank: that
    blank belongs to the answer's first word, as tokenizers have it.

    `start`: at the beginning. `system`: the words where a conversation has none of its own; empty writes no such turn.
    `system_in_user`: they stand in the user's first turn (Llama-2, Gemma). `input_before`: before a text that stands
    right behind another one in the user's turn (Alpaca); None joins the two as they are. `system_with_input`: the words
    of the system where the first turn has such an input. `images_first`: images that open the user's turn stand before
    `user_before` (Otter). `writes_questions`: False leaves out all words but those of answers, not the images (LLaVA's
    alignment). `stop` is trained on, and generation ends there. `strips`: the ends of turns lose their blanks.
    `image_joint`: between an image and what stands beside it in its turn. `image_label`: right before each image, with its
    number (as Mantis's and Qwen-VL's), so that words can say which image they mean. `tokens`: which the tokenizer must have;
    others that it knows are single tokens as well.
    """

    name: str = "own"
    start: str = BEGIN
    system: str = ""
    system_before: str = ""
    system_after: str = ""
    system_in_user: bool = False
    user_before: str = ""
    user_after: str = ""
    images_first: bool = False
    writes_questions: bool = True
    input_before: str | None = None
    system_with_input: str | None = None
    assistant_before: str = ""
    stop: str = END
    assistant_after: str = ""
    strips: bool = False
    image_joint: str = "\n"
    image_label: str = ""
    tokens: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", tuple(self.tokens))  # a list, where it comes from JSON or YAML
        if not self.stop:
            raise FlamingoError(
                f"conversation template {self.name}: stop is empty; expected what ends an answer, such as {END}"
            )

    @property
    def is_tokenizers(self) -> bool:
        """Does it stand for the tokenizer's own template?"""
        return self.name == TOKENIZER

    @property
    def gap(self) -> str:
        """The blank that every answer begins with, or nothing."""
        return " " if self.assistant_before.endswith(" ") else ""

    def write(
        self, turns: Sequence[Turn], complete: bool, fixed: "FixedWords", images: Images
    ) -> Iterator[Piece]:
        """The pieces of a conversation, whose turns have been checked. `fixed`: writes the template's own words.

        A prompt that ends in an answer goes on in it, unless that answer is over.
        """
        has_system = turns[0].role == "system"
        system = self._system(turns[0] if has_system else None, turns[has_system])
        images = self.labelled(images, fixed)
        said = turns[has_system:]
        yield from fixed(self.start)
        if system and not self.system_in_user:
            yield from self._around(system, fixed)
        for number, turn in enumerate(said):
            if turn.role == "assistant":
                is_done = complete or turn.is_over or number < len(said) - 1
                yield from self._answer(turn, is_done, fixed, images)
                continue
            opening, segments = self._opening_images(turn)
            for position in range(opening):
                yield from images(position > 0)
            yield from fixed(self.user_before)
            if system and self.system_in_user and number == 0:
                yield from self._around(system, fixed)
            yield from self._question(Turn(turn.role, segments), fixed, images)
            yield from fixed(self.user_after)
        if said[-1].role == "user":
            yield from fixed(self.assistant_before.removesuffix(" "))

    def labelled(self, images: Images, fixed: "FixedWords") -> Images:
        """The images of one conversation, each behind its label."""
        if not self.image_label:
            return images
        numbers = itertools.count(1)

        def with_label(is_behind_image: bool) -> Iterator[Piece]:
            yield from fixed(self.image_label.replace(NUMBER, str(next(numbers))))
            yield from images(False)

        return with_label

    def _opening_images(self, turn: Turn) -> tuple[int, list[Text | Image]]:
        """How many images come before the words that stand before the turn, and what stands behind these."""
        segments = [segment for segment in turn.segments if isinstance(segment, Image) or segment.text]
        opening = itertools.takewhile(lambda segment: isinstance(segment, Image), segments)
        count = sum(1 for _ in opening) if self.images_first else 0
        return count, segments[count:]

    def _system(self, own: Turn | None, first: Turn) -> str:
        """The words of the system; empty for none."""
        if not self.writes_questions:
            return ""
        if own is not None:
            # In a user's turn it is no turn, and has no ends (as in Llama-2's and Gemma's own templates).
            return own.words.strip() if self.strips and not self.system_in_user else own.words
        has_input = self.input_before is not None and any(
            is_input for _, _, is_input in self._segments(first)
        )
        return self.system_with_input or self.system if has_input else self.system

    def _around(self, system: str, fixed: "FixedWords") -> Iterator[Piece]:
        yield from fixed(self.system_before)
        yield Piece("text", system, in_context=True)
        yield from fixed(self.system_after)

    def _question(self, turn: Turn, fixed: "FixedWords", images: Images) -> Iterator[Piece]:
        for before, segment, is_input in self._segments(turn):
            if isinstance(segment, Image):
                yield from self._image(before, fixed, images)
            elif self.writes_questions:
                if isinstance(before, Image):
                    yield from fixed(self.image_joint)
                if is_input and self.input_before is not None:
                    yield from fixed(self.input_before)
                words = segment.text.strip() if is_input and self.input_before is not None else segment.text
                yield Piece("text", words, in_context=True)

    def _answer(self, turn: Turn, is_done: bool, fixed: "FixedWords", images: Images) -> Iterator[Piece]:
        yield from fixed(self.assistant_before.removesuffix(" "))
        gap, loss = self.gap, False
        for before, segment, _ in self._segments(turn):
            if isinstance(segment, Image):
                yield Piece("text", gap, in_context=True, is_answer=True)
                yield from self._image(before, fixed, images)
            else:
                if isinstance(before, Image):
                    yield from fixed(self.image_joint)
                loss = segment.loss
                yield Piece("text", gap + segment.text, loss, in_context=True, is_answer=True)
            gap = ""
        if is_done:
            *most, last = fixed(self.stop, loss, is_answer=True)
            yield from most
            yield replace(last, ends_turn=True)
            yield from fixed(self.assistant_after)

    def _image(self, before: Text | Image | None, fixed: "FixedWords", images: Images) -> Iterator[Piece]:
        if before is not None:
            yield from fixed(self.image_joint)
        yield from images(isinstance(before, Image) and not self.image_joint)

    def _segments(self, turn: Turn) -> Iterator[tuple[Text | Image | None, Text | Image, bool]]:
        """Each segment behind the one before it; is it the input, the first text right behind another one? The ends of
        the turn are without blanks where the template strips them."""
        before: Text | Image | None = None
        has_input = False
        for segment in stripped(turn.segments) if self.strips else turn.segments:
            if isinstance(segment, Text) and not segment.text:
                continue
            is_input = not has_input and isinstance(before, Text) and isinstance(segment, Text)
            yield before, segment, is_input
            before, has_input = segment, has_input or is_input


def stripped(segments: Sequence[Text | Image]) -> list[Text | Image]:
    """The segments without blanks at either end."""
    kept = list(segments)
    for end in (0, -1):
        while kept and isinstance(text := kept[end], Text):
            words = text.text.lstrip() if end == 0 else text.text.rstrip()
            if words:
                kept[end] = replace(text, text=words)
                break
            del kept[end]
    return kept


class FixedWords:
    """A template's own words as pieces, cut up at the tokens that the tokenizer finds in them.

    `begins`: begin tokens are written. Errors: `FlamingoError` naming a token that the template needs and the tokenizer
    lacks.
    """

    def __init__(
        self, template: ConversationTemplate, tokenizer: PreTrainedTokenizerBase, begins: bool = True
    ) -> None:
        self._special = special_tokens(tokenizer)
        if missing := [token for token in template.tokens if token not in self._special.names]:
            raise FlamingoError(
                f"conversation template {template.name}: the tokenizer has no token {missing[0]!r}; choose a template "
                "without it (v1, plain, alpaca), or a language model that knows it"
            )
        if tokenizer.eos_token is None and END in template.stop:
            raise FlamingoError(
                f"conversation template {template.name}: an answer ends with the tokenizer's end token, and it has "
                "none; choose a template with a stop of its own (v0, plain)"
            )
        self._begin = str(tokenizer.bos_token) if begins and tokenizer.bos_token is not None else ""
        self._end = "" if tokenizer.eos_token is None else str(tokenizer.eos_token)

    def __call__(self, words: str, loss: bool = False, is_answer: bool = False) -> Iterator[Piece]:
        """The pieces of a template's words, in which tokens may stand, and `BEGIN` and `END` for two of them."""
        yield from self.rendered(words.replace(BEGIN, self._begin).replace(END, self._end), loss, is_answer)

    def rendered(self, words: str, loss: bool = False, is_answer: bool = False) -> Iterator[Piece]:
        """The pieces of words that another template has written, among them what users say: all tokens stand in full."""
        for part, is_token in self._special.split(words):
            kind = "token" if is_token else "text"
            yield Piece(kind, part, loss, in_context=not is_token, is_answer=is_answer and not is_token)
