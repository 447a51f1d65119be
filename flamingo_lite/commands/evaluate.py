"""Measures how well models learn from the examples in their prompts: accuracy over shots, splits and controls.

checkpoint= names a model's directory (by default flamingo/ in output=), models={a: DIR, b: DIR} several; results.json
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

from flamingo_lite.commands.common import add_config_arguments, add_multirun_argument, configs
from flamingo_lite.errors import FlamingoError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rich.console import Console
    from rich.table import Table

    from flamingo_lite.config import Config
    from flamingo_lite.evaluation.answers import Generate
    from flamingo_lite.evaluation.ranking import Rank
    from flamingo_lite.evaluation.runner import Progress, Subject
    from flamingo_lite.evaluation.selection import Selection
    from flamingo_lite.models.model import VisionLanguageModel
    from flamingo_lite.models.similarity import SimilarityEncoder
    from flamingo_lite.processing import VisionLanguageProcessor
    from flamingo_lite.training.ranks import Ranks

    Load = Callable[[Path, str], tuple[VisionLanguageModel, VisionLanguageProcessor]]

SUMMARY = "few-shot evaluation of trained models"
USAGE = "KEY=VALUE"

WEIGHTS = ("*.safetensors", "*.pt", "*.bin")


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
    console.print(
        f"all figures: [bold]{Path(config.output) / RESULTS}[/bold]", highlight=False, soft_wrap=True
    )


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
        subjects_of(config, 1)  # what is wrong with the models is said before processes start
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
    from flamingo_lite.evaluation.selection import BY_SIMILARITY
    from flamingo_lite.training.display import ProgressDisplay

    torch.set_num_threads(config.trainer.threads or max(1, available_cores() // ranks.devices))
    console = console if ranks.is_first else Console(quiet=True)
    # A model whose own encoder chooses the demonstrations, which is the only one then, is loaded once for both.
    is_shared = config.eval.selector in BY_SIMILARITY and config.eval.image_encoder is None
    load = lru_cache(maxsize=1)(load_on_device) if is_shared else load_on_device
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


def load_on_device(path: Path, accelerator: str) -> "tuple[VisionLanguageModel, VisionLanguageProcessor]":
    import torch

    from flamingo_lite.checkpoints.io import load
    from flamingo_lite.training.settings import torch_device

    model, processor = load(path)
    torch.nn.Module.to(model, torch_device(accelerator))
    return model, processor


def selectors_of(config: "Config", ranks: "Ranks", display: "Any", load: "Load") -> "Mapping[str, Selection]":
    """The ways of choosing demonstrations; those by similarity with the encoders that `config.eval` names."""
    from functools import partial

    from flamingo_lite.data.features import FeatureCache
    from flamingo_lite.data.stores import parse_bytes
    from flamingo_lite.evaluation.retrieval import Retrieval
    from flamingo_lite.evaluation.selection import BY_SIMILARITY, SELECTORS
    from flamingo_lite.models.similarity import load_encoder, own_encoder
    from flamingo_lite.training.settings import torch_device

    if config.eval.selector not in BY_SIMILARITY:
        return SELECTORS
    device = torch_device(config.trainer.accelerator)
    named, cache = config.eval.image_encoder, None
    if config.eval.features is not None:
        limit = parse_bytes(config.data.features.bytes, "data.features.bytes")
        cache = partial(FeatureCache, Path(config.eval.features) / "similarity", limit=limit)

    def image_encoder() -> "SimilarityEncoder":
        if named is not None:
            return load_encoder(named, "image", device)
        (path,) = models_of(config).values()
        model, processor = load(path, config.trainer.accelerator)
        return own_encoder(model, processor, key_of_features(model, processor))

    def say(what: str, done: int, total: int) -> None:
        display.update(display.done, f"{what}: {done:,} of {total:,}")

    encoders = {
        "image": image_encoder,
        "text": lambda: load_encoder(config.eval.text_encoder, "text", device),
    }
    found = Retrieval(encoders, cache, rank=ranks.rank, number=ranks.number, say=say)
    return {**SELECTORS, **found.selectors()}


def models_of(config: "Config") -> dict[str, Path]:
    """The directories of the models to evaluate, by name."""
    from flamingo_lite.training.settings import MODEL

    directory = Path(config.checkpoint or Path(config.output) / MODEL)
    return {name: Path(path) for name, path in config.models.items()} or {directory.name: directory}


def subjects_of(config: "Config", processes: int, load: "Load" = load_on_device) -> "list[Subject]":
    """The models to evaluate. Errors: `FlamingoError` for a directory that holds none, and for several models, each of
    which would choose demonstrations of its own."""
    from flamingo_lite.checkpoints.io import load_processor
    from flamingo_lite.evaluation.runner import Subject
    from flamingo_lite.evaluation.selection import BY_SIMILARITY

    chosen = models_of(config)
    compared, _ = BY_SIMILARITY.get(config.eval.selector, ((), ""))
    if len(chosen) > 1 and "image" in compared and config.eval.image_encoder is None:
        raise FlamingoError(
            f"{len(chosen)} models would each choose demonstrations by an encoder of their own; name one for all with "
            "eval.image_encoder (tiny, an open_clip model with its weights, a directory)"
        )
    subjects = []
    for name, path in chosen.items():
        load_processor(path)  # what is wrong with a directory is said before anything is asked
        subjects.append(Subject(name, loader(path, config, processes, load), weights_sha256(path)))
    return subjects


def key_of_features(model: "VisionLanguageModel", processor: "VisionLanguageProcessor") -> str:
    """The name of what the vision encoder gives, the one under which training in one type keeps it."""
    import torch

    from flamingo_lite.training.features import features_key

    precision = {torch.float32: "32-true", torch.bfloat16: "bf16-true"}.get(model.dtype, str(model.dtype))
    return features_key(model, processor, precision, draft=False)


def loader(
    path: Path, config: "Config", processes: int, load: "Load"
) -> "Callable[[], tuple[Generate, Rank | None]]":
    """Loads a model on its device, when called."""

    def load_answers() -> "tuple[Generate, Rank | None]":
        from flamingo_lite.data.features import FeatureCache
        from flamingo_lite.data.stores import parse_bytes
        from flamingo_lite.evaluation.answering import ModelAnswers

        model, processor = load(path, config.trainer.accelerator)
        features = None
        if config.eval.features is not None:
            limit = parse_bytes(config.data.features.bytes, "data.features.bytes")
            features = FeatureCache(config.eval.features, key_of_features(model, processor), limit)
        media_bytes = parse_bytes(config.eval.media_bytes, "eval.media_bytes") // processes
        answers = ModelAnswers(model, processor, config.eval.batch_size, media_bytes, features)
        return answers.generate, answers.rank

    return load_answers


def weights_sha256(directory: Path) -> str:
    """sha256 over the names and bytes of the directory's files of weights."""
    import hashlib

    digest = hashlib.sha256()
    for path in sorted(path for pattern in WEIGHTS for path in directory.glob(pattern)):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


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
    table = Table(title=title, box=box.SIMPLE_HEAD)
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
