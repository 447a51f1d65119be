"""Converting a data set: each unit into shards of its own, with a ledger; the manifest from the ledgers, last.

A run that is killed continues where it was; what it leaves is, to the byte, what one uninterrupted run leaves,
whatever the engine and the number of workers.
"""

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from flamingo_lite.data.convert.engines import ENGINES, Outcome
from flamingo_lite.data.convert.formats import FORMATS
from flamingo_lite.data.convert.frame import Format, Options, Record, Reject, Unit
from flamingo_lite.data.convert.ledger import (
    FOLDER,
    VERSION,
    Ledger,
    fingerprint,
    fits,
    forget_folders,
    ledger_path,
    read_ledger,
    rejects_path,
    write_ledger,
)
from flamingo_lite.data.convert.selection import select
from flamingo_lite.data.deny import load_deny_list
from flamingo_lite.data.manifest import MANIFEST, Manifest
from flamingo_lite.data.shard_writer import (
    ShardSeries,
    remove_strays,
    sync,
    temporary,
    write_whole,
    writing_to,
)
from flamingo_lite.document import Document
from flamingo_lite.errors import FlamingoError, SampleError, first_line
from flamingo_lite.names import check_choice

REJECTS = "rejects.jsonl"


@dataclass(frozen=True)
class Job:
    """One conversion. `overwrite`: units that are done are done again, and other shards in the directory go."""

    format: str
    options: Options
    directory: Path
    overwrite: bool = False


def convert(
    job: Job, inputs: Sequence[Path], workers: int = 0, engine: str = "local"
) -> "tuple[int, Iterator[Outcome]]":
    """How many units there are, and an iterator that converts them and yields what each came to, as they end. When it
    is exhausted, the manifest is in place.

    Errors: `FlamingoError` for inputs of another kind, a directory that holds something else, a full disk, or when
    nothing is left of the inputs.
    """
    check_choice("engine", engine, ENGINES)
    if workers < 0:
        raise FlamingoError(f"--workers is {workers}; expected 0 (one per core) or more")
    if job.options.images is not None and not job.options.images.exists():
        raise FlamingoError(f"--images {job.options.images}: no such folder")
    if job.options.deny:
        load_deny_list(job.options.deny)
    forget_folders()
    _check_apart(job.directory, inputs)
    units = FORMATS[job.format].units(inputs, job.options)
    _check_names(units)
    _prepare(job, units)
    return len(units), _converted(job, units, workers, engine)


def convert_unit(job: Job, unit: Unit) -> Outcome:
    """Converts a unit unless it is done already; returns its ledger, and whether it was. Runs on a worker.

    Errors: `FlamingoError`.
    """
    mark = fingerprint(job.format, unit, job.options)
    before = read_ledger(job.directory, unit.id)
    if before is not None and not job.overwrite and fits(job.directory, before, mark):
        return before, True
    ledger = Ledger(unit.id, mark)
    rejects = rejects_path(job.directory, unit.id)
    series = ShardSeries(job.directory, f"shard-{unit.id}-{{:03d}}.tar", job.options.samples_per_shard)
    with ExitStack() as undo:
        undo.callback(temporary(rejects).unlink, missing_ok=True)
        undo.callback(series.discard)
        with writing_to(job.directory), temporary(rejects).open("w", encoding="utf-8") as file:
            for reject in _write_documents(job, unit, series, ledger):
                file.write(json.dumps(vars(reject)) + "\n")
            sync(file)
        ledger.shards = list(series.finish())
        with writing_to(job.directory):
            # From here on the directory is not what its manifest says, nor the unit what its ledger says.
            (job.directory / MANIFEST).unlink(missing_ok=True)
            ledger_path(job.directory, unit.id).unlink(missing_ok=True)
            series.publish()
            temporary(rejects).replace(rejects)
            write_ledger(job.directory, ledger)
        undo.pop_all()
    return ledger, False


def _write_documents(job: Job, unit: Unit, series: ShardSeries, ledger: Ledger) -> Iterator[Reject]:
    """Writes the unit's documents, counts them, and yields the rejects among the records."""
    format = FORMATS[job.format]
    deny = load_deny_list(job.options.deny) if job.options.deny else None
    is_first = unit.start == 0
    for record in _records(format, unit, job.options):
        if is_first and isinstance(record, Reject) and record.reason == "layout":
            raise FlamingoError(f"not {job.format}: {record.message}")
        is_first = False
        chosen = [record] if isinstance(record, Reject) else select(*record, format, job.options, deny)
        for outcome in chosen:
            if not isinstance(outcome, Reject):
                outcome = _written(series, *outcome) or outcome
            if isinstance(outcome, Reject):
                (ledger.images_left_out if outcome.image else ledger.rejects)[outcome.reason] += 1
                yield outcome
            else:
                ledger.documents += 1
                ledger.images += len(outcome[1].images)


def _written(series: ShardSeries, key: str, document: Document) -> Reject | None:
    """Writes the document; the reject of one that a shard cannot hold."""
    try:
        series.write(key, document)
    except SampleError as error:
        return Reject(key, error.reason, str(error))
    return None


def _records(format: Format, unit: Unit, options: Options) -> Iterator[Record]:
    """Errors: `FlamingoError` for an input whose storage fails, which is no failure of the directory of shards."""
    try:
        yield from format.read(unit, options)
    except OSError as error:
        raise FlamingoError(
            f"{unit.path}: cannot be read ({error.strerror or first_line(error)}); get the file again"
        ) from error


def _converted(job: Job, units: Sequence[Unit], workers: int, engine: str) -> Iterator[Outcome]:
    yield from ENGINES[engine](partial(convert_unit, job), units, workers)
    ledgers = [read_ledger(job.directory, unit.id) for unit in units]
    whole = [ledger for ledger in ledgers if ledger is not None]
    if len(whole) < len(units):
        raise FlamingoError(
            f"{job.directory}: a ledger has vanished; does another program work in this directory? Run again"
        )
    rejects = sum((ledger.rejects for ledger in whole), Counter())
    if not any(ledger.documents for ledger in whole):
        found = ", ".join(f"{count:,} {reason}" for reason, count in rejects.most_common(5)) or "no records"
        raise FlamingoError(
            f"{job.directory}: no document was left ({found}); see {FOLDER}/*.rejects.jsonl there, or relax the filters"
        )
    _finish(job, units, whole)


def _finish(job: Job, units: Sequence[Unit], ledgers: Sequence[Ledger]) -> None:
    """Puts the manifest in place, and the rejects of all units beside it; removes what belongs to no unit."""
    shards = tuple(shard for ledger in ledgers for shard in ledger.shards)
    manifest = Manifest(job.directory, shards, _info(job, ledgers))
    text, path = manifest.to_json(), job.directory / MANIFEST
    if path.is_file() and path.read_text(encoding="utf-8") == text and (job.directory / REJECTS).is_file():
        return
    with writing_to(job.directory):
        path.unlink(missing_ok=True)
        rejects = job.directory / REJECTS
        with temporary(rejects).open("wb") as file:
            for unit in units:
                with rejects_path(job.directory, unit.id).open("rb") as source:
                    shutil.copyfileobj(source, file)
            sync(file)
        temporary(rejects).replace(rejects)
        kept = {name(job.directory, unit.id) for unit in units for name in (ledger_path, rejects_path)}
        for found in (job.directory / FOLDER).iterdir():
            if found not in kept:
                found.unlink()
        remove_strays(manifest)
        write_whole(path, text)


def _info(job: Job, ledgers: Sequence[Ledger]) -> dict[str, Any]:
    """What made the shards, for their manifest: nothing of the machine, the engine or the time."""
    defaults = FORMATS[job.format].options()
    chosen = {name: value for name, value in vars(job.options).items() if value != getattr(defaults, name)}
    return {
        "format": job.format,
        "converter": VERSION,
        "options": {name: str(value) if isinstance(value, Path) else value for name, value in chosen.items()},
        "documents": sum(ledger.documents for ledger in ledgers),
        "images": sum(ledger.images for ledger in ledgers),
        "rejects": _sorted(sum((ledger.rejects for ledger in ledgers), Counter())),
        "images_left_out": _sorted(sum((ledger.images_left_out for ledger in ledgers), Counter())),
    }


def _sorted(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items()))


def _check_apart(directory: Path, inputs: Sequence[Path]) -> None:
    """Errors: `FlamingoError` for a target inside a folder of inputs, whose shards the next run would take for inputs, and
    for one that holds an input, which `overwrite` could remove with the shards of before."""
    target = directory.resolve()
    for given in inputs:
        if given.is_dir() and target.is_relative_to(given.resolve()):
            raise FlamingoError(f"--to {directory} lies in the input {given}; choose a directory beside it")
        if given.parent.resolve() == target and given.is_file():
            raise FlamingoError(f"the input {given} lies in --to {directory}; choose another directory")


def _check_names(units: Sequence[Unit]) -> None:
    """Errors: `FlamingoError` for two inputs of one name: their keys would be the same."""
    names: dict[str, Unit] = {}
    for unit in units:
        other = names.setdefault(unit.id, unit)
        if other is not unit:
            raise FlamingoError(
                f"{other.path} and {unit.path} would get the same keys; give the folder above them, or rename one"
            )


def _prepare(job: Job, units: Sequence[Unit]) -> None:
    """Makes the directory. Errors: `FlamingoError` when it holds what this conversion would not replace."""
    directory = job.directory
    with writing_to(directory):
        if directory.exists() and not job.overwrite:
            _check_directory(directory, {unit.id for unit in units})
        (directory / FOLDER).mkdir(parents=True, exist_ok=True)


def _check_directory(directory: Path, ids: set[str]) -> None:
    hint = "choose another directory, or --overwrite"
    if not directory.is_dir():
        raise FlamingoError(f"{directory}: is a file; choose another directory")
    ours = directory / FOLDER
    if not ours.is_dir():
        if found := next(
            (p.name for p in directory.iterdir() if p.name == MANIFEST or p.suffix == ".tar"), None
        ):
            raise FlamingoError(f"{directory}: holds {found}, which no conversion wrote; {hint}")
        return
    others = sorted(
        p.name.removesuffix(".json") for p in ours.glob("*.json") if p.name.removesuffix(".json") not in ids
    )
    if others:
        raise FlamingoError(
            f"{directory}: holds the conversion of other inputs ({others[0]}"
            f"{f' and {len(others) - 1} more' if len(others) > 1 else ''}); give these too, {hint}"
        )
