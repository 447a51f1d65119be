"""Says what training a model takes before anything is downloaded: parameters, memory, arithmetic, the largest batch.

  flamingo-lite plan model=openflamingo_9b stage.batch_size=128 plan.ranks=8 plan.length=256 plan.images=3
  flamingo-lite plan model=idefics_80b stage.batch_size=64 plan.ranks=64 plan.checkpointing=true trainer=fsdp2

As in training, a step's stage.batch_size rows are shared among plan.ranks devices, each of which takes its part in
trainer.accumulate goes. A row has plan.length text positions and plan.images images; the precision is trainer.precision; a
device has plan.memory_gb GB (10**9 bytes). What is counted:
- weights, frozen ones too; gradients and AdamW's two moments of what trains, in the type of the weights;
- activations: the most that lives at once beside them, found by running the step on tensors without numbers;
- copies: DDP's buckets; under FSDP the root, two layers gathered and one layer's gradients;
- peak: less than the sum, as activations go when gradients come; at the end AdamW's scratch space.
- sent: what a device sends in a step, in rings: DDP the gradients twice, FSDP all weights twice and the gradients once.
Not counted: the CUDA context (about half a GB), the allocator's fragmentation, communication buffers.
Arithmetic: a multiply-add is two operations; recomputed layers are counted again."""

import argparse
import dataclasses
import json
from typing import TYPE_CHECKING, Any

from flamingo_lite.commands.common import add_config_arguments, configs

if TYPE_CHECKING:
    from rich.table import Table

    from flamingo_lite.training.plan import Plan

SUMMARY = "say what training a model takes, without its weights"
USAGE = "KEY=VALUE"
BYTES, FLOPS = {"GB": 10**9, "MB": 10**6}, {"TFLOPs": 10**12, "GFLOPs": 10**9}
COLUMNS = {"single": "one device", "ddp": "DDP x {ranks}", "fsdp": "FSDP x {ranks}"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    parser.add_argument(
        "--json", action="store_true", help="print the numbers as JSON, bytes and operations whole"
    )


def run(arguments: argparse.Namespace) -> None:
    for config in configs(arguments):
        from rich.console import Console

        from flamingo_lite.training.plan import make_plan

        plan = make_plan(config, config.plan)
        if arguments.json:
            print(json.dumps(as_json(plan), indent=1))
        else:
            console = Console()
            console.print(parts_table(plan))
            console.print(memory_table(plan))
        refuse_too_little(plan)


def as_json(plan: "Plan") -> dict[str, Any]:
    """Plain data, with the totals that the tables show."""
    found = dataclasses.asdict(plan)
    found["parameters"] = sum(part.parameters for part in plan.parts.values())
    found["trainable"] = sum(part.trainable for part in plan.parts.values())
    return found


def parts_table(plan: "Plan") -> "Table":
    """Parameters and arithmetic by part."""
    from rich.table import Table

    parts = plan.parts.values()
    weights, flops = sum(part.weight_bytes for part in parts), sum(plan.flops.values())
    size, operations = _unit(weights, BYTES), _unit(flops, FLOPS)
    table = Table(title="The parts", title_justify="left")
    table.add_column("part", overflow="fold")
    for name in ("parameters", "trainable", f"weights, {size}", f"{operations} a step"):
        table.add_column(name, justify="right", overflow="fold")
    for name, part in plan.parts.items():
        style = "green" if part.trainable else None
        cells = (_count(part.parameters), _count(part.trainable), _in(part.weight_bytes, BYTES[size]))
        own = plan.flops.get(name)
        table.add_row(name, *cells, "" if own is None else _in(own, FLOPS[operations]), style=style)
    table.add_section()
    table.add_row(
        "all",
        _count(sum(part.parameters for part in parts)),
        _count(sum(part.trainable for part in parts)),
        _in(weights, BYTES[size]),
        _in(flops, FLOPS[operations]),
        style="bold",
    )
    return table


def memory_table(plan: "Plan") -> "Table":
    """Bytes of a device under each strategy, and the largest batch."""
    from rich.table import Table

    shape, room = plan.shape, plan.config.memory_gb
    recomputed = ", recomputed" if plan.recomputed else ""
    parts = f" in {plan.accumulate} parts" if plan.accumulate > 1 else ""
    unit = _unit(max(memory.peak for memory in plan.memory.values()), BYTES)
    images = "1 image" if shape.images == 1 else f"{shape.images} images"
    table = Table(
        title=f"{unit} of a device: a step of {plan.batch_size:,} rows{parts}, of {shape.length} positions and {images}, "
        f"{shape.precision}",
        title_justify="left",
    )
    table.add_column("")
    for name in plan.memory:
        table.add_column(COLUMNS[name].format(ranks=plan.config.ranks), justify="right")
    table.add_row("rows at once", *(f"{rows:,}" for rows in plan.rows.values()))
    table.add_section()
    labels = {
        "weights": "weights",
        "gradients": "gradients",
        "optimizer": "optimizer state",
        "activations": f"activations{recomputed}",
        "copies": "copies",
    }
    for field, label in labels.items():
        table.add_row(label, *(_in(getattr(memory, field), BYTES[unit]) for memory in plan.memory.values()))
    table.add_section()
    peaks = [
        f"[{'red' if memory.peak > room * 1e9 else 'green'}]{_in(memory.peak, BYTES[unit])}[/]"
        for memory in plan.memory.values()
    ]
    table.add_row("peak", *peaks, style="bold")
    table.add_row("sent in a step", *(_in(size, BYTES[unit]) for size in plan.sent.values()))
    table.add_row(
        f"most rows at once in {room:g} GB", *(f"{plan.largest_rows[name]:,}" for name in plan.memory)
    )
    return table


def refuse_too_little(plan: "Plan") -> None:
    """Raises FlamingoError where not even one row fits, saying what would do."""
    from flamingo_lite.errors import FlamingoError

    if any(plan.largest_rows.values()):
        return
    least = min(plan.one_row, key=lambda name: plan.one_row[name])
    needs = plan.one_row[least]
    unit = _unit(needs, BYTES)
    raise FlamingoError(
        f"not even one row of {plan.shape.length} positions fits in plan.memory_gb={plan.config.memory_gb:g}: "
        f"{COLUMNS[least].format(ranks=plan.config.ranks)} needs {_in(needs, BYTES[unit])} {unit}; plan.memory_gb="
        f"{-(-needs // 10**9)} would do, and less with more plan.ranks under fsdp, plan.checkpointing=true, a shorter "
        "plan.length or model.language.dtype=bfloat16"
    )


def _unit(most: int, units: dict[str, int]) -> str:
    """The largest unit of which `most` is at least one, or the smallest there is."""
    return next((name for name, size in units.items() if most >= size), list(units)[-1])


def _in(number: int, unit: int) -> str:
    return f"{number / unit:,.2f}"


def _count(number: int) -> str:
    return f"{number:,}"
