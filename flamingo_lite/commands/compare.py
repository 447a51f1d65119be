"""Trains systems on one budget under several seeds, asks all of them the same questions, and writes one report.

  flamingo-lite compare                                     Flamingo against LLaVA on the tiny backbones
  flamingo-lite compare flamingo_tiny llava_tiny compare.samples=12000 compare.seeds=[0,1]
  flamingo-lite compare a:flamingo_tiny b:flamingo_tiny b/model.fusion.every=2

A SYSTEM is a preset of model= or experiment=, or NAME:PRESET. KEY=VALUE holds for all systems, NAME/KEY=VALUE for one.
All see the same documents in the same order, about compare.documents in each step, and are asked the same prompts; a
system that was tuned on conversations is shown each as turns and as one turn. The budget is compare.samples documents,
or compare.flops operations. What is done already is not done again; --fresh starts over. compare.jobs runs go on at a
time. docs/compare.md says how the figures come about."""

import argparse
import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flamingo_lite.commands.common import CONFIG_HELP, bold
from flamingo_lite.errors import FlamingoError
from flamingo_lite.names import unknown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console
    from rich.table import Table

    from flamingo_lite.config import Config
    from flamingo_lite.document import Document
    from flamingo_lite.processing import VisionLanguageProcessor
    from flamingo_lite.training.comparison import SystemPlan

SUMMARY = "train systems on one budget, evaluate them on the same prompts, report the differences"
USAGE = "KEY=VALUE"

EXPERIMENT = "experiment=compare"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
COST_PROMPTS = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "overrides", nargs="*", metavar="SYSTEM | KEY=VALUE", help=f"a system, or {CONFIG_HELP}"
    )
    parser.add_argument("--cfg", action="store_true", help="print the settings of each system, and stop")
    parser.add_argument(
        "--fresh", action="store_true", help="delete what an earlier comparison made, and start over"
    )


def run(arguments: argparse.Namespace) -> None:
    from rich.console import Console

    base, systems = compose(arguments.overrides)
    if arguments.cfg:
        from omegaconf import OmegaConf

        for name, config in systems.items():
            print(f"# {name}\n{OmegaConf.to_yaml(OmegaConf.structured(config))}", end="")
        return
    compare(base, systems, Console(), arguments.fresh)


def compose(words: "Sequence[str]") -> "tuple[Config, dict[str, Config]]":
    """What all systems share, and the configuration of each. Errors: `FlamingoError`."""
    from flamingo_lite.config import load_config

    chosen, common, own = sorted_words(words)
    base = load_config([*([] if any(w.startswith("experiment=") for w in common) else [EXPERIMENT]), *common])
    known = base.compare.systems
    systems = chosen or {name: entry.preset for name, entry in known.items()}
    if len(systems) < 2:
        raise FlamingoError(
            f"a comparison needs two systems, got {', '.join(systems) or 'none'}; name presets of model= or experiment="
        )
    for name in own:
        if name not in systems:
            raise unknown("system", name, systems)
    configs = {}
    for name, preset in systems.items():
        entry = known.get(name)
        given = entry.overrides if entry is not None and entry.preset == preset else []
        configs[name] = _config_of(name, preset, [*common, *given, *own.get(name, [])], base)
    return base, configs


def sorted_words(words: "Sequence[str]") -> tuple[dict[str, str], list[str], dict[str, list[str]]]:
    """(name to preset, overrides of all systems, overrides of one by its name). Errors: `FlamingoError`."""
    chosen: dict[str, str] = {}
    common: list[str] = []
    own: dict[str, list[str]] = {}
    for word in words:
        head, is_setting, _ = word.partition("=")
        if not is_setting and not head.startswith("~"):
            name, _, preset = word.rpartition(":")
            if not NAME.fullmatch(name or preset):
                raise FlamingoError(f"'{word}' is no name of a system; expected PRESET or NAME:PRESET")
            if (name or preset) in chosen:
                raise FlamingoError(
                    f"the system {name or preset} is named twice; give one another name, as in other:{preset}"
                )
            chosen[name or preset] = preset
        elif "/" in head and NAME.fullmatch(head.partition("/")[0]):
            system, _, override = word.partition("/")
            own.setdefault(system, []).append(override)
        else:
            common.append(word)
    return chosen, common, own


def _config_of(name: str, preset: str, overrides: "Sequence[str]", base: "Config") -> "Config":
    """A system's configuration: its preset's, but for the data, the questions and the place, which all share."""
    from flamingo_lite.config import load_config, preset_groups

    groups = preset_groups()
    if preset in groups["model"]:
        choice = [EXPERIMENT, f"model={preset}"]
    elif preset in groups["experiment"]:
        choice = [f"experiment={preset}"]
    else:
        raise unknown("preset of a system:", preset, [*groups["model"], *groups["experiment"]])
    config = load_config([*choice, *(word for word in overrides if not word.startswith("experiment="))])
    shared = {key: getattr(base, key) for key in ("data", "eval", "compare", "output", "wandb")}
    return dataclasses.replace(config, **shared, name=name)


def compare(base: "Config", systems: "Mapping[str, Config]", console: "Console", fresh: bool = False) -> Path:
    """Runs all that is not done yet; the path of the report."""
    import torch

    from flamingo_lite.data.make import available_cores
    from flamingo_lite.evaluation.comparison_folder import report_systems
    from flamingo_lite.training.comparison import folder_of, plan_systems

    output = Path(base.output)
    if fresh:
        delete_products(output, systems)
    _make_data(base, console)
    plans = plan_systems(systems, base.compare)
    console.print(systems_table(plans))
    runs = [
        dataclasses.replace(
            systems[name],
            stage=plan.config.stage,
            data=plan.config.data,
            seed=seed,
            output=str(folder_of(output, name, seed)),
            checkpoint="",
        )
        for seed in base.compare.seeds
        for name, plan in plans.items()
    ]
    jobs = min(base.compare.jobs or available_cores(), len(runs))
    threads = base.trainer.threads or max(1, available_cores() // jobs)
    for config in runs:
        config.trainer = dataclasses.replace(config.trainer, threads=threads)
    _run_all(runs, jobs, console)
    torch.set_num_threads(base.trainer.threads or available_cores())
    _write_systems(output, base, plans, console)
    path = report_systems(output)
    console.print(f"the report: {bold(path)}", highlight=False, soft_wrap=True)
    return path


def systems_table(plans: "Mapping[str, SystemPlan]") -> "Table":
    """What is compared, and what its training takes."""
    from rich.table import Table

    from flamingo_lite.evaluation.tables import FACTS

    table = Table(title="Systems", title_justify="left")
    table.add_column("")
    for name in plans:
        table.add_column(name, justify="right", overflow="fold")
    known = [_facts(plan) for plan in plans.values()]
    for quantity, show in FACTS.items():
        if any(values := [show(facts) for facts in known]):
            table.add_row(quantity, *values)
    table.add_row("training steps", *(f"{plan.steps:,}" for plan in plans.values()))
    return table


def _facts(plan: "SystemPlan") -> dict[str, Any]:
    """What the report calls a system's facts, as far as they are known before it is trained."""
    return {
        "fusion": plan.config.model.fusion.name,
        "parameters": plan.parameters,
        "trainable": plan.trainable,
        "media_tokens": plan.media_tokens,
        "tokens_a_document": round(plan.tokens, 2),
        "documents": plan.documents,
        "training_flops": plan.flops,
    }


def delete_products(output: Path, systems: "Mapping[str, Any]") -> None:
    """Deletes what a comparison of `systems` makes, by name, and nothing else that may lie in the folder."""
    from flamingo_lite.commands.quickstart import delete
    from flamingo_lite.evaluation.comparison_folder import SYSTEMS
    from flamingo_lite.evaluation.comparison_report import PLOTS, REPORT, TABLES

    delete(output, (*systems, "shards", SYSTEMS, REPORT, PLOTS, TABLES))


def _make_data(base: "Config", console: "Console") -> None:
    """Draws the documents, unless they are there. Errors: `FlamingoError` where others are."""
    from flamingo_lite.commands.data_make import make_shards, recipe
    from flamingo_lite.data.manifest import load_manifest
    from flamingo_lite.data.stores import MANIFEST

    if not base.data.families or base.data.sources:
        return
    data = dataclasses.replace(base.data, samples=base.compare.samples)
    if not (Path(data.directory) / MANIFEST).exists():
        make_shards(data, console)
        return
    found = load_manifest(data.directory).info
    if found != recipe(data):
        different = [key for key, value in recipe(data).items() if found.get(key) != value]
        raise FlamingoError(
            f"{data.directory} holds documents of another recipe ({', '.join(different)} differ); choose another output=, "
            "start over with --fresh, or give data.families={} to take them as they are"
        )
    console.print(f"documents: already there, in {data.directory}", highlight=False, soft_wrap=True)


def _run_all(runs: "Sequence[Config]", jobs: int, console: "Console") -> None:
    """Trains and evaluates each run, `jobs` at a time, each in a process of its own where there are several."""
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from concurrent.futures.process import BrokenProcessPool

    from flamingo_lite.training.launch import end_with_parent

    if jobs == 1:
        for number, config in enumerate(runs, start=1):
            console.print(bold(f"[{number}/{len(runs)}] {config.output}"), highlight=False, soft_wrap=True)
            run_one(config, console)
        return
    # Spawned, not forked: the parent may hold threads (torch's) whose locks a fork would copy locked.
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), end_with_parent)
    try:
        running = {pool.submit(run_quietly, config): config for config in runs}
        console.print(f"{len(runs)} runs, {jobs} at a time", highlight=False)
        for number, future in enumerate(as_completed(running), start=1):
            seconds = future.result()
            config = running[future]
            console.print(
                f"{bold(f'[{number}/{len(runs)}] {config.output}')}: done in {seconds:.0f} s",
                highlight=False,
                soft_wrap=True,
            )
    except BrokenProcessPool as error:
        raise FlamingoError(
            "a run was killed, perhaps for want of memory; give the command again to go on, with fewer compare.jobs"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def run_quietly(config: "Config") -> float:
    """`run_one` in another process; the seconds that it took."""
    import os
    import time

    from rich.console import Console

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    began = time.perf_counter()
    with Path(os.devnull).open("w") as nothing:
        run_one(config, Console(file=nothing))
    return time.perf_counter() - began


def run_one(config: "Config", console: "Console") -> None:
    """Trains, and evaluates what came of it, unless both is done with these settings."""
    from flamingo_lite.checkpoints.io import load_processor
    from flamingo_lite.commands.evaluate import evaluate_model
    from flamingo_lite.training.stages import run_stage

    directory = run_stage(config, console)
    for rendering in renderings_of(load_processor(directory)):
        asked = dataclasses.replace(
            config,
            eval=dataclasses.replace(config.eval, rendering=rendering),
            checkpoint=str(directory),
            output=str(Path(config.output) / rendering),
        )
        forget_other_answers(asked)
        evaluate_model(asked, console)


def renderings_of(processor: "VisionLanguageProcessor") -> list[str]:
    """How a model is shown prompts: one that was tuned on conversations as turns, and as one turn."""
    return ["interleaved"] if processor.template.conversation is None else ["turns", "one_turn"]


def forget_other_answers(config: "Config") -> None:
    """Deletes from `config.output` the answers to other questions, or of another model; the same ones are kept."""
    import json

    from flamingo_lite.commands.quickstart import delete
    from flamingo_lite.commands.subjects import subjects_of
    from flamingo_lite.evaluation import journal
    from flamingo_lite.evaluation.results import RESULTS, SAMPLES, load_results
    from flamingo_lite.evaluation.runner import identity_of

    output = Path(config.output)
    begun = output / journal.FOLDER / journal.IDENTITY
    if (output / RESULTS).is_file():
        found = load_results(output).get("identity")
    elif begun.is_file():
        found = json.loads(begun.read_text(encoding="utf-8"))
    else:
        return
    if found != identity_of(subjects_of(config, 1), config.eval):
        delete(output, (RESULTS, SAMPLES, journal.FOLDER))


def _write_systems(
    output: Path, base: "Config", plans: "Mapping[str, SystemPlan]", console: "Console"
) -> None:
    """What the report says of the systems beside their answers: what they are, and what they cost, measured."""
    import json

    from flamingo_lite.checkpoints.io import load_processor
    from flamingo_lite.evaluation.comparison_folder import SYSTEMS, read_systems
    from flamingo_lite.evaluation.results import write_atomically
    from flamingo_lite.training.comparison import folder_of
    from flamingo_lite.training.settings import MODEL

    described: dict[str, Any] = {}
    before = read_systems(output)["systems"] if (output / SYSTEMS).exists() else {}
    for name, plan in plans.items():
        runs = [folder_of(output, name, seed) for seed in base.compare.seeds]
        renderings = renderings_of(load_processor(runs[0] / MODEL))
        prompts = cost_prompts(base, renderings[0])
        described[name] = {
            "runs": [str(run.relative_to(output)) for run in runs],
            "renderings": renderings,
            "seeds": list(base.compare.seeds),
            **_facts(plan),
            "training_seconds": [_training_seconds(run) for run in runs],
            **_cost(name, runs[0] / MODEL, prompts, base, before.get(name, {}), console),
        }
    budget = {"samples": base.compare.samples, "flops": base.compare.flops}
    text = json.dumps({"budget": budget, "systems": described}, indent=1) + "\n"
    write_atomically(output / SYSTEMS, text.encode())


def _cost(
    name: str,
    directory: Path,
    prompts: "Sequence[Document]",
    base: "Config",
    before: "Mapping[str, Any]",
    console: "Console",
) -> dict[str, Any]:
    """What an answer costs, and of what: the one that was measured `before`, where that was of the same."""
    import torch

    from flamingo_lite.checkpoints.io import load
    from flamingo_lite.checkpoints.sums import files_sha256
    from flamingo_lite.evaluation.results import prompt_sha
    from flamingo_lite.training.cost import measure_cost
    from flamingo_lite.training.settings import torch_device

    of = {"weights": files_sha256(directory), "prompts": [prompt_sha(prompt) for prompt in prompts]}
    if before.get("cost_of") == of:
        return {"cost_of": of, "cost": before["cost"]}
    console.print(f"measuring what an answer costs {name}", highlight=False)
    model, processor = load(directory)
    torch.nn.Module.to(model, torch_device(base.trainer.accelerator))
    return {"cost_of": of, "cost": dataclasses.asdict(measure_cost(model, processor, prompts))}


def cost_prompts(base: "Config", rendering: str) -> "list[Document]":
    """A few prompts of the evaluation as they are shown, of the most shots; by similarity or not, they take as long."""
    from flamingo_lite.evaluation.grid import build_prompt, settings
    from flamingo_lite.evaluation.selection import BY_SIMILARITY

    shown = dataclasses.replace(base.eval, rendering=rendering)
    longest = max(
        (setting for setting in settings(shown) if setting.condition == "standard"),
        key=lambda setting: setting.shots,
    )
    if longest.selector in BY_SIMILARITY:
        longest = dataclasses.replace(longest, selector="random", order="own")
    number = min(COST_PROMPTS, base.eval.queries)
    return [
        build_prompt(longest, query_id, base.eval.seeds[0], base.eval.files).shown
        for query_id in range(number)
    ]


def _training_seconds(run: Path) -> float:
    import json

    from flamingo_lite.training.beginning import SUMMARY as TRAINING

    return float(json.loads((run / TRAINING).read_text())["seconds"])
