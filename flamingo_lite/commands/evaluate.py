"""Measures how well models learn from the examples in their prompts: accuracy over shots, splits and controls.

checkpoint= names a model's directory (by default flamingo/ in output=), models={a: DIR, b: DIR} several, models of
transformers and behind endpoints among them (docs/evaluation.md); results.json
and samples.jsonl go into output= (by default the folder that holds the checkpoint). eval.* says what is asked and how
often; eval.selector=rices_image chooses demonstrations that resemble the query, eval.exclude=FILE leaves out what
`flamingo-lite eval contamination` has met in training.

trainer.devices=N, torchrun and srun share the work among processes. An evaluation that was interrupted goes on when the
same command is given again; a finished one is not done twice; resume=never starts over. eval.features=DIR keeps what the
vision encoder gives of each image. Nothing of that changes a byte of samples.jsonl: docs/evaluation.md."""

import argparse
import time
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flamingo_lite.commands.common import add_config_arguments, add_multirun_argument, bold, configs
from flamingo_lite.commands.selectors import selectors_of
from flamingo_lite.commands.subjects import load_on_device, subjects_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rich.console import Console
    from rich.table import Table

    from flamingo_lite.config import Config
    from flamingo_lite.evaluation.runner import Progress
    from flamingo_lite.training.ranks import Ranks

SUMMARY = "few-shot evaluation of trained models"
USAGE = "KEY=VALUE"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    add_multirun_argument(parser)


def run(arguments: argparse.Namespace) -> None:
    from rich.console import Console

    from flamingo_lite.training.launch import is_supervised

    console = Console()
    for config in list(configs(arguments)):
        # A process that a launch has started is told where to write.
        if config.checkpoint and not is_output_chosen(arguments) and not is_supervised():
            config.output = str(Path(config.checkpoint).parent)
        evaluate_model(config, console, say=conclude)


def is_output_chosen(arguments: argparse.Namespace) -> bool:
    return any(override.startswith(("output=", "name=")) for override in arguments.overrides)


def conclude(results: "Mapping[str, Any]", config: "Config", console: "Console") -> None:
    """The table, what has to be said of it, and where the rest is."""
    from flamingo_lite.evaluation.exclusion import exclusion_lines
    from flamingo_lite.evaluation.results import RESULTS, failure_warning

    for line in exclusion_lines(results):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if warning := failure_warning(results):
        console.print(f"[bold red]{warning}[/bold red]", highlight=False, soft_wrap=True)
    console.print(accuracy_table(results))
    near = sum(cell.get("n_near_ties", 0) for cell in results["cells"])
    if near:
        console.print(
            f"{near} answers hang on a choice too close to call (near_tie in samples.jsonl)", highlight=False
        )
    console.print(f"all figures: {bold(Path(config.output) / RESULTS)}", highlight=False, soft_wrap=True)


def evaluate_model(
    config: "Config",
    console: "Console",
    say: "Callable[[Mapping[str, Any], Config, Console], None] | None" = None,
) -> "Mapping[str, Any]":
    """Evaluates `config.models`, `config.checkpoint` or the model in `config.output`; returns what is in results.json.

    With several devices this process starts one for each and waits, unless torchrun or srun has started it. `say` is
    called with the results where there is somebody to read it.
    """
    from flamingo_lite.evaluation.results import load_results
    from flamingo_lite.training.beginning import as_yaml
    from flamingo_lite.training.launch import is_supervised, launch, leave_with_supervisor
    from flamingo_lite.training.parallel import one_line_failures
    from flamingo_lite.training.ranks import join, started_ranks

    ranks = started_ranks(config.trainer)
    if ranks is None:
        # What is wrong with the models is said before processes start.
        subjects_of(config, config.trainer.devices)
        launch(as_yaml(config), config.trainer.devices, "eval")
        results: Mapping[str, Any] = load_results(Path(config.output))
    else:
        if is_supervised():
            leave_with_supervisor()
        join(ranks, config.trainer)
        with one_line_failures():
            results = _evaluate(config, ranks, console)
    if say is not None and (ranks is None or ranks.is_first) and not is_supervised():
        say(results, config, console)
    return results


def _evaluate(config: "Config", ranks: "Ranks", console: "Console") -> "Mapping[str, Any]":
    """This process's part."""
    import torch
    from rich.console import Console

    from flamingo_lite.data.make import available_cores
    from flamingo_lite.evaluation.grid import seeds_of, settings
    from flamingo_lite.evaluation.power import resolution
    from flamingo_lite.evaluation.runner import evaluate_all
    from flamingo_lite.training.display import ProgressDisplay

    torch.set_num_threads(config.trainer.threads or max(1, available_cores() // ranks.devices))
    console = console if ranks.is_first else Console(quiet=True)
    # A model whose own encoder chooses the demonstrations, which is the only one then, is loaded once for both.
    load = lru_cache(maxsize=1)(load_on_device) if config.eval.needs_own_encoder else load_on_device
    subjects = subjects_of(config, ranks.number, load)
    standard = (setting for setting in settings(config.eval) if setting.condition == "standard")
    seeds = max((seeds_of(setting, config.eval) for setting in standard), key=len, default=config.eval.seeds)
    console.print(resolution(config.eval.queries, seeds), highlight=False, soft_wrap=True)
    with ProgressDisplay("evaluating", 0, console) as display:
        return evaluate_all(
            subjects,
            config.eval,
            config.output,
            ranks=ranks,
            resume=config.resume == "auto",
            selectors=selectors_of(config, ranks, display, load),
            progress=shown_on(display),
        )


def shown_on(display: "Any") -> "Progress":
    """Moves the display, and says how long what is left will take at the pace of this run."""
    began: tuple[float, int] | None = None

    def progress(done: int, total: int, label: str) -> None:
        nonlocal began
        now = time.monotonic()
        began = began or (now, done)
        gained = done - began[1]
        left = round((total - done) * (now - began[0]) / gained) if gained else None
        display.total = total
        estimate = "" if left is None or done == total else f", {left // 60}:{left % 60:02} left"
        display.update(done, label + estimate)

    return progress


def accuracy_table(results: "Mapping[str, Any]") -> "Table":
    """The score: a row per model, task, split, style and condition, a column per number of shots. What is the same in
    all rows has no column."""
    from rich import box
    from rich.table import Table

    cells = results["cells"]
    shots = sorted({cell["shots"] for cell in cells})
    metrics = {cell["metric"] for cell in cells}
    title = (
        "Exact match over shots" if metrics == {"exact_match"} else f"{', '.join(sorted(metrics))} over shots"
    )
    # Its names fit into 80 columns so.
    table = Table(title=title, box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    columns = ["model", "rendering", "task", "condition", "split", "style"]
    always = ("condition", "split", "style")
    columns = [n for n in columns if n in always or len({cell.get(n) for cell in cells}) > 1]
    for name in columns:
        table.add_column(name)
    for count in shots:
        table.add_column(str(count), justify="right")
    rows: dict[tuple[str, ...], dict[int, float | None]] = {}
    for cell in cells:
        key = tuple(str(cell.get(name, "")) for name in columns)
        rows.setdefault(key, {})[cell["shots"]] = cell["value"]
    for key, values in rows.items():
        shown = (values.get(count) for count in shots)
        table.add_row(*key, *("" if value is None else f"{value:.2f}" for value in shown))
    return table
