"""From answers to the two files' contents: a line for every prediction, and a cell that sums its predictions up.

Both are pure functions of prompts and answers, so that they can be made again from what a run has kept.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import Any

from flamingo_lite.evaluation.answers_alone import Asked, answers_alone
from flamingo_lite.evaluation.comparison import sample_clusters, sample_sets
from flamingo_lite.evaluation.demonstrations import Example
from flamingo_lite.evaluation.grid import Prompt, Setting
from flamingo_lite.evaluation.metrics import GenerationFailure, Scored, copy_rate, judge, majority_baseline
from flamingo_lite.evaluation.ranking import Ranked
from flamingo_lite.evaluation.results import prompt_sha
from flamingo_lite.evaluation.statistics import clustered_bootstrap, seed_spread
from flamingo_lite.evaluation.tasks import TASKS
from flamingo_lite.evaluation.tasks.task import Answer, Style, continuation

Outcome = str | Ranked | GenerationFailure
"""What came of a prompt: a generated text, a candidate that was chosen, or nothing."""

SHOWN = ("shots", "condition", "selector", "order", "zero_shot", "rendering")
"""What a cell and its samples say of how demonstrations were chosen and shown, in this order."""

MOST_SCORES = 20
"""Of more candidates the scores are left out of a sample's line."""


def score_cell(prompts: Sequence[Prompt], outcomes: Sequence[Outcome], model: str) -> list[dict[str, Any]]:
    """The lines of one cell's predictions, in their order; all prompts are of one setting.

    A whole cell at once, for some scores are relative to its other references (CIDEr-D).
    """
    raws = [outcome.raw if isinstance(outcome, Ranked) else outcome for outcome in outcomes]
    found = [
        judge(raw, functools.partial(scored, prompt.style, prompt.query))
        for prompt, raw in zip(prompts, raws, strict=True)
    ]
    style = prompts[0].style if prompts else None
    if style is not None and style.together is not None:
        found = _scored_together(style, prompts, raws, found)
    return [_sample(*of, model) for of in zip(prompts, outcomes, found, strict=True)]


def cell_of(
    setting: Setting, model: str, samples: Sequence[dict[str, Any]], prompts: Sequence[Prompt], resamples: int
) -> dict[str, Any]:
    """What the samples of one setting say together; `prompts` are theirs, in the same order."""
    task = TASKS[setting.task]
    style = task.styles[setting.style]
    answered = [s for s in samples if s["status"] != "failed"]
    clusters = sample_clusters(answered)
    estimate = clustered_bootstrap(
        [s["score"] for s in answered], clusters, resamples, sets=sample_sets(answered), bounds=style.bounds
    )
    seeds = sorted({s["seed"] for s in samples})
    by_seed = [_mean(s["score"] for s in answered if s["seed"] == seed) for seed in seeds]
    read = [s["read"] for s in answered if s["read"] is not None]
    copied = copy_rate(
        (s["extracted"], s["extracted"] if s["score"] else s["target"], p.demonstration_answers)
        for s, p in zip(samples, prompts, strict=True)
    )
    interval = None if estimate.ci95 is None else [_rounded(bound) for bound in estimate.ci95]
    return {
        "task": setting.task,
        "model": model,
        "split": setting.split,
        "style": setting.style,
        **{name: getattr(setting, name) for name in SHOWN},
        "metric": style.metric,
        "value": _rounded(estimate.value),
        "se": _rounded(estimate.se),
        "ci95": interval,
        "n": len(answered),
        "n_failed": len(samples) - len(answered),
        "n_unparsed": sum(s["status"] == "unparsed" for s in answered),
        "n_queries": len({s["query_id"] for s in answered}),
        "seeds": seeds,
        "by_seed": by_seed,
        "seed_sd": _rounded(seed_spread([mean for mean in by_seed if mean is not None])),
        "n_clusters": len(set(clusters)),
        "clustered_by": estimate.clustered_by,
        "copy_rate": _rounded(copied),
        "majority_baseline": _rounded(majority_baseline([s["target"] for s in answered])),
        **_chance(setting, prompts),
        "read_rate": _mean(read),
        "figures": _figures(style, samples, prompts),
    }


def in_order(groups: Iterable[Iterable[dict[str, Any]]]) -> list[dict[str, Any]]:
    """All samples in the order of `samples.jsonl`."""
    keys = ("task", "model", "split", "style", "condition", "shots", "seed", "query_id")
    samples = (sample for group in groups for sample in group)
    return sorted(samples, key=lambda sample: tuple(sample[key] for key in keys))


def scored(style: Style, example: Example, raw: str) -> Scored:
    """What the style makes of a text, cut where the style ends it."""
    return style.score(cut(raw, style.stop), example)


def cut(text: str, stops: Iterable[str]) -> str:
    """The text in front of the first of the stops; an empty one stops nothing."""
    for stop in filter(None, stops):
        text = text.partition(stop)[0]
    return text


def _scored_together(
    style: Style,
    prompts: Sequence[Prompt],
    raws: Sequence[str | GenerationFailure],
    found: Sequence[Scored],
) -> list[Scored]:
    assert style.together is not None
    given = [(i, raw) for i, raw in enumerate(raws) if isinstance(raw, str)]
    scores = style.together([raw for _, raw in given], [prompts[i].query for i, _ in given])
    rescored = list(found)
    for (i, _), score in zip(given, scores, strict=True):
        rescored[i] = Scored(found[i].extracted, score, found[i].status)
    return rescored


def _sample(prompt: Prompt, outcome: Outcome, found: Scored, model: str) -> dict[str, Any]:
    setting, query = prompt.setting, prompt.query
    failure = outcome if isinstance(outcome, GenerationFailure) else None
    raw = outcome.raw if isinstance(outcome, Ranked) else outcome
    has_read = prompt.style.has_read
    is_listed = isinstance(outcome, Ranked) and len(prompt.choices) <= MOST_SCORES
    return {
        "task": setting.task,
        "model": model,
        "query_id": prompt.query_id,
        "example_id": query.id,
        "split": setting.split,
        "style": setting.style,
        "seed": prompt.seed,
        **{name: getattr(setting, name) for name in SHOWN},
        "demonstration_ids": list(prompt.demonstration_ids),
        "prompt_sha": prompt_sha(prompt.document),
        "image_ids": [image.id for image in prompt.document.images],
        # The query's own, whatever a condition shows instead: queries on one image are not independent.
        "query_image_id": query.images[0].id if query.images else None,
        "raw": raw if isinstance(raw, str) else None,
        "extracted": found.extracted,
        "target": prompt.target,
        "score": found.score,
        "status": found.status,
        "error": failure.reason if failure else None,
        "read": has_read(raw, query) if has_read is not None and isinstance(raw, str) else None,
        "candidates": (
            # Beyond these places a likelihood depends on which prompts ran together.
            dict(zip(prompt.choices, (round(score, 3) for score in outcome.scores), strict=True))
            if isinstance(outcome, Ranked) and is_listed
            else None
        ),
    }


def _chance(setting: Setting, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """What guessing gives: a choice at random, and the best guess from the texts alone."""
    task, style = TASKS[setting.task], TASKS[setting.task].styles[setting.style]
    targets = {prompt.target for prompt in prompts}
    is_accuracy = style.together is None
    by_chance = [1 / len(p.query.choices or targets) for p in prompts] if is_accuracy else []

    @functools.cache
    def text(query_id: int, answer: str) -> str:
        return continuation(task, queries[query_id], setting.style, answer).text

    @functools.cache
    def score(query_id: int, answer: str) -> float:
        return scored(style, queries[query_id], text(query_id, answer)).score or 0.0

    def scores(asked: Sequence[Asked], answers: Sequence[str | None]) -> Sequence[float]:
        if style.together is None:
            return [
                0.0 if given is None else score(of.query_id, given)
                for of, given in zip(asked, answers, strict=True)
            ]
        texts = [
            "" if given is None else text(of.query_id, given)
            for of, given in zip(asked, answers, strict=True)
        ]
        return style.together(texts, [of.query for of in asked])

    queries = {prompt.query_id: prompt.query for prompt in prompts}
    found = answers_alone([Asked(p.query_id, p.query, p.demonstrations) for p in prompts], scores)
    return {
        "random_baseline": _mean(by_chance),
        "answers_alone": _rounded(found[0]) if found else None,
        "answers_alone_by": found[1] if found else None,
    }


def _figures(
    style: Style, samples: Sequence[dict[str, Any]], prompts: Sequence[Prompt]
) -> dict[str, float | None] | None:
    if style.figures is None:
        return None
    answers = [
        Answer(p.query, s["raw"], Scored(s["extracted"], s["score"], s["status"]), s["candidates"])
        for s, p in zip(samples, prompts, strict=True)
        if s["status"] != "failed"
    ]
    return {name: _rounded(value) for name, value in style.figures(answers).items()}


def _mean(values: Iterable[float]) -> float | None:
    listed = list(values)
    return _rounded(sum(listed) / len(listed)) if listed else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
