"""Runs an evaluation: builds every prompt, has the answers generated, scores them, writes the two files.

The text generator is a callable, so that a model, an endpoint or a rule can be put to the same prompts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from flamingo_lite.document import Document, Text
from flamingo_lite.errors import FlamingoError
from flamingo_lite.evaluation.environment import environment, git_sha
from flamingo_lite.evaluation.grid import EvaluationConfig, Prompt, Setting, prompts, settings
from flamingo_lite.evaluation.metrics import GenerationFailure
from flamingo_lite.evaluation.ranking import Likelihood, Rank, choose
from flamingo_lite.evaluation.results import (
    SCHEMA_VERSION,
    prompt_sha,
    sha256_of_json,
    write_results,
    write_samples,
)
from flamingo_lite.evaluation.scoring import Outcome, cell_of, in_order, score_cell
from flamingo_lite.evaluation.selection import SELECTORS, Selection

# Called with (predictions made, predictions in all, what comes next).
Progress = Callable[[int, int, str], None]


class Generate(Protocol):
    """Continues each document, greedily, in the order given; a failure stands in its own place."""

    def __call__(
        self, documents: Sequence[Document], max_new_tokens: int
    ) -> Sequence[str | GenerationFailure]: ...


def evaluate(
    generate: Generate,
    config: EvaluationConfig,
    directory: str | Path | None,
    *,
    rank: Rank | None = None,
    selectors: Mapping[str, Selection] = SELECTORS,
    model: str = "flamingo",
    checkpoint_sha: str | None = None,
    model_info: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Writes `results.json` and `samples.jsonl` into `directory`, unless it is None, and returns the results.

    `rank` answers the styles that take the likeliest of given candidates. `generate` is called once per task, split
    and length of answers, so that a generator which encodes each distinct image of a call once encodes each image
    once. The same texts give the same bytes. Errors: `FlamingoError` as the generator raises it, or if it returns
    another number of texts than it was given documents.
    """
    groups: dict[tuple[str, str], list[Setting]] = {}
    for setting in settings(config):
        groups.setdefault((setting.task, setting.split), []).append(setting)
    planned = {
        key: {setting: list(prompts(setting, config, selectors)) for setting in group}
        for key, group in groups.items()
    }
    total = sum(len(asked) for group in planned.values() for asked in group.values())
    samples: dict[Setting, list[dict[str, Any]]] = {}
    done = 0
    for (task, split), group in planned.items():
        if progress is not None:
            progress(done, total, f"{task}, {split}")
        asked = [prompt for listed in group.values() for prompt in listed]
        outcomes = iter(_answered(asked, generate, rank))
        for setting, listed in group.items():
            samples[setting] = score_cell(listed, [next(outcomes) for _ in listed], model)
        done += len(asked)
        if progress is not None:
            progress(done, total, f"{task}, {split}")
    shas = {"checkpoint_sha": checkpoint_sha, **(model_info or {})}
    shown = {setting: listed for group in planned.values() for setting, listed in group.items()}
    results = {
        "schema_version": SCHEMA_VERSION,
        "git_sha": git_sha(),
        "config_sha": sha256_of_json(asdict(config)),
        "config": asdict(config),
        "environment": environment(),
        "models": {model: shas},
        "cells": [cell_of(s, model, samples[s], shown[s], config.resamples) for s in settings(config)],
    }
    # The samples come first: results without them cannot be checked, samples without results can be summed up
    # again.
    if directory is not None:
        write_samples(in_order(samples.values()), Path(directory))
        write_results(results, Path(directory))
    return results


def _answered(asked: Sequence[Prompt], generate: Generate, rank: Rank | None) -> list[Outcome]:
    """One outcome per prompt, in their order."""
    outcomes: dict[int, Outcome] = {}
    by_length: dict[int, list[int]] = {}
    for i, prompt in enumerate(asked):
        if not prompt.candidates:
            by_length.setdefault(prompt.max_new_tokens, []).append(i)
    for length, places in by_length.items():
        raws = generate([asked[i].document for i in places], length)
        if len(raws) != len(places):
            raise FlamingoError(
                f"the generator returned {len(raws)} texts for {len(places)} documents; expected one each"
            )
        outcomes |= dict(zip(places, raws, strict=True))
    ranked = [i for i, prompt in enumerate(asked) if prompt.candidates]
    if ranked:
        chosen = _ranked([asked[i] for i in ranked], rank)
        outcomes |= dict(zip(ranked, chosen, strict=True))
    return [outcomes[i] for i in range(len(asked))]


def _ranked(asked: Sequence[Prompt], rank: Rank | None) -> list[Outcome]:
    """Each distinct document is ranked once, whatever rules read its likelihoods."""
    if rank is None:
        raise FlamingoError(
            f"style {asked[0].setting.style} of {asked[0].setting.task} ranks candidates, which this model cannot; "
            "choose a style that generates"
        )
    places: dict[tuple[str, tuple[str, ...]], tuple[Document, Sequence[Text]]] = {}

    def key(document: Document, prompt: Prompt) -> tuple[str, tuple[str, ...]]:
        found = prompt_sha(document), tuple(candidate.text for candidate in prompt.candidates)
        places.setdefault(found, (document, prompt.candidates))
        return found

    keys = [(key(p.document, p), None if p.content_free is None else key(p.content_free, p)) for p in asked]
    answers = rank([document for document, _ in places.values()], [given for _, given in places.values()])
    if len(answers) != len(places):
        raise FlamingoError(
            f"the ranker returned {len(answers)} answers for {len(places)} documents; expected one each"
        )
    found: dict[Any, Sequence[Likelihood] | GenerationFailure] = dict(zip(places, answers, strict=True))
    return [
        choose(p.style.ranking, p.candidates, found[own], None if free is None else found[free])
        for p, (own, free) in zip(asked, keys, strict=True)
    ]
