"""Runs an evaluation: builds every prompt, has the answers generated, scores them, writes the two files.

The text generator is a callable, so that a model, an endpoint or a rule can be put to the same prompts.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from flamingo_lite.document import Document
from flamingo_lite.errors import FlamingoError
from flamingo_lite.evaluation.comparison import sample_clusters, sample_sets
from flamingo_lite.evaluation.environment import environment, git_sha
from flamingo_lite.evaluation.grid import EvaluationConfig, Prompt, Setting, prompts, settings
from flamingo_lite.evaluation.metrics import GenerationFailure, copy_rate, majority_baseline, score
from flamingo_lite.evaluation.results import (
    SCHEMA_VERSION,
    prompt_sha,
    sha256_of_json,
    write_results,
    write_samples,
)
from flamingo_lite.evaluation.statistics import clustered_bootstrap, seed_spread
from flamingo_lite.evaluation.tasks import TASKS

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
    model: str = "flamingo",
    checkpoint_sha: str | None = None,
    model_info: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Writes `results.json` and `samples.jsonl` into `directory`, unless it is None, and returns the results.

    `generate` is called once per task and split, so that a generator which encodes each distinct image of a
    call once encodes each image once. The same texts give the same bytes. Errors: `FlamingoError` as the
    generator raises it, or if it returns another number of texts than it was given documents.
    """
    groups: dict[tuple[str, str], list[Setting]] = {}
    for setting in settings(config):
        groups.setdefault((setting.task, setting.split), []).append(setting)
    planned = {key: [p for s in group for p in prompts(s, config)] for key, group in groups.items()}
    total = sum(map(len, planned.values()))
    scored: dict[Setting, list[dict[str, Any]]] = {}
    shown: dict[Setting, list[Prompt]] = {}
    done = 0
    for (task, split), batch in planned.items():
        if progress is not None:
            progress(done, total, f"{task}, {split}")
        raws = generate([prompt.document for prompt in batch], config.max_new_tokens)
        if len(raws) != len(batch):
            raise FlamingoError(
                f"the generator returned {len(raws)} texts for {len(batch)} documents; expected one each"
            )
        for prompt, raw in zip(batch, raws, strict=True):
            scored.setdefault(prompt.setting, []).append(_sample(prompt, raw, model))
            shown.setdefault(prompt.setting, []).append(prompt)
        done += len(batch)
        if progress is not None:
            progress(done, total, f"{task}, {split}")
    shas = {"checkpoint_sha": checkpoint_sha, **(model_info or {})}
    results = {
        "schema_version": SCHEMA_VERSION,
        "git_sha": git_sha(),
        "config_sha": sha256_of_json(asdict(config)),
        "config": asdict(config),
        "environment": environment(),
        "models": {model: shas},
        "cells": [_cell(s, model, scored[s], shown[s], config.resamples) for s in settings(config)],
    }
    # The samples come first: results without them cannot be checked, samples without results can be summed up
    # again.
    if directory is not None:
        write_samples(_in_order(scored.values()), Path(directory))
        write_results(results, Path(directory))
    return results


def _sample(prompt: Prompt, raw: str | GenerationFailure, model: str) -> dict[str, Any]:
    setting = prompt.setting
    task = TASKS[setting.task]
    found = score(raw, prompt.target, task.styles[setting.style])
    failed = isinstance(raw, GenerationFailure)
    query = task.query(setting.split, prompt.query_id)
    return {
        "task": setting.task,
        "model": model,
        "query_id": prompt.query_id,
        "split": setting.split,
        "style": setting.style,
        "seed": prompt.seed,
        "shots": setting.shots,
        "condition": setting.condition,
        "demonstration_ids": list(prompt.demonstration_ids),
        "prompt_sha": prompt_sha(prompt.document),
        "image_ids": [image.id for image in prompt.document.images],
        # The query's own, whatever a condition shows instead: queries on one image are not independent.
        "query_image_id": query.image.id,
        "raw": None if failed else raw,
        "extracted": found.extracted,
        "target": prompt.target,
        "score": found.score,
        "status": found.status,
        "error": raw.reason if failed else None,
        "read": None if failed else task.has_read(query, setting.style, raw),
    }


def _in_order(groups: Iterable[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    keys = ("task", "model", "split", "style", "condition", "shots", "seed", "query_id")
    samples = (sample for group in groups for sample in group)
    return sorted(samples, key=lambda sample: tuple(sample[key] for key in keys))


def _cell(
    setting: Setting, model: str, samples: list[dict[str, Any]], shown: list[Prompt], resamples: int
) -> dict[str, Any]:
    answered = [s for s in samples if s["status"] != "failed"]
    clusters = sample_clusters(answered)
    estimate = clustered_bootstrap(
        [s["score"] for s in answered], clusters, resamples, sets=sample_sets(answered), bounds=(0.0, 1.0)
    )
    seeds = sorted({s["seed"] for s in samples})
    by_seed = [_mean(s["score"] for s in answered if s["seed"] == seed) for seed in seeds]
    read = [s["read"] for s in answered if s["read"] is not None]
    copied = copy_rate(
        (s["extracted"], s["target"], p.demonstration_answers) for s, p in zip(samples, shown, strict=True)
    )
    interval = None if estimate.ci95 is None else [_rounded(bound) for bound in estimate.ci95]
    return {
        "task": setting.task,
        "model": model,
        "split": setting.split,
        "style": setting.style,
        "shots": setting.shots,
        "condition": setting.condition,
        "metric": "exact_match",
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
        "read_rate": _mean(read),
    }


def _mean(values: Iterable[float]) -> float | None:
    listed = list(values)
    return _rounded(sum(listed) / len(listed)) if listed else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
