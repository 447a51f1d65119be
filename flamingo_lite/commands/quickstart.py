"""Shards, training, evaluation and a report in one go, into outputs/quickstart. Nothing is downloaded.

A step that is done with the same settings is skipped when the command is given again, and training that was
interrupted continues; --fresh starts over."""

import argparse
import dataclasses
import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flamingo_lite
from flamingo_lite.commands.common import add_config_arguments, bold, configs

if TYPE_CHECKING:
    from rich.console import Console

    from flamingo_lite.config import Config

SUMMARY = "make shards, train, evaluate, report: ten minutes on two cores"
USAGE = "KEY=VALUE"

STAMPS = ".steps"
READING_ORDER = (
    "document.py, text/template.py, nn/masks.py, nn/gated.py, models/cross_fusion.py, models/model.py"
)


@dataclass(frozen=True)
class Step:
    """A step, what it reads of the configuration, and what it leaves, the last of its products first."""

    name: str
    says: str
    run: "Callable[[Config, Console], None]"
    settings: "Callable[[Config], Mapping[str, Any]]"
    products: tuple[str, ...]

    @property
    def product(self) -> str:
        return self.products[0]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    parser.add_argument("--output", help="the folder to write into (outputs/quickstart)")
    parser.add_argument(
        "--fresh", action="store_true", help="delete what an earlier quickstart made, and start over"
    )


def run(arguments: argparse.Namespace) -> None:
    if arguments.output is not None:
        # Quoted for hydra's grammar: a path may hold spaces.
        quoted = arguments.output.replace("\\", "\\\\").replace("'", "\\'")
        arguments.overrides = [*arguments.overrides, f"output='{quoted}'"]
    if arguments.config is None and not any(o.startswith("eval=") for o in arguments.overrides):
        arguments.overrides = ["eval=quickstart", *arguments.overrides]
    for config in configs(arguments):
        from rich.console import Console

        quickstart(config, Console(), fresh=arguments.fresh)


def quickstart(config: "Config", console: "Console", fresh: bool = False) -> None:
    """Runs every step that is not done with these settings yet, then says what came out and where to look."""
    output = Path(config.output)
    config.data.directory = str(output / "shards")
    config.data.sources = {}
    config.checkpoint = ""
    if fresh:
        delete_products(output)
    started = time.perf_counter()
    done_with = flamingo_lite.__version__
    for number, step in enumerate(STEPS, start=1):
        # Each hash holds the one before: a step is done again when anything before it has changed.
        done_with = settings_sha256(step, config, done_with)
        stamp = output / STAMPS / step.name
        head = bold(f"[{number}/{len(STEPS)}] {step.says}")
        if is_done(output, step, done_with):
            console.print(
                f"{head}: [green]already there[/green] in {output / step.product}",
                highlight=False,
                soft_wrap=True,
            )
            continue
        console.print(f"{head} -> {output / step.product}", highlight=False, soft_wrap=True)
        begun = time.perf_counter()
        prepare(output, step, done_with)
        step.run(config, console)
        stamp.write_text(f"{done_with}\n")
        console.print(f"  [green]done[/green] in {duration(time.perf_counter() - begun)}", highlight=False)
    conclude(config, console, time.perf_counter() - started)


def is_done(output: Path, step: Step, done_with: str) -> bool:
    stamp = output / STAMPS / step.name
    return stamp.is_file() and stamp.read_text().strip() == done_with and (output / step.product).exists()


def prepare(output: Path, step: Step, done_with: str) -> None:
    """With other settings a step starts over, so what it left goes; with the same it may continue."""
    begun = output / STAMPS / f"{step.name}.begun"
    if begun.is_file() and begun.read_text().strip() != done_with:
        delete(output, step.products)
    begun.parent.mkdir(parents=True, exist_ok=True)
    begun.write_text(f"{done_with}\n")


def settings_sha256(step: Step, config: "Config", before: str) -> str:
    from flamingo_lite.evaluation.results import sha256_of_json

    return sha256_of_json([before, step.name, step.settings(config)])


def delete_products(output: Path) -> None:
    """Deletes what quickstart makes, by name, and nothing else that may lie in the folder."""
    delete(output, (*(name for step in STEPS for name in step.products), STAMPS))


def delete(output: Path, names: "tuple[str, ...]") -> None:
    import shutil

    for name in names:
        path = output / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def duration(seconds: float) -> str:
    """ "0:07" or "4:31"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}"


def conclude(config: "Config", console: "Console", seconds: float) -> None:
    """The final table, and where to look next."""
    from flamingo_lite.commands.evaluate import accuracy_table
    from flamingo_lite.evaluation.results import load_results

    output = Path(config.output)
    model = output / "flamingo"
    console.print(accuracy_table(load_results(output)))
    console.print(f"[bold]All in {duration(seconds)}.[/bold] Where to look next:", highlight=False)
    for what, where in (
        ("the report", (output / "report.html").absolute()),
        ("evaluate again", f"flamingo-lite eval {shlex.quote(f'checkpoint={model}')} output=outputs/eval"),
        ("against LLaVA", "flamingo-lite compare"),
        ("load the model", f"fl.load({str(model)!r})"),
        ("read the code", READING_ORDER),
    ):
        console.print(f"  {what + ':':<16}{where}", highlight=False, markup=False, soft_wrap=True)


def _make(config: "Config", console: "Console") -> None:
    from flamingo_lite.commands.data_make import make_shards

    make_shards(config.data, console)


def _train(config: "Config", console: "Console") -> None:
    from flamingo_lite.training.stages import run_stage

    run_stage(config, console)


def _evaluate(config: "Config", console: "Console") -> None:
    from flamingo_lite.commands.evaluate import evaluate_model

    evaluate_model(config, console)


def _report(config: "Config", console: "Console") -> None:
    from flamingo_lite.commands.report import report_run

    # A table of all predictions takes longer than evaluating; `flamingo-lite report` makes it.
    report_run(Path(config.output), logs_predictions=False)


def _data_settings(config: "Config") -> Mapping[str, Any]:
    from flamingo_lite.commands.data_make import recipe

    return {**recipe(config.data), "samples_per_shard": config.data.samples_per_shard}


def _train_settings(config: "Config") -> Mapping[str, Any]:
    from flamingo_lite.training.beginning import identity

    return identity(config, {})


def _eval_settings(config: "Config") -> Mapping[str, Any]:
    return dataclasses.asdict(config.eval)


def _report_settings(config: "Config") -> Mapping[str, Any]:
    return {}


TRAINED = ("flamingo", "checkpoints", "metrics.csv", "config.yaml", "training.json", "wandb")
STEPS = (
    Step("data", "drawing documents", _make, _data_settings, ("shards",)),
    Step("train", "training the join", _train, _train_settings, TRAINED),
    Step("eval", "evaluating", _evaluate, _eval_settings, ("results.json", "samples.jsonl", ".answers")),
    Step("report", "writing the report", _report, _report_settings, ("report.html", "plots", "tables")),
)
