"""Runs an evaluation: builds every prompt, has it answered, keeps each answer, scores them all, writes the two files.

Whoever answers is a callable, so that a model, an endpoint or a rule can be put to the same prompts. Neither the number
of processes, nor the batches, nor an interruption changes a byte of `samples.jsonl`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any, Protocol, TypeVar

import flamingo_lite
from flamingo_lite.checkpoints.sums import WEIGHTS, files_sha256
from flamingo_lite.data.manifest import sha256_of
from flamingo_lite.errors import FlamingoError
from flamingo_lite.evaluation import journal
from flamingo_lite.evaluation.answers import Answered, Answering, Generate, answers
from flamingo_lite.evaluation.environment import environment, git_sha
from flamingo_lite.evaluation.grid import (
    EvaluationConfig,
    Prompt,
    Setting,
    asked,
    left_out,
    query_ids,
    seeds_of,
    settings,
)
from flamingo_lite.evaluation.journal import Journal, Key
from flamingo_lite.evaluation.ranking import Rank
from flamingo_lite.evaluation.results import (
    RESULTS,
    SCHEMA_VERSION,
    failures_of,
    load_results,
    prompt_sha,
    sha256_of_json,
    write_results,
    write_samples,
)
from flamingo_lite.evaluation.scoring import cell_of, in_order, score_cell
from flamingo_lite.evaluation.selection import SELECTORS, Selection

T = TypeVar("T")

# Called with (predictions made, predictions in all, what comes next).
Progress = Callable[[int, int, str], None]

BATCHES_AT_ONCE = 4
"""How many batches of prompts are answered between two writes to the journal: what a kill can cost."""

CHANGES_NOTHING = ("batch_size", "features", "media_bytes", "data")
"""What of the configuration changes no answer. (The files that are read in the folder `data` are named one by one.)"""
ENCODER_FILES = (*WEIGHTS, "*.json", "*.txt", "*.model", "1_Pooling/*.json")
"""What of a directory an encoder is read from: its weights, what they mean, and the words of its tokenizer."""
COMPARES = {"image": "image_encoder", "text": "text_encoder"}
"""What says which encoder compares images, or texts."""


class Ranks(Protocol):
    """The processes that evaluate together; see `training.ranks.Ranks`."""

    @property
    def number(self) -> int: ...

    @property
    def rank(self) -> int: ...

    def broadcast(self, value: T) -> T: ...

    def gather(self, value: T) -> list[T]: ...


@dataclass(frozen=True)
class Alone:
    """One process."""

    number: int = 1
    rank: int = 0

    def broadcast(self, value: T) -> T:
        return value

    def gather(self, value: T) -> list[T]:
        return [value]


@dataclass(frozen=True)
class Subject:
    """A model under evaluation, loaded when its turn comes, if any question is still open. `info`: what results.json
    says of it. `rendering`: how it is shown prompts, in place of the evaluation's own.
    """

    name: str
    load: Callable[[], tuple[Generate, Rank | None]]
    checkpoint_sha: str | None = None
    info: Mapping[str, Any] = field(default_factory=dict)
    rendering: str | None = None

    def shown(self, setting: Setting) -> Setting:
        """The cell as this model is shown it."""
        return setting if self.rendering is None else replace(setting, rendering=self.rendering)


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
    """`evaluate_all` of one model, whatever lies in `directory`."""
    subject = Subject(model, lambda: (generate, rank), checkpoint_sha, model_info or {})
    return evaluate_all([subject], config, directory, selectors=selectors, progress=progress)


def evaluate_all(
    subjects: Sequence[Subject],
    config: EvaluationConfig,
    directory: str | Path | None,
    *,
    ranks: Ranks | None = None,
    resume: bool = False,
    selectors: Mapping[str, Selection] = SELECTORS,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Writes `results.json` and `samples.jsonl` into `directory`, unless it is None, and returns the results.

    All ranks call it; every prediction is made by exactly one of them, and the first one writes. resume: what was
    answered there before is not asked again, failures apart; of a finished evaluation the results are returned.
    Errors: `FlamingoError` as a model raises it, for two models of one name, and, with resume, where `directory` holds
    an evaluation of other settings or models.
    """
    _check_subjects(subjects)
    ranks = ranks or Alone()
    folder = None if directory is None else Path(directory)
    identity = identity_of(subjects, config)
    finished, known = ranks.broadcast(_begin(folder, identity, resume) if ranks.rank == 0 else (None, {}))
    if finished is not None:
        return finished
    run = _Run(config, selectors, ranks, known, progress, len(subjects))
    with Journal(folder, ranks.rank) if folder is not None else nullcontext() as kept:
        for subject in subjects:
            run.ask(subject, kept)
    found = {key: answered for each in ranks.gather(run.answered) for key, answered in each.items()}
    results = run.summed_up(subjects, found, identity, folder) if ranks.rank == 0 else {}
    return ranks.broadcast(results)


def identity_of(subjects: Sequence[Subject], config: EvaluationConfig) -> dict[str, Any]:
    """What changes the answers, as plain JSON."""
    idle = {name for kind, name in COMPARES.items() if kind not in config.compares}
    named = asdict(config) | ({"exclude": sha256_of(Path(config.exclude))} if config.exclude else {})
    named["rendering"] = config.shown_as
    out = idle.union(CHANGES_NOTHING, () if config.exclude else ("exclude",))
    chosen = {name: value for name, value in named.items() if name not in out}
    models = {subject.name: _weights(subject) for subject in subjects}
    identity = {"version": flamingo_lite.__version__, "eval": chosen, "models": models}
    further = {
        "renderings": {s.name: s.rendering for s in subjects if s.rendering is not None},
        "encoders": {
            kind: found
            for kind in config.compares
            if (found := _encoder_sha(getattr(config, COMPARES[kind])))
        },
    }
    return identity | {name: found for name, found in further.items() if found}


def _encoder_sha(name: str | None) -> str | None:
    """Of an encoder in a directory, or of a file of weights: others may be put there. Other names say which they mean."""
    if name is None or name == "tiny":
        return None
    _, colon, weights = name.partition(":")
    if colon:
        return sha256_of(Path(weights)) if Path(weights).is_file() else None
    directory = Path(name).expanduser()
    return files_sha256(directory, ENCODER_FILES) if directory.is_dir() else None


def _weights(subject: Subject) -> Any:
    """What tells a model from another of its name: its weights, and where it is asked or by whom it is run."""
    if not subject.info:
        return subject.checkpoint_sha
    return dict(subject.info) | ({"checkpoint_sha": subject.checkpoint_sha} if subject.checkpoint_sha else {})


def _begin(
    folder: Path | None, identity: Mapping[str, Any], resume: bool
) -> tuple[dict[str, Any] | None, dict[Key, Answered]]:
    """The results where all is done, and what was answered before."""
    if folder is None:
        return None, {}
    if not resume:
        journal.end(folder)
    elif (folder / RESULTS).is_file():
        results = load_results(folder)
        journal.check_same(results.get("identity") or {}, identity, folder)
        return results, {}
    journal.begin(folder, identity)
    return None, journal.read(folder)


@dataclass
class _Run:
    """One process's part of an evaluation. `answered`: its share of the predictions, as they come."""

    config: EvaluationConfig
    selectors: Mapping[str, Selection]
    ranks: Ranks
    known: Mapping[Key, Answered]
    progress: Progress | None
    models: int
    answered: dict[Key, Answered] = field(default_factory=dict)
    built: dict[tuple[Setting, int, int], Prompt] = field(default_factory=dict)
    ids: dict[tuple[str, str], Sequence[int]] = field(default_factory=dict)

    def ask(self, subject: Subject, kept: Journal | None) -> None:
        """Has the subject answer this process's share of what is still open."""
        at_once = self.config.batch_size * BATCHES_AT_ONCE
        answering: Answering | None = None
        waiting: dict[Key, Prompt] = {}

        def flush() -> None:
            nonlocal answering
            if waiting:
                if answering is None:
                    answering = Answering(*subject.load())
                found = dict(zip(waiting, answers(list(waiting.values()), answering), strict=True))
                if kept is not None:
                    kept.write(list(found.items()))
                self.answered |= found
                waiting.clear()

        for key, prompt in self._share(subject):
            before = self.known.get(key)
            if before is not None and before.prompt_sha == prompt_sha(prompt.document):
                self.answered[key] = before
                continue
            if not waiting:
                self._say(prompt.setting)
            waiting[key] = prompt
            if len(waiting) == at_once:
                flush()
        flush()
        self._say(None)

    def _share(self, subject: Subject) -> Iterator[tuple[Key, Prompt]]:
        """This process's predictions. All of one query come together: their prompts have much in common."""
        groups: dict[tuple[str, str], list[Setting]] = {}
        for setting in settings(self.config):
            groups.setdefault((setting.task, setting.split), []).append(setting)
        turn = count()
        for group in groups.values():
            for query_id in self._ids(group[0]):
                if next(turn) % self.ranks.number != self.ranks.rank:
                    continue
                for setting in map(subject.shown, group):
                    for seed in seeds_of(setting, self.config):
                        yield _key(subject, setting, seed, query_id), self._prompt(setting, seed, query_id)

    def _ids(self, setting: Setting) -> Sequence[int]:
        place = setting.task, setting.split
        if place not in self.ids:
            self.ids[place] = query_ids(setting, self.config)
        return self.ids[place]

    def _prompt(self, setting: Setting, seed: int, query_id: int) -> Prompt:
        """Built once for all models, however each is shown it."""
        place = (replace(setting, rendering=self.config.shown_as), seed, query_id)
        if place not in self.built:
            self.built[place] = asked(place[0], query_id, seed, self.config, self.selectors)
        prompt = self.built[place]
        return prompt if prompt.setting == setting else replace(prompt, setting=setting)

    def _say(self, setting: Setting | None) -> None:
        if self.progress is None:
            return
        total = self.total
        done = min(total, len(self.answered) * self.ranks.number)
        label = "" if setting is None else f"{setting.task}, {setting.split}"
        self.progress(done, total, label)

    @property
    def total(self) -> int:
        """Predictions of all models and processes."""
        each = (len(seeds_of(s, self.config)) * len(self._ids(s)) for s in settings(self.config))
        return self.models * sum(each)

    def summed_up(
        self,
        subjects: Sequence[Subject],
        found: Mapping[Key, Answered],
        identity: Mapping[str, Any],
        folder: Path | None,
    ) -> dict[str, Any]:
        """Scores everything, and writes the files."""
        samples: list[list[dict[str, Any]]] = []
        cells: list[dict[str, Any]] = []
        for subject in subjects:
            for setting in map(subject.shown, settings(self.config)):
                lines, cell = self._cell(subject, setting, found)
                samples.append(lines)
                cells.append(cell)
        results = {
            "schema_version": SCHEMA_VERSION,
            "git_sha": git_sha(),
            "config_sha": sha256_of_json(asdict(self.config)),
            "config": asdict(self.config),
            "identity": identity,
            "environment": environment(),
            "models": {s.name: {"checkpoint_sha": s.checkpoint_sha, **s.info} for s in subjects},
            "excluded": left_out(self.config),
            "failures": failures_of(sample for lines in samples for sample in lines),
            "cells": cells,
        }
        if folder is not None:
            # The samples come first: results without them cannot be checked, samples without results can be summed
            # up again.
            write_samples(in_order(samples), folder)
            write_results(results, folder)
            journal.end(folder)
        return results

    def _cell(
        self, subject: Subject, setting: Setting, found: Mapping[Key, Answered]
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """The lines of one cell's predictions, and the cell."""
        places = [
            (seed, query_id) for seed in seeds_of(setting, self.config) for query_id in self._ids(setting)
        ]
        prompts = [self._prompt(setting, *place) for place in places]
        answered = [found[_key(subject, setting, *place)] for place in places]
        lines = score_cell(prompts, [each.outcome for each in answered], subject.name)
        for line, each in zip(lines, answered, strict=True):
            line["near_tie"] = each.near_tie
        cell = cell_of(setting, subject.name, lines, prompts, self.config.resamples)
        near_ties = sum(each.near_tie for each in answered)
        return lines, {**cell, "n_near_ties": near_ties}


def _check_subjects(subjects: Sequence[Subject]) -> None:
    names = [subject.name for subject in subjects]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise FlamingoError(f"the model {twice} is named twice; give each a name of its own")


def _key(subject: Subject, setting: Setting, seed: int, query_id: int) -> Key:
    return (subject.name, *asdict(setting).values(), seed, query_id)
