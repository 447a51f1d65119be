"""Where the time and the memory of a training step go, by part of the model, and how far each is from its limit.

Every operation is timed as it runs and belongs to a part as in `flops.py`, in the backward pass too; what Python does
between operations is told apart. A second pass counts what the forward pass keeps for the backward pass.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import nn

from flamingo_lite.batch import Batch
from flamingo_lite.data.make import DataConfig, draw_documents
from flamingo_lite.document import Document
from flamingo_lite.models.build import build, build_processor
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.models.policy import (
    ADAPTED,
    BLOCKS,
    CONNECTOR,
    LANGUAGE,
    NEW_ROWS,
    VISION,
    apply_policy,
)
from flamingo_lite.training.flops import FlopsByPart
from flamingo_lite.training.live_bytes import LiveBytes
from flamingo_lite.training.optim import build_optimizer
from flamingo_lite.training.plan import parts_of
from flamingo_lite.training.precision import prepare
from flamingo_lite.training.rates import matrix_rate, read_rate, seconds_of, wait
from flamingo_lite.training.settings import AUTOCAST, TrainingConfig
from flamingo_lite.training.trial import autocast

DATA, LOSS, OPTIMIZER = "data", "head and loss", "optimizer"
FORWARD, BACKWARD = "forward", "backward"
ORDER = (DATA, VISION, CONNECTOR, BLOCKS, LANGUAGE, LOSS, OPTIMIZER)
STEPS = 5  # timed whole, and as many operation by operation

Path = tuple[str, ...]
"""Of the flame chart, from the outside in: pass, part, classes of modules, operation."""


@dataclass(frozen=True)
class PartCost:
    """Of one step. `seconds` by pass; bytes of its weights, and of what it keeps for the backward pass (of the
    optimizer: its state). `limit`: the seconds that its arithmetic, or its reading, takes at the machine's rate.
    """

    seconds: dict[str, float]
    weights: int = 0
    kept: int = 0
    flops: int = 0
    limit: float | None = None

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


@dataclass(frozen=True)
class StepProfile:
    """`step`: seconds of a whole step, its batch made beforehand, without any clock inside; `peak`: the most bytes of
    activations and gradients at once; `paths`: seconds of each place in the flame chart."""

    parts: dict[str, PartCost]
    step: float
    peak: int
    gradients: int
    paths: dict[Path, float]
    matrix_rate: float
    read_rate: float
    rows: int
    length: int
    images: int
    loss: float


class OperationClock(FlopsByPart):
    """Seconds of operations by place; `classes`: the modules that the forward pass is in, outermost first."""

    def __init__(self, parts: Mapping[nn.Module, str], device: str) -> None:
        super().__init__(parts)
        self.device = device
        self.paths: dict[Path, float] = defaultdict(float)
        self.classes: list[str] = []
        self.stage: str | None = None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        started = time.perf_counter()
        result = func(*args, **(kwargs or {}))
        wait(self.device)
        spent = time.perf_counter() - started
        self._count(func, args, kwargs or {}, result)
        self.paths[(*self._place(), func._overloadpacket.__name__)] += spent
        return result

    def _part(self) -> str | None:
        """Muon's products are the optimizer's."""
        return self.stage or super()._part()

    def _place(self) -> Path:
        if self.stage is not None:
            return (self.stage,)
        part = self._part() or LOSS
        if torch._C._current_autograd_node() is not None:
            return (BACKWARD, part)
        return (FORWARD, part, *self.classes)


class KeptBytes(LiveBytes):
    """What lives at the end of a part's forward pass more than at its beginning, by part, one inside another apart."""

    def __init__(self, weights: list[torch.Tensor]) -> None:
        super().__init__(weights)
        self.kept: Counter[str] = Counter()
        self._running = [LOSS]
        self._before = 0

    def begin(self, part: str) -> None:
        self.note()
        self._running.append(part)

    def end(self) -> None:
        self.note()
        self._running.pop()

    def note(self) -> None:
        """What has come since the last call belongs to the part that is running."""
        self.kept[self._running[-1]] += self.activations - self._before
        self._before = self.activations


class Step:
    """A model that trains, and one batch for it, as `flamingo-lite train` would."""

    def __init__(self, config: TrainingConfig, rows: int, device: str) -> None:
        self.device, self.precision = device, config.trainer.precision
        self.clip = config.stage.optimizer.gradient_clip
        torch.manual_seed(config.seed)
        self.model = build(config.model)
        apply_policy(self.model, config.stage.policy or config.model.policy)
        prepare(self.model, config.trainer)
        # torch's own, typed by transformers as a decorated method.
        torch.nn.Module.to(self.model, device).train()
        self.optimizer, _ = build_optimizer(self.model, config.stage.optimizer, steps=config.stage.steps)
        self.processor = build_processor(config.model)
        families = config.data.families or {"scenes": 1.0}
        drawn = DataConfig(families=families, samples=rows, workers=1, seed=config.data.seed)
        self.documents = [document for _, document in draw_documents(drawn)]
        self.batch = self.collate()
        self.inputs = dict(**self.batch.to(device))

    def collate(self) -> Batch:
        """Images decoded and prepared, texts tokenized, all of it put together."""
        # Images keep what they have decoded; documents that are made anew do not.
        documents = [Document(document, document.meta) for document in self.documents]
        return cast(Batch, self.processor(documents))  # of documents it makes no other

    def decode(self) -> None:
        for document in self.documents:
            for image in document.images:
                image.pil()

    def forward(self) -> torch.Tensor:
        with autocast(self.precision, self.device):
            return self.model(**self.inputs).loss

    def update(self) -> None:
        trained = [p for p in self.model.parameters() if p.requires_grad]
        if self.clip > 0:
            nn.utils.clip_grad_norm_(trained, self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def run(self) -> float:
        loss = self.forward()
        loss.backward()
        self.update()
        return loss.item()


def profile_step(config: TrainingConfig, rows: int, device: str = "cpu") -> StepProfile:
    """Runs steps of `rows` synthetic documents with the config's model, policy, precision and optimizer; nothing is
    written. Raises FlamingoError where the model cannot be built.
    """
    step = Step(config, rows, device)
    step.run()
    whole = statistics.median(seconds_of(step.run, device) for _ in range(STEPS))
    clock, loss = timed(step)
    kept = kept_bytes(step)
    narrow = AUTOCAST.get(config.trainer.precision, torch.float32)
    rates = matrix_rate(device, narrow, size=1024), read_rate(device)
    batch = step.batch
    return StepProfile(
        parts=parts_with_costs(step, clock, kept, rates),
        step=whole,
        peak=kept.most,
        gradients=sum(p.nbytes for p in step.model.parameters() if p.requires_grad),
        paths={path: spent / STEPS for path, spent in clock.paths.items()},
        matrix_rate=rates[0],
        read_rate=rates[1],
        rows=rows,
        length=batch.input_ids.shape[1],
        images=len(batch.pixel_values),
        loss=loss,
    )


def timed(step: Step) -> tuple[OperationClock, float]:
    """`STEPS` steps, operation by operation; and the loss of the last one."""
    last = 0.0
    clock = OperationClock(modules_by_part(step.model), step.device)
    with clock, classes_noted(step.model, clock.classes):
        for _ in range(STEPS):
            loss = step.forward()
            loss.backward()
            clock.stage = OPTIMIZER
            step.update()
            clock.stage = None
            last = loss.item()
    return clock, last


def kept_bytes(step: Step) -> KeptBytes:
    """Of one forward and backward pass."""
    weights = [*step.model.parameters(), *step.model.buffers(), *step.inputs.values()]
    live = KeptBytes(weights)
    hooks = []
    for module, part in modules_by_part(step.model).items():
        hooks += [
            module.register_forward_pre_hook(lambda *_, part=part: live.begin(part)),
            module.register_forward_hook(lambda *_: live.end()),
        ]
    with live:
        loss = step.forward()
        live.note()
        for hook in hooks:
            hook.remove()
        loss.backward()
    step.optimizer.zero_grad(set_to_none=True)
    return live


def parts_with_costs(
    step: Step, clock: OperationClock, kept: KeptBytes, rates: tuple[float, float]
) -> dict[str, PartCost]:
    seconds: dict[str, dict[str, float]] = {name: defaultdict(float) for name in ORDER}
    for path, spent in clock.paths.items():
        part, passing = (path[0], path[0]) if path[0] == OPTIMIZER else (path[1], path[0])
        seconds[part][passing] += spent / STEPS
    weights: Counter[str] = Counter()
    for name, part in parts_of(step.model).items():
        weights[LANGUAGE if name in (NEW_ROWS, ADAPTED) else name] += part.weight_bytes
    found = {
        name: PartCost(
            dict(seconds[name]),
            weights=weights[name],
            kept=max(0, kept.kept[name]),
            flops=(flops := clock.flops[None if name == LOSS else name] // STEPS),
            limit=flops / rates[0] if flops else None,
        )
        for name in ORDER
        if name in (LOSS, OPTIMIZER) or seconds[name] or weights[name]
    }
    return {DATA: data_cost(step), **found, OPTIMIZER: optimizer_cost(step, found[OPTIMIZER], rates[1])}


def data_cost(step: Step) -> PartCost:
    """Making the batch in this process; its limit is to decode the images and do nothing else."""
    made = statistics.median(seconds_of(step.collate) for _ in range(STEPS))
    decoded = statistics.median(seconds_of(step.decode) for _ in range(STEPS))
    return PartCost({FORWARD: made}, kept=sum(v.nbytes for v in step.inputs.values()), limit=decoded)


def optimizer_cost(step: Step, cost: PartCost, rate: float) -> PartCost:
    """Its limit: weights, gradients and state are read once, weights and state written once, beside its products."""
    trained = sum(p.nbytes for p in step.model.parameters() if p.requires_grad)
    state = sum(
        value.nbytes
        for entry in step.optimizer.state.values()
        for value in entry.values()
        if isinstance(value, torch.Tensor)
    )
    return replace(cost, kept=state, limit=(cost.limit or 0.0) + (3 * trained + 2 * state) / rate)


def modules_by_part(model: VisionLanguageModel) -> dict[nn.Module, str]:
    """What is in none of them is the head and the loss. Blocks stand inside the language model."""
    stack: Any = model.language.base_model
    blocks = dict.fromkeys(model.blocks.values(), BLOCKS)
    words = model.language.get_input_embeddings()
    return {model.vision: VISION, model.connector: CONNECTOR, stack: LANGUAGE, words: LANGUAGE, **blocks}


@contextmanager
def classes_noted(model: nn.Module, classes: list[str]) -> Iterator[None]:
    """Keeps in `classes` the names of the classes that the forward pass is in."""

    def entering(module: nn.Module, *_: Any) -> None:
        classes.append(type(module).__name__)

    def leaving(*_: Any) -> None:
        classes.pop()

    hooks: list[Any] = []
    for module in model.modules():
        if module is not model:
            hooks.append(module.register_forward_pre_hook(entering))
            hooks.append(module.register_forward_hook(leaving))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
