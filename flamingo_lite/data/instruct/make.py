"""Making instruction data: a teacher's answers into shards of conversations, rejects beside them, the manifest last.

Answers are kept in the cache as they come, so a run that was stopped, by a kill or by its budget, goes on from there.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flamingo_lite.data.convert.frame import Reject
from flamingo_lite.data.filters import option
from flamingo_lite.data.instruct.kinds import KINDS, PROMPTS, document, messages
from flamingo_lite.data.instruct.outcomes import TRANSIENT, Outcome, Rejected
from flamingo_lite.data.instruct.self_instruct import self_instruct
from flamingo_lite.data.instruct.sources import SCENES, Source, described_images
from flamingo_lite.data.manifest import MANIFEST, load_manifest, sha256_of
from flamingo_lite.data.shard_writer import ShardWriter, sync, temporary, writing_to
from flamingo_lite.errors import FlamingoError, SampleError
from flamingo_lite.names import check_choice
from flamingo_lite.teacher import Asker, Failure, Request, Teacher, TeacherOptions, make_asker

REJECTS = "rejects.jsonl"
VERSION = 2
"""Raised when the same answers come to other documents."""
SELF_INSTRUCT, ALL = "self_instruct", "all"
CHOICES = (*KINDS, SELF_INSTRUCT, ALL)
"""`all`: LLaVA's three; Self-Instruct needs no images."""


@dataclass(frozen=True)
class InstructOptions(TeacherOptions):
    """How much is made, and how it lies."""

    number: int | None = option(None, "images, or new instructions, at most; none: all of the inputs'")
    seed: int = option(0, "of the scenes, and of the tasks that Self-Instruct shows")
    samples_per_shard: int = option(1000, "documents of a shard, at most")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.number is not None and self.number < 1:
            raise FlamingoError(f"number is {self.number}; expected 1 or more, or none")
        if self.samples_per_shard < 1:
            raise FlamingoError(f"samples_per_shard is {self.samples_per_shard}; expected 1 or more")


@dataclass(frozen=True)
class Job:
    """`kind`: one of `CHOICES`; `inputs`: see `described_images`, none for Self-Instruct; `images`: their folder."""

    kind: str
    inputs: tuple[str, ...]
    images: Path | None
    directory: Path
    options: InstructOptions
    overwrite: bool = False


@dataclass
class Summary:
    """`is_new`: something was written; `is_complete`: the same command would change nothing."""

    documents: int
    rejects: Counter[str]
    is_new: bool
    is_complete: bool


def make_instructions(
    job: Job, teacher: Teacher, progress: Callable[[int], None] = lambda documents: None
) -> tuple[Summary, Asker]:
    """Asks the teacher and writes the shards; what was left unasked by an earlier run is asked now.

    Errors: `FlamingoError` for inputs of another kind, a directory that holds something else, a teacher that does not
    answer, or answers none of which can be used.
    """
    check_choice("kind", job.kind, CHOICES)
    recipe = _recipe(job, teacher)
    asker = make_asker(teacher, job.options, job.directory)
    if (done := _done(job, recipe)) is not None:
        return done, asker
    outcomes = _outcomes(job, asker)
    with ExitStack() as stack:
        writer = stack.enter_context(
            ShardWriter(job.directory, job.options.samples_per_shard, overwrite=True)
        )
        rejects = _RejectsFile(job.directory)
        stack.callback(rejects.discard)
        summary = Summary(0, rejects.counts, is_new=True, is_complete=True)
        for outcome in outcomes:
            if not isinstance(outcome, Rejected):
                try:
                    writer.write(*outcome)
                    summary.documents += 1
                    progress(summary.documents)
                    continue
                except SampleError as error:
                    outcome = Rejected(outcome[0], error.reason, str(error))
            rejects.write(outcome)
        rejects.publish()
        summary.is_complete = not asker.is_spent and not any(rejects.counts[reason] for reason in TRANSIENT)
        if not summary.documents:
            raise _nothing(job, asker, rejects.counts)
        writer.info.update(
            {**recipe, "documents": summary.documents, "rejects": dict(sorted(rejects.counts.items())),
             "tokens": asker.tally.tokens, "complete": summary.is_complete}
        )  # fmt: skip
    return summary, asker


def _outcomes(job: Job, asker: Asker) -> Iterator[Outcome]:
    options = job.options
    if job.kind == SELF_INSTRUCT:
        if job.inputs:
            raise FlamingoError("--kind self_instruct takes no --from; expected number=N of new instructions")
        if options.number is None:
            raise FlamingoError("--kind self_instruct has no end; expected number=N of new instructions")
        return self_instruct(asker, options.number, options.seed, options.sampling)
    kinds = KINDS if job.kind == ALL else (job.kind,)
    source = described_images(job.inputs, job.images, options.number, options.seed)
    return _of_images(source, kinds, asker, options)


def _of_images(
    source: Source, kinds: Sequence[str], asker: Asker, options: InstructOptions
) -> Iterator[Outcome]:
    unusable: list[Reject] = []

    def requests() -> Iterator[Request[Any]]:
        for each in source:
            if isinstance(each, Reject):
                unusable.append(each)
                continue
            for kind in kinds:
                yield Request((kind, each), messages(kind, each), options.sampling)

    for (kind, each), answer in asker.ask(requests()):
        key = f"{each.key}-{kind}"
        if isinstance(answer, Failure):
            yield Rejected(key, answer.reason, answer.message)
            continue
        try:
            yield key, document(kind, each, answer, asker.teacher.name)
        except SampleError as error:
            yield Rejected(key, error.reason, str(error), answer.text)
    for reject in unusable:
        yield Rejected(reject.key, reject.reason, reject.message)


class _RejectsFile:
    """Under its temporary name until it is published: a line for each reject."""

    def __init__(self, directory: Path) -> None:
        self.counts: Counter[str] = Counter()
        self._path = directory / REJECTS
        with writing_to(directory):
            self._file = temporary(self._path).open("w", encoding="utf-8")

    def write(self, reject: Rejected) -> None:
        self.counts[reject.reason] += 1
        with writing_to(self._path.parent):
            self._file.write(json.dumps(asdict(reject)) + "\n")

    def publish(self) -> None:
        with writing_to(self._path.parent):
            sync(self._file)
            temporary(self._path).replace(self._path)

    def discard(self) -> None:
        self._file.close()
        temporary(self._path).unlink(missing_ok=True)


def _recipe(job: Job, teacher: Teacher) -> dict[str, Any]:
    """All that decides what is made, but for the budget and the answers."""
    files = [Path(given) for given in job.inputs if given != SCENES]
    prompts = hashlib.sha256(b"\0".join(path.read_bytes() for path in sorted(PROMPTS.glob("*.yaml"))))
    return {
        "instruct": VERSION,
        "kind": job.kind,
        "teacher": teacher.name,
        "sampling": asdict(job.options.sampling),
        "inputs": [SCENES] if not files and job.inputs else [sha256_of(path) for path in files],
        "number": job.options.number,
        "seed": job.options.seed,
        "prompts": prompts.hexdigest(),
    }


def _done(job: Job, recipe: dict[str, Any]) -> Summary | None:
    """What the directory holds, when the same command has made all of it; None where there is something to do.

    Errors: `FlamingoError` when it holds something else.
    """
    if job.overwrite or not (job.directory / MANIFEST).exists():
        return None
    info = load_manifest(job.directory).info
    if {name: info.get(name) for name in recipe} != recipe:
        other = "other instruction data" if "instruct" in info else "shards"
        raise FlamingoError(f"{job.directory}: holds {other}; choose another directory, or --overwrite")
    if not info["complete"]:
        return None
    return Summary(info["documents"], Counter(info["rejects"]), is_new=False, is_complete=True)


def _nothing(job: Job, asker: Asker, rejects: Counter[str]) -> FlamingoError:
    found = ", ".join(f"{count:,} {reason}" for reason, count in rejects.most_common(5))
    if asker.is_spent and not rejects:
        return FlamingoError(
            f"the budget of {asker.budget.limit:,} tokens leaves room for no request; raise budget"
        )
    if not found:
        return FlamingoError(f"{' '.join(job.inputs)}: holds no images; nothing can be made")
    return FlamingoError(
        f"{job.directory}: no answer could be used ({found}); see {REJECTS} there, then mend prompts, model or options"
    )
