"""Chooses the predictions that a report shows, and draws their prompts again.

A prompt is a pure function of a sample's keys, so nothing of it is stored; its `prompt_sha` proves that what
is shown is what the model was given.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from flamingo_lite.data.pages import data_uri
from flamingo_lite.document import Document, Image, Text, image_format
from flamingo_lite.errors import FlamingoError
from flamingo_lite.evaluation.demonstrations import Example
from flamingo_lite.evaluation.grid import Files, build_prompt, setting_of
from flamingo_lite.evaluation.results import prompt_sha
from flamingo_lite.evaluation.selection import BY_SIMILARITY, SELECTORS, recorded
from flamingo_lite.evaluation.tasks import spoken

Sample = dict[str, Any]


@dataclass(frozen=True)
class Piece:
    """A part of a prompt as it is shown: an image as a data URI, the text that follows it, or either
    alone."""

    image: str | None
    text: str


@dataclass(frozen=True)
class Shown:
    """A prediction with its prompt; without `pieces` when the prompt cannot be drawn again."""

    sample: Sample
    title: str
    verdict: str
    pieces: tuple[Piece, ...]


def gallery(samples: Iterable[Sample], files: Files | None = None) -> list[Shown]:
    """`files`: those that the evaluation's tasks were read from."""
    return [
        Shown(sample, title_of(sample), verdict(sample), pieces_of(redrawn(sample, files)))
        for sample in choose(samples)
    ]


def choose(samples: Iterable[Sample]) -> list[Sample]:
    """Of every split and style at the most shots a right and a wrong answer, of every control one, wrong if
    any is; one without an answer in it, and one that failed. By the order of their hashes: fixed, and
    nobody's choice."""
    ordered = sorted(
        samples, key=lambda s: (-s["shots"], s["prompt_sha"], str(s.get("style")), s["seed"], s["query_id"])
    )
    standard = [s for s in ordered if s["condition"] == "standard"]
    control = [s for s in ordered if s["condition"] != "standard"]
    chosen: list[Sample] = []

    def take(pool: Sequence[Sample], wanted: Callable[[Sample], bool]) -> bool:
        found = next((s for s in pool if wanted(s) and s not in chosen), None)
        if found is not None:
            chosen.append(found)
        return found is not None

    for split, style in dict.fromkeys((s["split"], s.get("style")) for s in sorted(standard, key=_place)):
        pool = [s for s in standard if (s["split"], s.get("style")) == (split, style)]
        # A reader wants first to see the task work, then where it does not.
        for right in (1.0, 0.0):
            take(pool, lambda s, right=right: s["score"] == right and s["status"] == "ok")
    for condition in dict.fromkeys(s["condition"] for s in sorted(control, key=_place)):
        pool = [s for s in control if s["condition"] == condition]
        take(pool, lambda s: s["score"] == 0.0 and s["status"] == "ok") or take(pool, lambda s: True)
    for status in ("unparsed", "failed"):
        take(ordered, lambda s, status=status: s["status"] == status)
    return chosen


def _place(sample: Sample) -> tuple[str, int, str]:
    """Splits and styles by name, but `test`, which the others are measured against, first."""
    return str(sample.get("style")), sample["split"] != "test", f"{sample['split']} {sample['condition']}"


def redrawn(sample: Sample, files: Files | None) -> Document | None:
    """The prompt of a sample, or None where it does not come out the same, bit by bit."""
    setting = setting_of(sample)
    # What an encoder has chosen, or what was left out by a list, is known by the sample alone: a query's images are last.
    shown = sample["image_ids"]

    def admits_other(other: Example) -> bool:
        return [image.id for image in other.images] == shown[len(shown) - len(other.images) :]

    named = {setting.selector: recorded(sample["demonstration_ids"])}
    tries = [(replace(setting, order="own"), named)]
    if setting.selector not in BY_SIMILARITY:
        tries.insert(0, (setting, SELECTORS))
    for tried, selectors in tries:
        try:
            document = build_prompt(
                tried, sample["query_id"], sample["seed"], files, selectors, admits_other=admits_other
            ).document
        except FlamingoError:
            continue
        # Another version of the drawing libraries may encode other bytes; then nothing is shown rather than a
        # likeness.
        if prompt_sha(document) == sample["prompt_sha"]:
            return document
    return None


def pieces_of(document: Document | None) -> tuple[Piece, ...]:
    """The parts of a prompt as a page shows them; none of no prompt."""
    pieces: list[Piece] = []
    ended = True
    for segment in document or ():
        if isinstance(segment, Image):
            pieces.append(Piece(_data_uri(segment), ""))
        elif ended:
            pieces.append(Piece(None, segment.text))
        else:
            pieces[-1] = Piece(pieces[-1].image, pieces[-1].text + segment.text)
        ended = isinstance(segment, Text) and segment.ends_chunk
    return tuple(pieces)


def _data_uri(image: Image) -> str:
    return data_uri(image.data, {"jpg": "jpeg", "webp": "webp"}.get(image_format(image.data) or "", "png"))


def title_of(sample: Sample) -> str:
    parts = [sample["split"]] if sample["condition"] == "standard" else [sample["condition"], sample["split"]]
    parts += [sample.get("style") or "", f"{sample['shots']} shots"]
    return " · ".join(spoken(part) for part in parts if part)


def verdict(sample: Sample) -> str:
    if sample["status"] == "failed":
        return "failed"
    return "right" if sample["score"] == 1.0 else "wrong"
