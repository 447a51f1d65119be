"""Has a teacher - a text model - make instruction data, and writes it as shards of conversations with a manifest.

  flamingo-lite data instruct --kind all --teacher rule --from scenes --to shards number=500
  flamingo-lite data instruct --kind reasoning --teacher endpoint --from captions_val2017.json instances_val2017.json \\
      --images val2017 --to shards model=qwen2.5-72b base_url=http://localhost:8000/v1 budget=2000000
  flamingo-lite data instruct --kind self_instruct --teacher local --to shards model=/models/qwen number=1000

Kinds: conversation, detail and reasoning, about images that the teacher is told of in captions and boxes; all: these
three; self_instruct: tasks without images. Teachers: endpoint (any OpenAI-compatible one; its key is read from the
environment), local (a model of transformers), rule (synthetic scenes only, needs no model). Every answer is kept as
it comes: a run that was stopped goes on where it was and pays for nothing twice. What cannot be used is in
rejects.jsonl, each with its reason."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from flamingo_lite.commands.common import bold
from flamingo_lite.errors import FlamingoError
from flamingo_lite.names import check_choice

if TYPE_CHECKING:
    from rich.console import Console

    from flamingo_lite.data.instruct.make import Job, Summary
    from flamingo_lite.teacher import Asker, Teacher

SUMMARY = "have a teacher make instruction data"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="options, such as model=NAME; --options lists them"
    )
    parser.add_argument(
        "--kind", metavar="KIND", help="conversation, detail, reasoning, all, or self_instruct"
    )
    parser.add_argument("--teacher", metavar="NAME", help="endpoint, local, or rule")
    parser.add_argument(
        "--from",
        dest="inputs",
        nargs="+",
        default=[],
        metavar="INPUT",
        help="scenes; .jsonl files of image, captions and boxes; or COCO's captions_*.json and instances_*.json",
    )
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="the folder that holds the images which the inputs name"
    )
    parser.add_argument("--to", type=Path, metavar="DIR", help="the directory for the shards")
    parser.add_argument("--overwrite", action="store_true", help="replace shards that are there already")
    parser.add_argument("--options", action="store_true", help="list the options, and stop")


def run(arguments: argparse.Namespace) -> None:
    from rich.console import Console

    from flamingo_lite.commands.data_convert import show_table
    from flamingo_lite.data.convert.choices import make_options
    from flamingo_lite.data.instruct.make import CHOICES, InstructOptions, Job
    from flamingo_lite.data.instruct.scene_teacher import scene_teacher
    from flamingo_lite.teacher import TEACHERS, make_teacher

    console = Console()
    if arguments.options:
        show_table(InstructOptions, "options of data instruct", console)
        return
    inputs, words = _options(arguments)
    _check_given(arguments, [*TEACHERS, "rule"], CHOICES)
    options = make_options(InstructOptions, words, "data instruct")
    job = Job(arguments.kind, tuple(inputs), arguments.images, arguments.to, options, arguments.overwrite)
    teacher = make_teacher(arguments.teacher, options, {"rule": scene_teacher()})
    instruct_shown(job, teacher, console)


def _options(arguments: argparse.Namespace) -> tuple[list[str], dict[str, str]]:
    """Inputs and options apart: --from takes all words that follow it, options among them."""
    inputs: list[str] = []
    options: dict[str, str] = {}
    for word in [*arguments.inputs, *arguments.overrides]:
        key, equals, value = word.partition("=")
        if equals and key.isidentifier() and not Path(word).exists():
            options[key] = value
        elif word in arguments.inputs:
            inputs.append(word)
        else:
            raise FlamingoError(f"'{word}' is no option; expected KEY=VALUE, and inputs behind --from")
    return inputs, options


def _check_given(arguments: argparse.Namespace, teachers: list[str], kinds: tuple[str, ...]) -> None:
    for name, known in (("kind", kinds), ("teacher", teachers)):
        given = getattr(arguments, name)
        if given is None:
            raise FlamingoError(f"--{name} is missing; expected one of {', '.join(known)}")
        check_choice(name, given, known)
    if not arguments.inputs and arguments.kind != "self_instruct":
        raise FlamingoError("--from is missing; expected scenes, .jsonl files, or COCO's annotations")
    if arguments.kind == "self_instruct" and arguments.teacher == "rule":
        raise FlamingoError(
            "the rule teacher knows synthetic scenes only; expected --teacher endpoint or local"
        )
    if arguments.to is None:
        raise FlamingoError("--to is missing; expected the directory for the shards")


def instruct_shown(job: "Job", teacher: "Teacher", console: "Console") -> None:
    """Makes the data, with a bar that counts documents and a summary at the end."""
    from flamingo_lite.data.instruct.kinds import KINDS
    from flamingo_lite.data.instruct.make import ALL, SELF_INSTRUCT, make_instructions
    from flamingo_lite.data.instruct.sources import count_images
    from flamingo_lite.training.display import ProgressDisplay

    if job.kind == SELF_INSTRUCT:
        total = job.options.number or 0
    else:
        total = count_images(job.inputs, job.options.number) * (len(KINDS) if job.kind == ALL else 1)
    with ProgressDisplay(f"asking {teacher.name}", total, console) as display:
        summary, asker = make_instructions(job, teacher, display.update)
    _show(job, summary, asker, console)


def _show(job: "Job", summary: "Summary", asker: "Asker", console: "Console") -> None:
    from rich.markup import escape

    from flamingo_lite.commands.data_convert import show_counts

    where = bold(job.directory)
    if not summary.is_new:
        console.print(
            f"{summary.documents:,} documents are in {where} already; --overwrite makes them anew",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
        return
    tally = asker.tally
    console.print(
        f"{summary.documents:,} documents in {where}, of {tally.answers:,} answers ({tally.from_cache:,} kept from before, "
        f"{tally.retries:,} tries repeated) for {asker.budget.spent:,} tokens",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    show_counts("left out", summary.rejects, summary.documents, console)
    if summary.rejects:
        console.print(
            f"each with its reason in {escape(str(job.directory / 'rejects.jsonl'))}",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
    if asker.is_spent:
        console.print(
            f"the budget of {asker.budget.limit:,} tokens leaves no room for more; raise it to go on"
        )
    elif not summary.is_complete:
        console.print("some requests were left without an answer; the same command asks them again")
