"""The turns of a conversation: the stretches of a document that one role says, its images among them.

An image belongs to the user's turn, unless it stands between two texts of one answer. (Images alone are a turn, too.)
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from flamingo_lite.document import Document, Image, Text
from flamingo_lite.errors import SampleError

ROLES = ("system", "user", "assistant")


@dataclass
class Turn:
    """What one role says at a time. An answer is over when its text ends a chunk."""

    role: str
    segments: list[Text | Image] = field(default_factory=list)
    is_over: bool = False

    @property
    def texts(self) -> list[Text]:
        return [segment for segment in self.segments if isinstance(segment, Text)]

    @property
    def words(self) -> str:
        return "".join(text.text for text in self.texts)


def has_roles(document: Document) -> bool:
    """Is it a conversation?"""
    return any(text.role is not None for text in document.texts)


def turns_of(document: Document, name: str) -> list[Turn]:
    """The turns in order. An image between a question and its answer is the question's; an answer that opens with an
    image says so by an empty text of the assistant before it.

    Errors: `SampleError` ("role") naming the text whose role is not system, user or assistant.
    """
    turns: list[Turn] = []
    waiting: list[Text | Image] = []  # until the next text tells whose they are
    for position, segment in enumerate(document):
        if isinstance(segment, Image):
            if turns and turns[-1].role == "user":
                turns[-1].segments.append(segment)
            else:
                waiting.append(segment)
            continue
        if segment.role not in ROLES:
            raise SampleError(
                f"{name}: segment {position} is a text of the role {segment.role!r}; expected {', '.join(ROLES)}",
                "role",
            )
        if not turns or turns[-1].role != segment.role or turns[-1].is_over:
            if waiting and segment.role == "assistant":
                turns.append(Turn("user", waiting))
                waiting = []
            turns.append(Turn(segment.role))
        turns[-1].segments += [*waiting, segment]
        turns[-1].is_over = segment.role == "assistant" and segment.ends_chunk
        waiting = []
    if waiting:
        turns.append(Turn("user", waiting))
    return turns


def check_turns(turns: list[Turn], complete: bool, name: str) -> None:
    """Errors: `SampleError`, "turns" for an order that is no conversation's, "answer" for an answer without words.

    `complete`: it must end in an answer.
    """
    for reason, problem in _problems(turns, complete):
        raise SampleError(f"{name}: {problem}", reason)


def _problems(turns: list[Turn], complete: bool) -> Iterator[tuple[str, str]]:
    said = [turn.role for turn in turns]
    for number, turn in enumerate(turns):
        before = said[number - 1] if number else None
        if turn.role == "system" and number:
            yield "turns", f"turn {number} is the system's; expected its message before all others"
        if turn.role == "assistant" and before != "user":
            after = "comes first" if before in (None, "system") else "follows an answer"
            yield (
                "turns",
                f"turn {number} is the assistant's and {after}; expected a turn of the user before it",
            )
        if turn.role == "assistant" and not turn.words.strip():
            yield "answer", f"turn {number} is an empty answer; expected words"
        if turn.role == "user" and not turn.words.strip() and len(turn.segments) == len(turn.texts):
            yield "turns", f"turn {number} is the user's and empty; expected words or an image"
    if "user" not in said:
        yield "turns", "has no turn of the user; expected at least one"
    if complete and said[-1:] == ["user"]:
        yield "turns", "ends with the user's turn; expected an answer to train on"
