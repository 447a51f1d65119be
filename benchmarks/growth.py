"""How the cost of a training step grows with images, context, rows and ranks, and what `flamingo-lite plan` says of it.

    python benchmarks/growth.py

times steps of a small model along each curve beside the arithmetic that the plan counts for them, then one process and two
under DDP beside the bytes that the plan says are sent, and writes the plan's predictions for 8 to 1,024 GPUs with what they
assume. Writes `growth.json` and `growth.md` beside this file.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing
from pairing import in_turns, made, parser, provenance, table, write
from peers import write_tokenizer
from torch import Tensor, nn
from training import SMALL, UNPRETRAINED
from training_steps import our_trainer

from flamingo_lite.config import load_config
from flamingo_lite.models.build import ModelConfig, build
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.models.policy import apply_policy
from flamingo_lite.training.launch import free_port
from flamingo_lite.training.plan import device_memory, meta_model, sent_bytes, state_of
from flamingo_lite.training.precision import hold
from flamingo_lite.training.rates import seconds_of
from flamingo_lite.training.trial import StepShape, run_trial, step_inputs

Point = tuple[int, int, int]
"""Rows, text positions of a row, images of a row."""

CURVES: dict[str, list[Point]] = {
    "images of a row": [(1, 1024, images) for images in (1, 4, 16, 64)],
    "positions of a row": [(1, length, 4) for length in (256, 512, 1024, 2048)],
    "rows of a step": [(rows, 256, 3) for rows in (1, 2, 4, 8)],
}
SMALL_CURVES: dict[str, list[Point]] = {"images of a row": [(1, 32, 1), (1, 32, 4)]}
WORDS = {"rows": "rows of a step", "length": "positions of a row", "images": "images of a row"}

PREDICTED = {
    "model=openflamingo_9b": (("ddp", "fsdp"), 512, 3),
    "experiment=llava_1_5_7b_instruct": (("fsdp",), 2048, 1),
}
"""Strategies, text positions of a row, images of a row."""
RANKS = (8, 64, 512, 1024)
ROWS_EACH = 8
PEAK, UTILIZATION, LINK = 989e12, 0.4, 50e9
"""Operations a second of an H100 in bfloat16, dense; the share of it that a step reaches; bytes a second between devices."""


def model_config(options: argparse.Namespace) -> ModelConfig:
    return load_config([*options.model, f"model.language.name={options.tokenizer}"]).model


def trained_model(options: argparse.Namespace) -> VisionLanguageModel:
    torch.manual_seed(0)
    config = model_config(options)
    model = build(config)
    apply_policy(model, config.policy)
    return model.train()


def batch_of(model: VisionLanguageModel, point: Point) -> dict[str, Tensor]:
    rows, length, images = point
    return step_inputs(model, StepShape(length, images), rows)


def grown(options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """By curve and point: seconds of a step, and the operations that the plan counts for it."""
    model = trained_model(options)
    trainer = our_trainer(model, "32-true", "cpu")
    config = model_config(options)
    found = {}
    for name, points in (SMALL_CURVES if options.small else CURVES).items():
        batches = {str(point): batch_of(model, point) for point in points}
        steps = {key: partial(trainer.step, batch) for key, batch in batches.items()}
        seconds = in_turns(steps, options.rounds)
        found[name] = []
        for point in points:
            rows, length, images = point
            trial = run_trial(meta_model(config), StepShape(length, images), rows)
            spent = seconds[str(point)]
            found[name].append(
                {
                    "rows": rows, "length": length, "images": images,
                    "seconds": statistics.median(spent), "fastest": min(spent), "slowest": max(spent),
                    "operations": sum(trial.flops.values()), "activations": trial.activations,
                }
            )  # fmt: skip
            print(name, found[name][-1], flush=True)
    return found


def rank_steps(rank: int, ranks: int, port: int, options: argparse.Namespace, folder: str) -> None:
    """Steps of one of `ranks` processes; the first writes seconds of each step and bytes of gradients that it summed."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks)
    model = trained_model(options)
    wrapped = nn.parallel.DistributedDataParallel(model, find_unused_parameters=False)
    summed: list[int] = []

    def count(state, bucket):  # DDP refuses annotations that are strings
        summed.append(bucket.buffer().nbytes)
        work = dist.all_reduce(bucket.buffer(), async_op=True)
        return work.get_future().then(lambda future: future.value()[0] / ranks)

    wrapped.register_comm_hook(None, count)
    batch = batch_of(model, options.ranks_point)
    trainer = our_trainer(model, "32-true", "cpu")
    optimizer = trainer.optimizer

    def step() -> None:
        wrapped(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    summed.clear()
    seconds = [seconds_of(step, "cpu") for _ in range(options.rounds)]
    if rank == 0:
        torch.save({"seconds": seconds, "summed": sum(summed) // options.rounds}, f"{folder}/{ranks}.pt")
    dist.destroy_process_group()


def on_ranks(options: argparse.Namespace) -> dict[str, Any]:
    """One process and two, in turns: seconds of a step of as many rows on each, and the bytes of gradients summed."""
    runs: dict[int, list[float]] = {1: [], 2: []}
    summed = 0
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(1 if options.small else 3):
            for ranks in runs:
                arguments = (ranks, free_port(), options, folder)
                torch.multiprocessing.spawn(rank_steps, arguments, nprocs=ranks)
                written = torch.load(f"{folder}/{ranks}.pt", weights_only=True)
                runs[ranks] += written["seconds"]
                summed = written["summed"]
    alone, both = (statistics.median(runs[ranks]) for ranks in runs)
    model = trained_model(options)
    gradients = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    rows, length, images = options.ranks_point
    print("ranks", alone, both, summed, gradients, flush=True)
    return {
        "rows": rows, "length": length, "images": images, "seconds": {"1": alone, "2": both},
        "throughput": 2 * alone / both, "summed": summed, "gradients": gradients,
    }  # fmt: skip


def predictions(options: argparse.Namespace) -> list[dict[str, Any]]:
    """What the plan says of presets on more and more devices, each with as many rows: one trial serves all of them."""
    found = []
    for preset, (strategies, length, images) in PREDICTED.items():
        config = load_config([preset])
        policy = config.stage.policy or config.model.policy
        model = meta_model(replace(config.model, policy=policy), checkpointing=True)
        hold(model, "bf16-mixed", "bfloat16")
        trial = run_trial(model, StepShape(length, images, "bf16-mixed"), ROWS_EACH)
        state, operations = state_of(model), sum(trial.flops.values())
        for ranks, strategy in itertools.product(RANKS, strategies):
            sent = sent_bytes(strategy, state, ranks, accumulate=1)
            found.append(
                {
                    "preset": preset.split("=")[1], "ranks": ranks, "strategy": strategy,
                    "peak": device_memory(strategy, state, trial, ranks).peak, "operations": operations,
                    "sent": sent, "computing": operations / (PEAK * UTILIZATION), "sending": sent / LINK,
                }
            )  # fmt: skip
        print(found[-1], flush=True)
    return found


def curve_table(name: str, points: Sequence[Mapping[str, Any]]) -> str:
    (field,) = (field for field, word in WORDS.items() if word == name)
    first = points[0]
    rows = [
        [
            f"{point[field]:,}",
            f"{point['seconds'] * 1e3:,.0f} ({point['fastest'] * 1e3:,.0f} to {point['slowest'] * 1e3:,.0f})",
            f"{point['operations'] / 1e9:,.1f}",
            f"{point['seconds'] / first['seconds']:.2f}",
            f"{point['operations'] / first['operations']:.2f}",
            f"{point['activations'] / 1e6:,.0f}",
        ]
        for point in points
    ]
    head = [name, "ms a step", "operations, 10^9", "time grows", "operations grow", "activations, MB"]
    fixed = [f"{first[other]:,} {word}" for other, word in WORDS.items() if other != field]
    return f"### {name.capitalize()}\n{', '.join(fixed)}.\n\n{table(head, rows)}\n"


def prediction_table(found: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for each in found:
        together = each["computing"] + each["sending"]
        rows.append(
            [
                each["preset"],
                f"{each['ranks']:,} x {each['strategy']}",
                f"{each['peak'] / 1e9:,.1f}",
                f"{each['operations'] / 1e12:,.1f}",
                f"{each['sent'] / 1e9:,.2f}",
                f"{each['computing']:.2f}",
                f"{each['sending']:.2f}",
                f"{each['computing'] / together:.0%} to {min(1.0, each['computing'] / max(each['sending'], 1e-9)):.0%}",
            ]
        )
    head = [
        "preset", "devices", "GB of a device", "operations of a device, 10^12", "GB sent", "seconds computing",
        "seconds sending", "of the devices' time",
    ]  # fmt: skip
    return table(head, rows)


TEXT = """# How cost grows

Written by `{found[command]}`; do not edit.

{made}

{options.note}

## Measured
One core, float32: a small model (a vision encoder of width 192, a language model of width 256 with four blocks), steps in
turns, medians (fastest to slowest of {options.rounds}); operations and activations as `flamingo-lite plan` counts them.
Where time grows less than operations do, small products are slow ones; where it grows more, something is not counted.

{curves}

A position reads one image: with the context fixed, images cost what encoding and resampling them costs, and nothing in the
language model.

### Ranks
{ranks[rows]} rows of {ranks[length]} positions on each process, one thread each, DDP over gloo: {alone:.0f} ms a step on
one process, {both:.0f} ms on two, {ranks[throughput]:.2f} times the rows a second. The gradients that DDP summed in a step:
{ranks[summed]:,} bytes; the plan counts {ranks[gradients]:,}.

## Predicted: 8 to 1,024 GPUs
`flamingo-lite plan` with {each} rows on each device, of 512 positions and 3 images (LLaVA: of 2,048 and one), frozen weights
in bfloat16, activations computed again:

{predictions}

What this assumes:
- A device computes {tera:.0f} x 10^12 operations a second in bfloat16 (an H100, dense) and reaches {share:.0%} of that. The
  share was not measured here; [training.md](training.md) says what a step reaches where it was run.
- A device sends {link:.0f} GB a second to the next one, however many there are (400 Gb/s each). Rings:
  each device sends (n-1)/n of what it must, so that the bytes hardly grow from 8 to 1,024; latency, which does, is left out.
- The last column: the share of the time that devices compute, if nothing is sent meanwhile, and if all is sent meanwhile
  that can be.
- The number of rows on each device stays, so that a step has more of them with more devices; whether so large a batch trains
  as well is another question.
- Loading, checkpoints, stragglers and failures cost nothing.

Checked against what could be measured here: operations (the curves above), bytes of gradients (Ranks), memory
([training.md](training.md)). Not checked: the rate of a device, the links, more than two processes.
"""


def markdown(found: Mapping[str, Any], options: argparse.Namespace) -> str:
    ranks = found["ranks"]
    return TEXT.format(
        found=found,
        options=options,
        made=made(found),
        curves="\n".join(curve_table(name, points) for name, points in found["curves"].items()),
        ranks=ranks,
        alone=ranks["seconds"]["1"] * 1e3,
        both=ranks["seconds"]["2"] * 1e3,
        predictions=prediction_table(found["predictions"]),
        each=ROWS_EACH,
        tera=PEAK / 1e12,
        share=UTILIZATION,
        link=LINK / 1e9,
    )


def main() -> None:
    options = parser(__doc__, rounds=7).parse_args()
    options.model = [*UNPRETRAINED, *SMALL]
    options.ranks_point = (1, 32, 1) if options.small else (4, 256, 3)
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        options.tokenizer = folder
        write_tokenizer(Path(folder), load_config(options.model).model.language.config["vocab_size"])
        measured: dict[str, Callable[[], Any]] = {
            "predictions": partial(predictions, options),
            "curves": partial(grown, options),
            "ranks": partial(on_ranks, options),
        }
        found = {name: measure() for name, measure in measured.items()}
    found = {**provenance("growth", options), **found}
    write(options.output, "growth", found, markdown(found, options))


if __name__ == "__main__":
    main()
