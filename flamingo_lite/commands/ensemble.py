"""Joins two evaluations of ScienceQA: a second model, perhaps one that sees no images, answers beside the first.

  flamingo-lite eval ensemble --first outputs/ours --second outputs/text --folder ScienceQA --by complement \\
      --to outputs/both
  flamingo-lite eval ensemble --first outputs/ours --second outputs/text --folder ScienceQA --by judge \\
      --teacher endpoint --to outputs/both first.style=QCM-LEA second.style=QCM-ALE second.shots=2 model=gpt-4o

complement takes the second model's answer, and the first one's where that cannot be read; judge asks a text model where
the two differ (LLaVA, section 5.2). A folder that holds several cells needs one chosen: first.KEY=VALUE and
second.KEY=VALUE, by any field of samples.jsonl. Other KEY=VALUE are options of the teacher. It writes samples.jsonl, each
line with decided_by, and ensemble.json with ScienceQA's table; what the teacher says is kept, and not paid for twice."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flamingo_lite.errors import FlamingoError
from flamingo_lite.names import check_choice

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from flamingo_lite.evaluation.tasks.task import Items

SUMMARY = "join two models' answers to ScienceQA"
WAYS = ("complement", "judge")
TASK = "science_qa"
ENSEMBLE = "ensemble.json"
MODELS = ("first", "second")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="cells, and options of the teacher")
    for name in MODELS:
        parser.add_argument(
            f"--{name}", type=Path, required=True, metavar="DIR", help=f"the {name} model's evaluation"
        )
    parser.add_argument(
        "--folder",
        type=Path,
        required=True,
        metavar="DIR",
        help="the folder of problems.json and pid_splits.json",
    )
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="the folder of train, val and test, if elsewhere"
    )
    parser.add_argument("--by", required=True, metavar="WAY", help=" or ".join(WAYS))
    parser.add_argument("--teacher", metavar="NAME", help="with --by judge: endpoint or local")
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="the directory to write")


def run(arguments: argparse.Namespace) -> None:
    from rich.console import Console

    from flamingo_lite.evaluation.ensemble import complement
    from flamingo_lite.evaluation.results import SAMPLES, write_samples
    from flamingo_lite.evaluation.science_qa_judge import judge_science_qa
    from flamingo_lite.evaluation.tasks import items_of
    from flamingo_lite.teacher import make_asker, make_teacher

    check_choice("way of joining", arguments.by, WAYS)
    if (arguments.to / SAMPLES).is_file() and not (arguments.to / ENSEMBLE).is_file():
        raise FlamingoError(
            f"--to is {arguments.to}, which holds an evaluation of its own; choose another folder"
        )
    chosen, options = settings(arguments.overrides, arguments.by == "judge")
    named = {"folder": str(arguments.folder)} | (
        {"images": str(arguments.images)} if arguments.images else {}
    )
    items = items_of(TASK, {TASK: named})
    first, second = (cell_in(getattr(arguments, name), chosen[name]) for name in MODELS)
    if arguments.by == "complement":
        joined = complement(first, second)
    else:
        if arguments.teacher is None:
            raise FlamingoError(
                "--teacher is missing; expected endpoint or local, which settles what differs"
            )
        asker = make_asker(make_teacher(arguments.teacher, options), options, arguments.to)
        joined = judge_science_qa(first, second, items, asker, options.sampling)
    arguments.to.mkdir(parents=True, exist_ok=True)
    # The file that tells this folder from an evaluation's comes first: a run that is killed is given again.
    found = write_figures(first, second, joined, items, arguments)
    write_samples(joined, arguments.to)
    show(found, arguments.to, Console())


def settings(words: "Sequence[str]", has_teacher: bool) -> "tuple[dict[str, dict[str, str]], Any]":
    """What is chosen of each model's cells, and the teacher's options. Errors: `FlamingoError` for an unknown option."""
    from flamingo_lite.data.convert.choices import make_options
    from flamingo_lite.teacher import TeacherOptions

    chosen: dict[str, dict[str, str]] = {name: {} for name in MODELS}
    options: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        model, dot, of = key.partition(".")
        if not equals or (dot and model not in MODELS):
            raise FlamingoError(
                f"'{word}' is no option; expected first.KEY=VALUE, second.KEY=VALUE or KEY=VALUE"
            )
        (chosen[model] if dot else options)[of or key] = value
    if options and not has_teacher:
        raise FlamingoError(f"'{next(iter(options))}' is an option of a teacher, and only --by judge has one")
    return chosen, make_options(TeacherOptions, options, "eval ensemble")


def cell_in(directory: Path, wanted: "Mapping[str, str]") -> list[dict[str, Any]]:
    """ScienceQA's samples in a folder whose fields are as wanted.

    Errors: `FlamingoError` for a field, or a value of one, that samples do not have.
    """
    from flamingo_lite.evaluation.results import load_samples

    samples = [sample for sample in load_samples(directory) if sample["task"] == TASK]
    if not samples:
        raise FlamingoError(
            f"{directory} has no sample of {TASK}; expected an evaluation of eval.tasks=[{TASK}]"
        )
    for key, value in wanted.items():
        check_choice("field of samples.jsonl", key, samples[0])
        check_choice(f"{key} in {directory}", value, sorted({str(sample.get(key)) for sample in samples}))
        samples = [sample for sample in samples if str(sample.get(key)) == value]
    return samples


def write_figures(
    first: "Sequence[Mapping[str, Any]]",
    second: "Sequence[Mapping[str, Any]]",
    joined: "Sequence[Mapping[str, Any]]",
    items: "Items",
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """What ensemble.json says."""
    import json
    from collections import Counter

    from flamingo_lite.evaluation.metrics.science_qa import science_qa_figures
    from flamingo_lite.evaluation.results import write_atomically

    def figures(samples: "Sequence[Mapping[str, Any]]") -> dict[str, float | None]:
        return science_qa_figures(
            (items.query(sample["split"], sample["query_id"]).facts["part"], sample["score"])
            for sample in samples
            if sample["status"] != "failed"
        )

    sides = {"first": first, "second": second, "together": joined}
    said = [sample["judge_raw"] for sample in joined if "judge_raw" in sample]
    undecided = [
        sample["judge_raw"] for sample in joined if sample["decided_by"] == "ours" and "judge_raw" in sample
    ]
    found = {
        "schema_version": 1,
        "by": arguments.by,
        "n": len(joined),
        "n_failed": {name: sum(s["status"] == "failed" for s in side) for name, side in sides.items()},
        "decided_by": dict(Counter(sample["decided_by"] for sample in joined)),
        "judge": {
            "asked": len(said),
            "unreadable": sum(text is not None for text in undecided),
            "failed": sum(text is None for text in undecided),
        },
        "figures": {name: figures(side) for name, side in sides.items()},
    }
    write_atomically(arguments.to / ENSEMBLE, (json.dumps(found, indent=1) + "\n").encode())
    return found


def show(found: "Mapping[str, Any]", directory: Path, console: Any) -> None:
    from rich.table import Table

    table = Table(title=f"ScienceQA, {found['n']:,} questions", title_justify="left")
    table.add_column("")
    for column in found["figures"]["together"]:
        table.add_column(column, justify="right")
    for name, figures in found["figures"].items():
        table.add_row(name, *("" if value is None else f"{100 * value:.2f}" for value in figures.values()))
    console.print(table)
    decided = ", ".join(f"{by} {count:,}" for by, count in found["decided_by"].items())
    left_out = ", ".join(f"{name} {count:,}" for name, count in found["n_failed"].items() if count)
    judge = found["judge"]
    notes = [f"decided by: {decided}"]
    if judge["asked"]:
        notes.append(
            f"of {judge['asked']:,} verdicts {judge['unreadable']:,} unreadable, {judge['failed']:,} not given"
        )
    if left_out:
        notes.append(f"failed and left out: {left_out}")
    console.print(
        f"{'; '.join(notes)}; all figures in {directory / ENSEMBLE}", highlight=False, soft_wrap=True
    )
