"""Conversations as a tokenizer's own chat template (jinja) writes them: rendered turn by turn.

Each rendering must be the beginning of the next, and what a prompt ends with the beginning of its answer. Otherwise a
model would be trained on other words than it is asked with: templates that cut earlier answers are refused.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from flamingo_lite.document import IMAGE_TOKEN, Image, Text
from flamingo_lite.errors import FlamingoError, SampleError, first_line
from flamingo_lite.text.conversation import END, ConversationTemplate, FixedWords, Images, stripped
from flamingo_lite.text.pieces import Piece
from flamingo_lite.text.special import special_tokens
from flamingo_lite.text.turns import Turn

PROBE = (("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))


@dataclass(frozen=True)
class Answer:
    """How an answer was written: blanks before it, its words, and what comes after them."""

    gap: str
    words: str
    after: str


def own_template(template: ConversationTemplate, tokenizer: PreTrainedTokenizerBase) -> ConversationTemplate:
    """The template with the `stop` of the tokenizer's own, and the blank before answers.

    Errors: `FlamingoError` for a tokenizer without one, and for one that cannot be trained with.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise FlamingoError(
            "conversation template tokenizer: the tokenizer has no chat_template; choose another (v1, chatml, ...)"
        )
    probe = [Turn(role, [Text(words, role=role)]) for role, words in PROBE]
    try:
        *_, (_, answer) = rendered(probe, tokenizer, "a conversation", template.image_joint)
    except SampleError as error:
        raise FlamingoError(f"conversation template tokenizer: {error}") from error
    assert answer is not None
    stop, _ = ending(answer.after, tokenizer)
    return replace(template, stop=stop or END, assistant_before=answer.gap)


def write_own(
    turns: Sequence[Turn],
    complete: bool,
    tokenizer: PreTrainedTokenizerBase,
    template: ConversationTemplate,
    images: Images,
    name: str,
) -> Iterator[Piece]:
    """The pieces of a conversation, whose turns have been checked.

    Errors: `SampleError` naming the document, for words that hold a special token, and turns that the template refuses
    or changes.
    """
    _refuse_control(turns, tokenizer, name)
    fixed = FixedWords(template, tokenizer)
    images = template.labelled(images, fixed)
    answers = (turn for turn in turns if turn.role == "assistant")
    for before, answer in rendered(turns, tokenizer, name, template.image_joint):
        yield from _with_images(before, fixed.rendered, images)
        if answer is None:
            continue
        turn = next(answers)
        loss, is_last = turn.texts[-1].loss, turn is turns[-1]
        pieces = [*_answering(turn, answer, template.image_joint, fixed, images)]
        stop, after = ending(answer.after, tokenizer)
        is_done = complete or turn.is_over or not is_last
        if is_done:
            pieces += fixed(stop or END if is_last else stop, loss, is_answer=True)
            pieces[-1] = replace(pieces[-1], ends_turn=True)
        yield from pieces
        yield from fixed(after) if is_done else ()


def rendered(
    turns: Sequence[Turn], tokenizer: PreTrainedTokenizerBase, name: str, joint: str
) -> Iterator[tuple[str, Answer | None]]:
    """For each answer, what stands between it and the one before, and how it is written; last of a prompt, what it ends
    with. Images are marks.

    Errors: `SampleError` ("turns") where a rendering is not the beginning of the next, or an answer was changed.
    """
    messages = [{"role": turn.role, "content": _content(turn, joint)} for turn in turns]
    written = ""
    for number, turn in enumerate(turns):
        if turn.role != "assistant":
            continue
        prompt = _render(messages[:number], tokenizer, True, name)
        whole = _render(messages[: number + 1], tokenizer, False, name)
        if not prompt.startswith(written) or not whole.startswith(prompt):
            raise SampleError(
                f"{name}: the tokenizer's chat template writes turn {number} differently once others follow it, or "
                "behind other words than a prompt ends with; choose another template (v1, chatml, ...)",
                "turns",
            )
        yield prompt[len(written) :], _found(messages[number]["content"], whole[len(prompt) :], name, number)
        written = whole
    if turns[-1].role == "user":
        prompt = _render(messages, tokenizer, True, name)
        if not prompt.startswith(written):
            raise SampleError(
                f"{name}: the tokenizer's chat template writes answers differently once a turn follows them; choose "
                "another template (v1, chatml, ...)",
                "turns",
            )
        yield prompt[len(written) :], None


def ending(after: str, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """What follows an answer, as its stop (up to the first token, or all of it), and the rest."""
    token = special_tokens(tokenizer).first(after)
    if token is None:
        return after, ""
    end = after.index(token) + len(token)
    return after[:end], after[end:]


def _found(content: str, body: str, name: str, number: int) -> Answer:
    for words in (content, content.strip()):
        gap, found, after = body.partition(words)
        if found and not gap.strip():
            return Answer(gap, words, after)
    raise SampleError(
        f"{name}: the tokenizer's chat template changes the answer of turn {number}, or writes words before it that no "
        "prompt ends with; choose another template (v1, chatml, ...)",
        "turns",
    )


def _render(
    messages: Sequence[dict[str, str]], tokenizer: PreTrainedTokenizerBase, prompt: bool, name: str
) -> str:
    try:
        return str(
            tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=prompt)
        )
    except TemplateError as error:
        raise SampleError(
            f"{name}: the tokenizer's chat template refuses it: {first_line(error)}", "turns"
        ) from error


def _content(turn: Turn, joint: str) -> str:
    """The turn as one text, a mark for each image."""
    return "".join(
        IMAGE_TOKEN if isinstance(segment, Image) else words
        for words, segment in _joined(turn.segments, joint)
    )


def _joined(segments: Sequence[Text | Image], joint: str) -> Iterator[tuple[str, Text | Image | None]]:
    """The segments with their words, an image's empty; between an image and what stands beside it (joint, None)."""
    before = None
    for segment in segments:
        if isinstance(segment, Text) and not segment.text:
            continue
        if before is not None and (isinstance(segment, Image) or isinstance(before, Image)):
            yield joint, None
        yield (segment.text if isinstance(segment, Text) else ""), segment
        before = segment


def _with_images(words: str, write: Callable[[str], Iterator[Piece]], images: Images) -> Iterator[Piece]:
    for number, part in enumerate(words.split(IMAGE_TOKEN)):
        if number:
            yield from images(False)
        yield from write(part)


def _answering(turn: Turn, answer: Answer, joint: str, fixed: FixedWords, images: Images) -> Iterator[Piece]:
    """An answer's own words, of which those are trained on that are to be; what joins them to images is not."""
    is_whole = answer.words == _content(turn, joint)
    gap = answer.gap
    for words, segment in _joined(turn.segments if is_whole else stripped(turn.segments), joint):
        if segment is None:
            yield from fixed.rendered(words)
            continue
        is_trained = isinstance(segment, Text) and segment.loss
        if gap + words:
            yield Piece("text", gap + words, is_trained, in_context=True, is_answer=True)
        yield from images(False) if isinstance(segment, Image) else ()
        gap = ""


def _refuse_control(turns: Sequence[Turn], tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    control = special_tokens(tokenizer).control
    for number, turn in enumerate(turns):
        if (token := next((t for t in control if t in turn.words), None)) is not None:
            raise SampleError(
                f"{name}: turn {number} holds {token}, a token of the tokenizer's chat template; expected words",
                "marks",
            )
