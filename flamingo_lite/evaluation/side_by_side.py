"""Chooses the prompts that a report shows because of who answers them right: by whom of several systems, or by nobody.

Chosen by the order of their hashes among those of a kind: fixed, and nobody's choice.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from flamingo_lite.evaluation.gallery import Piece, Sample, pieces_of, redrawn, title_of, verdict
from flamingo_lite.evaluation.grid import Files
from flamingo_lite.evaluation.systems import System
from flamingo_lite.evaluation.tasks import spoken

MOST_MISTAKES = 6


@dataclass(frozen=True)
class Answers:
    """A prompt and what each system wrote. `kind`: who is right."""

    kind: str
    title: str
    sample: Sample
    pieces: tuple[Piece, ...]
    answers: tuple[tuple[str, str, Sample], ...]
    """(system, right, wrong or failed, its sample)"""


def side_by_side(systems: Sequence[System], files: Files | None = None) -> list[Answers]:
    """For each task, split and style at the most shots: a prompt that all answer right, one that only a certain system
    does, for each of them, and one that nobody does, as far as there are such."""
    by_system = {system.name: _first_answers(system.samples) for system in systems}
    common = set.intersection(*(set(found) for found in by_system.values()))
    chosen: dict[tuple[tuple[str, ...], str], tuple] = {}
    for key in sorted(common, key=lambda key: (key[:3], by_system[systems[0].name][key]["prompt_sha"], key)):
        found = {name: samples[key] for name, samples in by_system.items()}
        kind = _kind({name: sample["score"] == 1.0 for name, sample in found.items()})
        if kind is not None:
            chosen.setdefault((key[:3], kind), (found, kind))
    kinds = ["all are right", *(f"only {system.name} is right" for system in systems), "none is right"]
    ordered = sorted(chosen.items(), key=lambda item: (item[0][0], kinds.index(item[0][1])))
    return [_answers(found, kind, files) for _, (found, kind) in ordered]


def worst_mistakes(
    samples: Iterable[Sample], files: Files | None = None, most: int = MOST_MISTAKES
) -> list[Answers]:
    """The queries that are answered wrong under the most seeds at the most shots, and of these at the most numbers of
    shots too: under each of them one answer."""
    standard = [s for s in samples if s["condition"] == "standard" and s["score"] is not None]
    scores: dict[tuple, list[Sample]] = {}
    for sample in standard:
        key = (sample["task"], sample["split"], sample.get("style") or "", sample["query_id"])
        scores.setdefault(key, []).append(sample)
    ranked: list[tuple[tuple, Sample, str]] = []
    for found in scores.values():
        highest = max(sample["shots"] for sample in found)
        at_most = [sample for sample in found if sample["shots"] == highest]
        wrong = [sample for sample in at_most if sample["score"] == 0]
        if not wrong:
            continue
        shown = min(wrong, key=lambda sample: (str(sample.get("training_seed")), sample["seed"]))
        share = 1 - len(wrong) / len(at_most)
        overall = sum(sample["score"] for sample in found) / len(found)
        said = f"wrong {len(wrong)} times of {len(at_most)}"
        ranked.append(((share, overall, shown["prompt_sha"], str(shown.get("style"))), shown, said))
    ranked.sort(key=lambda item: item[0])
    return [_answers({shown["model"]: shown}, said, files) for _, shown, said in ranked[:most]]


def _first_answers(samples: Iterable[Sample]) -> dict[tuple, Sample]:
    """By (task, split, style, query) the answer at the most shots under the first seeds."""
    found: dict[tuple, Sample] = {}
    for sample in sorted(samples, key=lambda s: (-s["shots"], str(s.get("training_seed")), s["seed"])):
        if sample["condition"] == "standard" and sample["score"] is not None:
            key = (sample["task"], sample["split"], sample.get("style") or "", sample["query_id"])
            found.setdefault(key, sample)
    return found


def _kind(is_right: Mapping[str, bool]) -> str | None:
    right = [name for name, found in is_right.items() if found]
    if len(right) == len(is_right):
        return "all are right"
    if not right:
        return "none is right"
    return f"only {right[0]} is right" if len(right) == 1 else None


def _answers(found: Mapping[str, Sample], kind: str, files: Files | None) -> Answers:
    sample = next(iter(found.values()))
    return Answers(
        kind=kind,
        title=f"{spoken(sample['task'])} · {title_of(sample)}",
        sample=sample,
        pieces=pieces_of(redrawn(sample, files)),
        answers=tuple((name, verdict(its), its) for name, its in found.items()),
    )
