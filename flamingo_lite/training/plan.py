"""What training a model will take, before anything is downloaded: parameters, bytes, arithmetic, the largest batch.

Shapes come from the meta device, activations and arithmetic from a step on fake tensors (`trial.py`); weights, gradients
and AdamW's two moments are sums over parameters, and what a strategy adds to them is written out in `device_memory`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from flamingo_lite.data.batches import rows_each
from flamingo_lite.errors import FlamingoError
from flamingo_lite.models.adapters import packed_numbers
from flamingo_lite.models.build import ModelConfig, build
from flamingo_lite.models.language import context_length, decoder_layers
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.models.policy import PARTS, part_of
from flamingo_lite.names import check_choice
from flamingo_lite.training.four_bits import quantize_on_paper
from flamingo_lite.training.precision import checkpoint_activations, hold
from flamingo_lite.training.settings import TrainingConfig
from flamingo_lite.training.trial import StepShape, Trial, run_trial

GB = 10**9
STRATEGIES = ("single", "ddp", "fsdp")
ALL = "all"
SHARDED = ("weights", "gradients", "optimizer", "scratch")
"""What FSDP spreads over the ranks."""
DEFAULT_LENGTH = 2048
MOST_ROWS = 2**16


@dataclass
class PlanConfig:
    """For which rows and devices. As in training, stage.batch_size rows are shared among devices and trainer.accumulate.

    `length`: text positions of a row, `<image>` marks among them (by default stage.row_length where rows are packed,
    else stage.max_length, else the language model's context, at most 2048); `images`: of a row. `strategy`: single, ddp,
    fsdp or all of them, the last two over `ranks` devices, of `memory_gb` GB (10**9 bytes) each. `checkpointing`:
    activations of layers and blocks are recomputed, as under trainer.checkpoint_activations.
    """

    length: int | None = None
    images: int = 1
    strategy: str = ALL
    ranks: int = 8
    memory_gb: float = 80.0
    checkpointing: bool = False

    def __post_init__(self) -> None:
        check_choice("value of plan.strategy:", self.strategy, (ALL, *STRATEGIES))
        least: dict[str, int] = {"length": 1, "images": 0, "ranks": 1}
        for name, lowest in least.items():
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise FlamingoError(f"plan.{name} is {value}; expected {lowest} or more")
        if not 0 < self.memory_gb < float("inf"):
            raise FlamingoError(f"plan.memory_gb is {self.memory_gb}; expected a number above 0")


@dataclass(frozen=True)
class Part:
    """Numbers of parameters, each counted once, and their bytes."""

    parameters: int
    trainable: int
    weight_bytes: int
    trainable_bytes: int


@dataclass(frozen=True)
class State:
    """Bytes that do not depend on the batch. `unit`: of the largest part that FSDP gathers at once (a decoder layer
    with its block, the vision encoder, the connector), `root`: of all that is in none of these.
    """

    weights: int
    gradients: int
    optimizer: int
    scratch: int
    unit: int
    unit_gradients: int
    root: int


@dataclass(frozen=True)
class Memory:
    """Bytes of one device. The peak is below the sum: activations go as gradients come."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    copies: int
    peak: int


@dataclass(frozen=True)
class Plan:
    """By strategy: `rows` that a device takes at once, its `memory`, the bytes that it sends in a step (`sent`), and the
    most rows at once that fit (`largest_rows`).

    `flops`: of a step of `batch_size` rows, all devices together, by part. `recomputed`: whether activations are.
    """

    batch_size: int
    accumulate: int
    rows: dict[str, int]
    recomputed: bool
    shape: StepShape
    config: PlanConfig
    parts: dict[str, Part]
    flops: dict[str, int]
    memory: dict[str, Memory]
    sent: dict[str, int]
    one_row: dict[str, int]
    largest_rows: dict[str, int]


def make_plan(config: TrainingConfig, plan: PlanConfig) -> Plan:
    """The plan of `config.model` under `config.stage`, `config.trainer` and `plan`.

    Raises FlamingoError for an architecture that is not known without its files, for rows that cannot be, and for a batch
    that does not divide among the devices.
    """
    stage, trainer = config.stage, config.trainer
    chosen = STRATEGIES if plan.strategy == ALL else (plan.strategy,)
    recomputed = plan.checkpointing or trainer.checkpoint_activations
    # As in training, a stage's policy stands in place of the model's.
    model = meta_model(replace(config.model, policy=stage.policy or config.model.policy), recomputed)
    if quantize_on_paper(model):
        chosen = unsharded(plan.strategy)
    rows = {
        name: rows_each(stage.batch_size, 1 if name == "single" else plan.ranks, trainer.accumulate)
        for name in chosen
    }
    hold(model, trainer.precision, trainer.frozen_dtype)
    shape = StepShape(_length(config, plan, model), plan.images, trainer.precision, stage.pack)
    known: dict[int, Trial] = {}

    def trial(rows: int) -> Trial:
        if rows not in known:
            known[rows] = run_trial(model, shape, rows)
        return known[rows]

    state = state_of(model, foreach=trainer.accelerator != "cpu")
    memory = {name: device_memory(name, state, trial(rows[name]), plan.ranks) for name in chosen}
    room = int(plan.memory_gb * GB)
    largest: dict[str, int] = {}
    for name in chosen:

        def peak(rows: int, name: str = name) -> int:
            return device_memory(name, state, trial(rows), plan.ranks).peak

        nothing = device_memory(name, state, Trial(0, 0, {}), plan.ranks).peak
        largest[name] = largest_rows(peak, room, nothing, rows[name]) if nothing < room else 0
    one_row = {
        name: device_memory(name, state, trial(1), plan.ranks).peak for name in chosen if largest[name] == 0
    }
    at_once = next(iter(rows.values()))
    flops = {name: count * (stage.batch_size // at_once) for name, count in trial(at_once).flops.items()}
    return Plan(
        batch_size=stage.batch_size,
        accumulate=trainer.accumulate,
        rows=rows,
        recomputed=recomputed,
        shape=shape,
        config=plan,
        parts=parts_of(model),
        flops=flops,
        memory=memory,
        sent={name: sent_bytes(name, state, plan.ranks, trainer.accumulate) for name in chosen},
        one_row=one_row,
        largest_rows=largest,
    )


def unsharded(strategy: str) -> tuple[str, ...]:
    """The strategies for a model with weights of four bits. Errors: `FlamingoError` where `strategy` is no such one."""
    if strategy == "fsdp":
        raise FlamingoError(
            "the policy quantizes weights (qlora), and these are not shared among devices; use plan.strategy=ddp"
        )
    return tuple(name for name in STRATEGIES if name != "fsdp" and strategy in (ALL, name))


def _length(config: TrainingConfig, plan: PlanConfig, model: VisionLanguageModel) -> int:
    """Text positions of a row. Errors: `FlamingoError` where the language model does not read so many."""
    limit, stage = context_length(model.language.config), config.stage
    of_rows = (stage.row_length if stage.pack else None) or stage.max_length
    length = plan.length or of_rows or min(limit or DEFAULT_LENGTH, DEFAULT_LENGTH)
    if limit is not None and length > limit and not (stage.pack and plan.length is None):
        raise FlamingoError(
            f"plan.length is {length}, but the language model reads {limit} positions; give at most that"
        )
    return length


def meta_model(config: ModelConfig, checkpointing: bool = False) -> VisionLanguageModel:
    """The model on the meta device, in training as its policy says."""
    with torch.device("meta"):
        model = build(config).train()
    if checkpointing:
        checkpoint_activations(model)
    return model


def parts_of(model: nn.Module) -> dict[str, Part]:
    """The parts by name, shared weights counted once, where they are first."""
    totals = {name: [0, 0, 0, 0] for name in PARTS}
    packed = packed_numbers(model)
    for name, parameter in model.named_parameters():
        trains = parameter.requires_grad
        count, size = packed.get(name, parameter.numel()), parameter.nbytes
        added = (count, count * trains, size, size * trains)
        totals[part_of(name)] = [a + b for a, b in zip(totals[part_of(name)], added, strict=True)]
    return {name: Part(*numbers) for name, numbers in totals.items() if numbers[0]}


def state_of(model: VisionLanguageModel, foreach: bool = True) -> State:
    """`foreach`: AdamW updates all parameters at once, as on a GPU, and holds a third moment's worth meanwhile; on the
    CPU one after the other.
    """
    trainable = [p.nbytes for p in model.parameters() if p.requires_grad]
    units = [*decoder_layers(model.language), model.vision, model.connector]
    sizes = [_bytes(unit) for unit in units]
    weights = _bytes(model)
    return State(
        weights=weights,
        gradients=sum(trainable),
        # Both moments are kept in the parameter's own type.
        optimizer=2 * sum(trainable),
        scratch=sum(trainable) if foreach else 2 * max(trainable, default=0),
        unit=max(sizes),
        unit_gradients=max(sum(p.nbytes for p in unit.parameters() if p.requires_grad) for unit in units),
        root=weights - sum(sizes),
    )


def device_memory(strategy: str, state: State, trial: Trial, ranks: int) -> Memory:
    """The bytes of one of `ranks` devices.

    DDP holds the gradients a second time, in its buckets. FSDP shards weights, gradients and optimizer state, and
    gathers the root for the whole step, two units at a time (one is fetched ahead), and the gradients of one.
    """
    if strategy == "fsdp":
        shard = replace(state, **{name: -(-getattr(state, name) // ranks) for name in SHARDED})
        copies = state.root + 2 * state.unit + state.unit_gradients
        while_running = shard.gradients + trial.activations + copies
        peak = shard.weights + shard.optimizer + max(while_running, shard.gradients + shard.scratch)
        return Memory(shard.weights, shard.gradients, shard.optimizer, trial.activations, copies, peak)
    copies = state.gradients if strategy == "ddp" else 0
    at_once = max(trial.peak, state.gradients + state.scratch)
    peak = state.weights + state.optimizer + copies + at_once
    return Memory(state.weights, state.gradients, state.optimizer, trial.activations, copies, peak)


def sent_bytes(strategy: str, state: State, ranks: int, accumulate: int) -> int:
    """What one of `ranks` devices sends in a step, in rings, which send the least.

    Gradients are summed after the last of the step's parts. Under DDP they go round twice; under FSDP once, to where their
    shard is, and each part gathers the root once, and everything else for its forward and again for its backward pass.
    """
    if strategy == "single":
        return 0
    whole = 2 * state.gradients
    if strategy == "fsdp":
        whole = accumulate * (2 * state.weights - state.root) + state.gradients
    return whole * (ranks - 1) // ranks


def largest_rows(peak: Callable[[int], int], room: int, nothing: int, start: int) -> int:
    """The largest number of rows whose `peak` (non-decreasing, close to affine) is at most `room`; 0 for none.

    `nothing`: the peak of no row, which has room; `start`: tried first. The answer and one row more were tried.
    """
    tried = {0: nothing}
    fits, exceeds, rows = 0, MOST_ROWS + 1, min(start, MOST_ROWS)
    while exceeds - fits > 1:
        tried[rows] = peak(rows)
        if tried[rows] <= room:
            fits = rows
        else:
            exceeds = rows
        # The line between the two, or on through the last two that fit; halving keeps bent ones from creeping.
        low, high = (fits, exceeds) if exceeds in tried else sorted(tried)[-2:]
        aim = _crossing(low, high, tried, room) if len(tried) % 8 else (fits + exceeds) // 2
        # Few rows may hide behind the optimizer's own peak, and say nothing of the slope.
        rows = min(max(aim, fits + 1), exceeds - 1, 8 * max(fits, 1))
    return fits


def _crossing(low: int, high: int, tried: dict[int, int], room: int) -> int:
    return low + (room - tried[low]) * (high - low) // max(tried[high] - tried[low], 1)


def _bytes(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
