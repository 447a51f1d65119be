"""What happens beside the steps: a row of figures every few of them, handed to sinks.

Between rows nothing waits for the device: sums stay there, and a row fetches all that it needs at once. Which columns
there are, and what they say: `evaluation/panels.py`.
"""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import lightning.pytorch as lightning
import torch
from torch import Tensor

from flamingo_lite.data.prepared import PreparedBatch
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.nn.gated import opened
from flamingo_lite.training.attention import AttentionWatch
from flamingo_lite.training.callbacks import Row
from flamingo_lite.training.module import StepReport, TrainingModule
from flamingo_lite.training.norms import GroupNorms, learning_rates
from flamingo_lite.training.source_losses import SourceLosses
from flamingo_lite.training.utilization import Utilization, Work

Sink = Callable[[Row], None]

GB = 10**9


class Monitor(lightning.Callback):
    """At every step that is `due`, hands a row to each sink. Speeds, and losses by source, are those since the row before.

    `periods`: a step is due when one of them divides it, and so is the last. `sources`: names of the sources of data.
    `more`: further columns, asked for at each row, on every rank. `rows`: those so far.
    """

    def __init__(
        self,
        periods: Sequence[int],
        sinks: Sequence[Sink],
        sources: Sequence[str] = (),
        more: Sequence[Callable[[], Row]] = (),
        utilization: Utilization | None = None,
    ) -> None:
        self.periods = [period for period in periods if period]
        self.sinks = list(sinks)
        self.more = list(more)
        self.utilization = utilization
        self.rows: list[Row] = []
        self.losses = SourceLosses(sources)
        self.norms = GroupNorms()
        self._rates: Row = {}
        self._looking = ExitStack()

    def is_due(self, step: int, trainer: lightning.Trainer) -> bool:
        return step == trainer.max_steps or any(step % period == 0 for period in self.periods)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What is done inside does not count as time of training."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._since += time.perf_counter() - began

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        self._start = self._since = time.perf_counter()
        self._reports: list[StepReport] = []
        self._attention = AttentionWatch(pl_module.model)

        def look(optimizer: torch.optim.Optimizer) -> None:
            if self.is_due(trainer.global_step + 1, trainer):
                self._rates = learning_rates(optimizer)
                self.norms.before(optimizer)

        pl_module.on_gradients = look

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        is_last = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if is_last and self.is_due(trainer.global_step + 1, trainer):
            self._looking.enter_context(self._attention.watching())

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: PreparedBatch,
        batch_idx: int,
    ) -> None:
        assert isinstance(pl_module, TrainingModule)
        self._looking.close()
        self.losses.add(outputs["token_losses"], batch.batch.labels, batch.source_ids)
        if pl_module.report is None:
            return
        self._reports.append(pl_module.report)
        self.norms.after()
        if not self.is_due(trainer.global_step, trainer):
            return
        row = self._row(trainer, pl_module, pl_module.report)
        self.rows.append(row)
        if trainer.is_global_zero:
            for sink in self.sinks:
                sink(row)

    def _row(self, trainer: lightning.Trainer, module: TrainingModule, report: StepReport) -> Row:
        now = time.perf_counter()
        seconds, reports = now - self._since, self._reports
        on_device = {
            **self.losses.columns(trainer.strategy),
            **self.norms.columns(trainer.strategy),
            **gate_columns(module.model),
            **self._attention.columns(),
        }
        row = {
            "step": trainer.global_step,
            "loss": report.loss,
            "learning_rate": report.learning_rate,
            "gradient_norm": report.gradient_norm,
            "skipped_steps": module.skipped.count,
            "samples_per_second": sum(r.samples for r in reports) / seconds,
            "tokens_per_second": sum(r.tokens for r in reports) / seconds,
            "images_per_second": sum(r.images for r in reports) / seconds,
            "fill_rate": sum(r.tokens for r in reports) / max(1, sum(r.positions for r in reports)),
            "seconds": now - self._start,
            **self._rates,
            **({} if module.loss_scale is None else {"loss_scale": module.loss_scale}),
            **memory_columns(module.device),
            **fetched(on_device),
        }
        if self.utilization is not None:
            works = [Work(r.rows, r.tokens, r.images, r.trained) for r in reports]
            row["mfu"] = self.utilization.share(works, seconds)
        for columns in self.more:
            row |= columns()
        self._since, self._reports = time.perf_counter(), []
        return row


def gate_columns(model: VisionLanguageModel) -> dict[str, Tensor]:
    """{"gate/<layer>/attention": tanh of the gate, "gate/<layer>/feed_forward": ...}, on the device."""
    columns: dict[str, Tensor] = {}
    for layer, block in model.blocks.items():
        for branch, gate in (
            ("attention", block.attention_gate),
            ("feed_forward", block.feed_forward_gate),
        ):
            columns[f"gate/{layer}/{branch}"] = opened(gate)
    return columns


def memory_columns(device: torch.device) -> Row:
    """The most that this process has taken so far, in GB (10**9 bytes)."""
    columns: Row = {}
    if sys.platform != "win32":
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        columns["memory/process_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GB
    if device.type == "cuda":
        columns["memory/device_gb"] = torch.cuda.max_memory_allocated(device) / GB
    return columns


def fetched(columns: Mapping[str, Tensor]) -> Row:
    """The numbers behind scalars on the device, which is waited for once; what is no number is left out."""
    if not columns:
        return {}
    device = next(iter(columns.values())).device
    values = torch.stack([value.to(device, torch.float32) for value in columns.values()]).tolist()
    return {name: value for name, value in zip(columns, values, strict=True) if value == value}
