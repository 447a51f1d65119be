"""Measures how well a model learns from the examples in its prompt: accuracy over shots, splits and controls.

checkpoint= names the model's directory (by default flamingo/ in output=); results.json and samples.jsonl go
into output= (by default the folder that holds the checkpoint). eval.* says what is asked and how often."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flamingo_lite.commands.common import add_config_arguments, add_multirun_argument, configs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console
    from rich.table import Table

    from flamingo_lite.config import Config

SUMMARY = "few-shot evaluation of a trained model"
USAGE = "KEY=VALUE"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    add_multirun_argument(parser)


def run(arguments: argparse.Namespace) -> None:
    from rich.console import Console

    console = Console()
    for config in list(configs(arguments)):
        if config.checkpoint and not is_output_chosen(arguments):
            config.output = str(Path(config.checkpoint).parent)
        results = evaluate_model(config, console)
        console.print(accuracy_table(results))
        figures = Path(config.output) / "results.json"
        console.print(f"all figures: [bold]{figures}[/bold]", highlight=False, soft_wrap=True)


def is_output_chosen(arguments: argparse.Namespace) -> bool:
    return any(override.startswith(("output=", "name=")) for override in arguments.overrides)


def evaluate_model(config: "Config", console: "Console") -> "Mapping[str, Any]":
    """Evaluates `config.checkpoint`, or the model in `config.output`; returns what is in results.json."""
    import torch

    from flamingo_lite.checkpoints.io import load
    from flamingo_lite.data.make import available_cores
    from flamingo_lite.evaluation.answering import generator, ranker
    from flamingo_lite.evaluation.power import resolution
    from flamingo_lite.evaluation.runner import evaluate
    from flamingo_lite.training.display import ProgressDisplay
    from flamingo_lite.training.settings import MODEL, torch_device

    directory = Path(config.checkpoint or Path(config.output) / MODEL)
    torch.set_num_threads(config.trainer.threads or available_cores())
    model, processor = load(directory)
    torch.nn.Module.to(model, torch_device(config.trainer.accelerator))

    console.print(resolution(config.eval.queries, config.eval.seeds), highlight=False, soft_wrap=True)
    with ProgressDisplay("evaluating", 0, console) as display:

        def progress(done: int, total: int, label: str) -> None:
            display.total = total
            display.update(done, label)

        return evaluate(
            generator(model, processor, config.eval.batch_size),
            config.eval,
            config.output,
            rank=ranker(model, processor, config.eval.batch_size),
            model=directory.name,
            checkpoint_sha=weights_sha256(directory),
            progress=progress,
        )


def weights_sha256(directory: Path) -> str:
    """sha256 over the names and bytes of the directory's safetensors files."""
    import hashlib

    digest = hashlib.sha256()
    for path in sorted(directory.glob("*.safetensors")):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def accuracy_table(results: "Mapping[str, Any]") -> "Table":
    """Exact match: a row per split, style and condition, a column per number of shots."""
    from rich import box
    from rich.table import Table

    cells = results["cells"]
    shots = sorted({cell["shots"] for cell in cells})
    table = Table(title="Exact match over shots", box=box.SIMPLE_HEAD)
    for name in ("condition", "split", "style"):
        table.add_column(name)
    for count in shots:
        table.add_column(str(count), justify="right")
    rows: dict[tuple[str, str, str], dict[int, float | None]] = {}
    for cell in cells:
        key = (cell["condition"], cell["split"], cell.get("style", ""))
        rows.setdefault(key, {})[cell["shots"]] = cell["value"]
    for key, values in rows.items():
        shown = (values.get(count) for count in shots)
        table.add_row(*key, *("" if value is None else f"{value:.2f}" for value in shown))
    return table
