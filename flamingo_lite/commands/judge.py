"""Has a text model judge a model's answers to questions about images beside a reference's (LLaVA-Bench).

  flamingo-lite eval judge --bench shards --to bench
  flamingo-lite eval judge --questions bench/questions.jsonl --context bench/context.jsonl \\
      --reference bench/reference.jsonl --answers answers.jsonl --teacher endpoint --to judged model=gpt-4o

  flamingo-lite eval judge --questions bench/questions.jsonl --context bench/context.jsonl \\
      --reference bench/reference.jsonl --checkpoint outputs/mine/model --images bench/images --teacher rule --to judged

The judge sees the images in words. Each question is judged in both orders; a reply without two scores is counted, and
in no mean. The relative score is 100 * mean(model) / mean(reference), per category and over all. Judges: endpoint
(any OpenAI-compatible one), local (a model of transformers), rule (checks facts, for synthetic scenes). Replies are
kept as they come, so a run that was stopped goes on. --bench writes questions, contexts, reference answers and images
from shards that data instruct has made."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flamingo_lite.commands.common import bold
from flamingo_lite.errors import FlamingoError
from flamingo_lite.names import check_choice

if TYPE_CHECKING:
    from rich.console import Console

SUMMARY = "have a text model judge answers about images"
FILES = ("questions", "context", "reference", "answers")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="options, such as model=NAME; --options lists them"
    )
    for name, what in zip(
        FILES,
        (
            "question_id, image, category, text",
            "image, captions, boxes",
            "question_id, text",
            "question_id, text",
        ),
        strict=True,
    ):
        parser.add_argument(f"--{name}", type=Path, metavar="FILE", help=f"lines of JSON: {what}")
    parser.add_argument(
        "--checkpoint", metavar="DIR", help="in place of --answers: the model that is to give them now"
    )
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="with --checkpoint: the folder that holds the images"
    )
    parser.add_argument("--teacher", metavar="NAME", help="the judge: endpoint, local, or rule")
    parser.add_argument(
        "--to", type=Path, metavar="DIR", help="the directory for judgement.json and verdicts.jsonl"
    )
    parser.add_argument(
        "--bench", type=Path, metavar="SHARDS", help="write a bench from these shards, and stop"
    )
    parser.add_argument("--options", action="store_true", help="list the options, and stop")


def run(arguments: argparse.Namespace) -> None:
    from rich.console import Console

    from flamingo_lite.commands.data_convert import show_table
    from flamingo_lite.evaluation.judge import JudgeOptions

    console = Console()
    if arguments.options:
        show_table(JudgeOptions, "options of eval judge", console)
        return
    if arguments.to is None:
        raise FlamingoError("--to is missing; expected the directory to write")
    if arguments.bench is not None:
        from flamingo_lite.data.shards import read_samples
        from flamingo_lite.evaluation.judge_files import write_bench

        questions = write_bench(read_samples(arguments.bench), arguments.to)
        console.print(f"{questions:,} questions in {arguments.to}", highlight=False, soft_wrap=True)
        return
    judge_shown(arguments, console)


def judge_shown(arguments: argparse.Namespace, console: "Console") -> None:
    """Judges, with a bar that counts verdicts, writes the files and shows the figures."""
    import json

    from flamingo_lite.commands.data_convert import split_words
    from flamingo_lite.data.convert.choices import make_options
    from flamingo_lite.evaluation.judge import ORDERS, JudgeOptions, as_records, judge, summary
    from flamingo_lite.evaluation.judge_files import read_cases
    from flamingo_lite.evaluation.results import write_atomically
    from flamingo_lite.evaluation.scene_judge import scene_judge
    from flamingo_lite.teacher import make_asker, make_teacher
    from flamingo_lite.training.display import ProgressDisplay

    _check_given(arguments)
    stray, words = split_words(arguments.overrides)
    if stray:
        raise FlamingoError(f"'{stray[0]}' is no option; expected KEY=VALUE")
    options = make_options(JudgeOptions, words, "eval judge")
    teacher = make_teacher(arguments.teacher, options, {"rule": scene_judge()})
    if arguments.checkpoint is not None:
        arguments.answers = _answered(arguments, options.max_new_tokens)
    cases = read_cases(*(getattr(arguments, name) for name in FILES))
    asker = make_asker(teacher, options, arguments.to)
    wanted = len(cases) * len(ORDERS)
    with ProgressDisplay(f"asking {teacher.name}", wanted, console) as display:
        verdicts = list(display.counting(judge(cases, asker, options.sampling)))
    found = {
        "schema_version": 1,
        "judge": teacher.name,
        "tokens": asker.budget.spent,
        **summary(verdicts, wanted),
    }
    arguments.to.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(record) + "\n" for record in as_records(verdicts))
    write_atomically(arguments.to / "verdicts.jsonl", lines.encode())
    write_atomically(arguments.to / "judgement.json", (json.dumps(found, indent=1) + "\n").encode())
    _show(found, arguments.to, console)
    if asker.is_spent:
        console.print(
            f"the budget of {asker.budget.limit:,} tokens leaves no room for more; raise it to go on"
        )


def _check_given(arguments: argparse.Namespace) -> None:
    from flamingo_lite.teacher import TEACHERS

    if arguments.checkpoint is not None:
        if arguments.answers is not None:
            raise FlamingoError("--answers and --checkpoint were both given; expected one of them")
        if arguments.images is None:
            raise FlamingoError("--images is missing; expected the folder that holds the questions' images")
    needed = FILES if arguments.checkpoint is None else FILES[:-1]
    if missing := [f"--{name}" for name in needed if getattr(arguments, name) is None]:
        raise FlamingoError(f"{missing[0]} is missing; expected lines of JSON (see eval judge --help)")
    known = [*TEACHERS, "rule"]
    if arguments.teacher is None:
        raise FlamingoError(f"--teacher is missing; expected one of {', '.join(known)}")
    check_choice("teacher", arguments.teacher, known)


def _answered(arguments: argparse.Namespace, max_new_tokens: int) -> Path:
    """Has the checkpoint answer the questions; returns the file of its answers, in the directory that is written."""
    from flamingo_lite.checkpoints.io import load
    from flamingo_lite.evaluation.judge_files import prompts, write_answers
    from flamingo_lite.generation.generate import generate

    asked = prompts(arguments.questions, arguments.images)
    model, processor = load(arguments.checkpoint)
    said = generate(model.eval(), processor, [document for _, document in asked], max_new_tokens)
    path = arguments.to / "answers.jsonl"
    write_answers(asked, said, path)
    return path


def _show(found: dict[str, Any], directory: Path, console: "Console") -> None:
    from rich.table import Table

    table = Table(title_justify="left")
    for label in ("category", "n", "relative", "95%", "swapped", "left out", "bias"):
        table.add_column(label, justify="left" if label == "category" else "right", no_wrap=True)
    for name, figures in found["categories"].items():
        straight, swapped = figures["reference_first"], figures["model_first"]
        left_out = sum(sum(each["excluded"].values()) for each in (straight, swapped))
        interval = "" if straight["ci95"] is None else "{:.1f} to {:.1f}".format(*straight["ci95"])
        gains = figures["position"]["first_gains"]
        table.add_row(
            name, str(straight["n"]), _figure(straight["relative"]), interval, _figure(swapped["relative"]),
            str(left_out), _figure(gains, 2),
        )  # fmt: skip
    console.print(table)
    console.print(
        f"all figures in {bold(directory / 'judgement.json')}, every reply in verdicts.jsonl",
        highlight=False, soft_wrap=True,
    )  # fmt: skip


def _figure(value: float | None, digits: int = 1) -> str:
    return "" if value is None else f"{value:.{digits}f}"
