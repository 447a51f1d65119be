"""Two models answer together: one steps in for the other, or a judge decides where they differ (LLaVA, section 5.2).

Samples are those of two `samples.jsonl`; a question is known by its task, split and query id. What was asked may
differ: the second model may be one that sees no images.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from flamingo_lite.errors import FlamingoError
from flamingo_lite.evaluation.metrics import GenerationFailure, Scored

Sample = Mapping[str, Any]
QUESTION = ("task", "split", "query_id")


def complement(ours: Sequence[Sample], second: Sequence[Sample]) -> list[dict[str, Any]]:
    """The second model's samples, and ours where it failed or its answer could not be read.

    In the order of ours, with `decided_by` ("ours" or "second"). Errors: as `paired`.
    """
    return [
        _decided(mine, theirs, "second" if theirs["status"] == "ok" else "ours")
        for mine, theirs in paired(ours, second)
    ]


Decide = Callable[[Sequence[tuple[Sample, Sample]]], Sequence[str | GenerationFailure]]
"""What a judge says of each pair of samples that differ, in their order; a failure stands in its own place."""


def judged(
    ours: Sequence[Sample],
    second: Sequence[Sample],
    decide: Decide,
    score: Callable[[str, Sample], Scored],
) -> list[dict[str, Any]]:
    """Our samples; where the two models answered differently, what the judge answers.

    `decide` is asked once, of all these pairs, and its words are read by `score` as a model's would be. Where they
    cannot be read, or there are none, our answer stands, as in LLaVA. `decided_by` says whose answer it is ("both",
    "judge" or "ours"), `judge_raw` what the judge said. Errors: as `paired`, and `FlamingoError` for a judge that
    returns another number of verdicts.
    """
    pairs = paired(ours, second)
    differing = [(mine, theirs) for mine, theirs in pairs if not _agree(mine, theirs)]
    verdicts = list(decide(differing)) if differing else []
    if len(verdicts) != len(differing):
        raise FlamingoError(
            f"the judge returned {len(verdicts)} verdicts on {len(differing)} questions; expected one each"
        )
    said = iter(verdicts)
    return [
        _decided(mine, theirs, "both") if _agree(mine, theirs) else _verdict(mine, theirs, next(said), score)
        for mine, theirs in pairs
    ]


def _agree(mine: Sample, theirs: Sample) -> bool:
    return mine["status"] == theirs["status"] == "ok" and mine["extracted"] == theirs["extracted"]


def _verdict(
    mine: Sample, theirs: Sample, said: str | GenerationFailure, score: Callable[[str, Sample], Scored]
) -> dict[str, Any]:
    if isinstance(said, GenerationFailure):
        return _decided(mine, theirs, "ours") | {"judge_raw": None}
    found = score(said, mine)
    if found.status != "ok":
        return _decided(mine, theirs, "ours") | {"judge_raw": said}
    answer = {"raw": said, "extracted": found.extracted, "score": found.score, "status": found.status}
    return _decided(mine, theirs, "judge") | answer | {"judge_raw": said}


def paired(ours: Sequence[Sample], second: Sequence[Sample]) -> list[tuple[Sample, Sample]]:
    """Both models' samples of each question, in the order of ours.

    Errors: `FlamingoError` for a question that a file has twice (choose one cell of it), that only one has, or whose
    target differs.
    """
    mine, theirs = _by_question(ours, "the first"), _by_question(second, "the second")
    if alone := mine.keys() ^ theirs.keys():
        raise FlamingoError(
            f"{len(alone)} questions have a sample of one model only, such as {_shown(min(alone, key=str))}; expected "
            "both to have answered the same questions"
        )
    for key, sample in mine.items():
        if sample["target"] != theirs[key]["target"]:
            raise FlamingoError(
                f"{_shown(key)} has the target {sample['target']!r} in the first samples, {theirs[key]['target']!r} in "
                "the second; expected two evaluations of the same files"
            )
    return [(sample, theirs[key]) for key, sample in mine.items()]


def cell(samples: Iterable[Sample], **wanted: Any) -> list[Sample]:
    """The samples whose fields are as wanted: `cell(load_samples(run), shots=0, condition="standard")`.

    Errors: `FlamingoError` where there are none.
    """
    chosen = [
        sample for sample in samples if all(sample.get(name) == value for name, value in wanted.items())
    ]
    if not chosen:
        raise FlamingoError(f"no sample has {wanted}; expected a cell of the evaluation")
    return chosen


def _by_question(samples: Sequence[Sample], which: str) -> dict[tuple[Any, ...], Sample]:
    known: dict[tuple[Any, ...], Sample] = {}
    for sample in samples:
        key = tuple(sample[name] for name in QUESTION)
        if key in known:
            raise FlamingoError(
                f"{which} samples have {_shown(key)} twice; expected one cell: choose its shots, seed, style and "
                "condition"
            )
        known[key] = sample
    return known


def _decided(mine: Sample, theirs: Sample, by: str) -> dict[str, Any]:
    answers = theirs if by == "second" else mine
    chosen = {name: answers[name] for name in ("raw", "extracted", "score", "status")}
    return {**mine, **chosen, "model": f"{mine['model']} + {theirs['model']}", "decided_by": by}


def _shown(key: tuple[Any, ...]) -> str:
    return f"query {key[2]} of {key[0]}, {key[1]}"
