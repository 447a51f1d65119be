"""The thin LightningModule: one training step, one optimizer, and a checkpoint that holds what trains.

The loss of an optimizer step is the (weighted) sum over its trained-on tokens divided by their number (or weights),
over all ranks and accumulated batches: a batch of long answers weighs more than one of short ones. Or it is the sum of
the means of the sources of data (loss_means.py).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from signal import SIGTERM, SIGUSR1, Signals
from typing import Any

import lightning.pytorch as lightning
import torch
from torch import Tensor, nn

from flamingo_lite.data.features import FeatureCache
from flamingo_lite.data.prepared import PreparedBatch
from flamingo_lite.errors import FlamingoError
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.models.policy import frozen_sha256
from flamingo_lite.models.prefix_fusion import MarksError
from flamingo_lite.nn.whole import whole
from flamingo_lite.training.features import complete
from flamingo_lite.training.loss_means import SourceMeans, trained_items
from flamingo_lite.training.optim import OptimizerConfig, build_optimizer
from flamingo_lite.training.ranks import Ranks
from flamingo_lite.training.sharding import local
from flamingo_lite.training.skipping import Part, SkippedSteps

RANDOM_STATES = "random_states"
FROZEN_HASHES = "frozen_sha256"
SKIPPED, SKIPPED_BY_SCALE = "skipped_steps", "skipped_by_scale"

SIGNALS = (SIGTERM, SIGUSR1)
"""Those that ask a run to save and stop."""


@dataclass
class StepReport:
    """What one optimizer step did, over all ranks. `signal`: one that asks to stop, if any rank has received it.

    `positions`: of the batches, `tokens`: those that are no padding, `trained`: those that the loss is of.
    """

    loss: float
    gradient_norm: float
    learning_rate: float
    samples: int
    tokens: int
    images: int
    rows: int
    positions: int
    trained: int
    skipped: bool = False
    signal: Signals | None = None


class TrainingModule(lightning.LightningModule):
    """Trains `model` for `steps` optimizer steps of `accumulate` batches each.

    `report` is the last step's, None while a step is unfinished. `notes` go into each checkpoint as they are.
    `on_gradients` is called once per step, when gradients are whole and not clipped yet. `source_loss_weights`: where the
    loss is to be the sum of the sources' means, of each.
    """

    def __init__(
        self,
        model: VisionLanguageModel,
        optimizer: OptimizerConfig,
        steps: int,
        accumulate: int = 1,
        features: FeatureCache | None = None,
        *,
        ranks: Ranks,
        skipped: SkippedSteps,
        notes: Mapping[str, Any],
        source_loss_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.features = features
        self.optimizer_config = optimizer
        self.steps = steps
        self.accumulate = accumulate
        self.ranks = ranks
        self.skipped = skipped
        self.notes = dict(notes)
        self.on_gradients: Callable[[torch.optim.Optimizer], None] = lambda optimizer: None
        self.means = None
        if source_loss_weights is not None:
            self.means = SourceMeans(source_loss_weights, self._added_up)
        self.signal: Signals | None = None
        self.report: StepReport | None = None
        # Frozen parameters are not in the checkpoint; `check_resumable` sees that nothing else is missing.
        self.strict_loading = False
        self.frozen_hashes = frozen_sha256(model)
        self._random_state: dict[str, Tensor] | None = None
        self._clear()

    def training_step(self, prepared: PreparedBatch, batch_index: int) -> dict[str, Tensor]:
        """The summed loss, which Lightning differentiates, and `token_losses` (b t) for whoever looks on."""
        self.report = None
        batch, weights = prepared.batch, prepared.loss_weights
        tokens = trained = trained_items(batch.labels, None)
        if self.means is not None:
            weights = self.means.weights(prepared, is_first=not self._losses)
        elif weights is not None:
            tokens = trained_items(batch.labels, weights)
        # num_items=1 gives the sum; `configure_gradient_clipping` divides by the tokens of the whole step.
        features = None
        if self.features is not None and prepared.known is not None:
            features = complete(self.model, self.features, prepared.known, batch.pixel_values)
        try:
            found = self.model(**batch, loss_weights=weights, num_items=1, vision_features=features)
        except MarksError as error:
            raise FlamingoError(f"sample {', '.join(prepared.names_of_row(error.row))}: {error}") from error
        loss = found.loss
        self._losses.append(loss.detach())
        self._sample_names.append(["/".join(sample) for sample in prepared.samples])
        self._trained_tokens = self._trained_tokens.to(loss.device) + tokens
        self._labels = self._labels.to(loss.device) + trained
        rows, images = len(batch.labels), len(batch.pixel_values)
        counts = (prepared.documents, prepared.tokens, images, rows, batch.labels.numel())
        self._counts = [known + more for known, more in zip(self._counts, counts, strict=True)]
        return {"loss": loss, "token_losses": found.token_losses}

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Lightning calls this once per optimizer step, gradients unscaled and reduced over the ranks."""
        totals = self._totals()
        # A step in which nothing is trained on has a loss of 0, not of nothing over nothing.
        trained_tokens = torch.where(totals[1] > 0, totals[1], 1)
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        # Lightning has divided by the accumulated batches, and DDP by the ranks.
        scale = (self.accumulate * self.ranks.number / trained_tokens).float()
        for parameter in parameters:
            assert parameter.grad is not None
            local(parameter.grad).mul_(scale)
        self.on_gradients(optimizer)
        limit = self.optimizer_config.gradient_clip or float("inf")
        norm = whole(nn.utils.clip_grad_norm_(parameters, limit)).to(totals)
        # The one place in a step that waits for the device.
        loss, norm, *numbers = torch.stack([totals[0] / trained_tokens, norm, *totals[2:]]).tolist()
        trained, samples, tokens, images, rows, positions, *signals = map(round, numbers)
        is_number = math.isfinite(loss) and math.isfinite(norm)
        received = [number for number, count in zip(SIGNALS, signals, strict=True) if count]
        self.report = StepReport(
            loss=loss,
            gradient_norm=norm,
            learning_rate=optimizer.param_groups[0]["lr"],
            samples=samples,
            tokens=tokens,
            images=images,
            rows=rows,
            positions=positions,
            trained=trained,
            skipped=not is_number,
            signal=received[0] if received else None,
        )
        if self.report.skipped:
            # The optimizer leaves out what has no gradient: neither weights nor moments move.
            optimizer.zero_grad(set_to_none=True)
            parts = zip(self._losses, self._sample_names, strict=True)
            mine = [Part(part.item(), names, self.ranks.rank) for part, names in parts]
            # The mean loss was multiplied by this; what Lightning hands on is the sum.
            multiplied = None if self.loss_scale is None else self.loss_scale / scale.item()
            self.skipped.add(self.trainer.global_step + 1, norm, mine, multiplied)
        self._clear()

    def _totals(self) -> Tensor:
        """Over all ranks: the summed loss, what it is divided by, `trained` to `positions` of a `StepReport`, and who
        received which signal.
        """
        asked = [self.signal is number for number in SIGNALS]
        device = self._trained_tokens.device
        kind = torch.float32 if device.type == "mps" else torch.float64
        counts = torch.tensor([*self._counts, *asked], dtype=kind, device=device)
        sums = [torch.stack(self._losses).sum(), self._trained_tokens, self._labels]
        sums = torch.stack([value.to(kind) for value in sums])
        return self._added_up(torch.cat([sums, counts]))

    def _added_up(self, values: Tensor) -> Tensor:
        return self.trainer.strategy.reduce(values, reduce_op="sum")

    @property
    def loss_scale(self) -> float | None:
        """By which the loss is multiplied before it is differentiated; None unless under 16-mixed."""
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        return None if scaler is None else scaler.get_scale()

    def configure_optimizers(self) -> Any:
        policy = self.model.config.policy
        optimizer, schedule = build_optimizer(self.model, self.optimizer_config, self.steps, policy)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def transfer_batch_to_device(
        self, batch: PreparedBatch, device: torch.device, dataloader_idx: int
    ) -> PreparedBatch:
        return batch.to(device, non_blocking=True)

    def on_train_start(self) -> None:
        # Only now: building the data loader and its workers draws from the same generators.
        if self._random_state is not None:
            _set_random_state(self._random_state)
        elif self.ranks.rank:  # ranks are seeded alike, and are to drop different things
            torch.manual_seed(torch.initial_seed() + 1_000_003 * self.ranks.rank + self.trainer.global_step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        trainable = trainable_names(self)
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trainable}
        checkpoint[FROZEN_HASHES] = self.frozen_hashes
        checkpoint[RANDOM_STATES] = self.ranks.gather(_get_random_state())
        checkpoint[SKIPPED] = self.skipped.count
        checkpoint[SKIPPED_BY_SCALE] = self.skipped.by_scale
        checkpoint |= self.notes

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_resumable(checkpoint, trainable_names(self), self.frozen_hashes)
        self.skipped.count = checkpoint[SKIPPED]
        self.skipped.by_scale = checkpoint.get(SKIPPED_BY_SCALE, 0)
        states = checkpoint[RANDOM_STATES]
        # A rank that the run did not have before goes on from its own seed.
        self._random_state = states[self.ranks.rank] if self.ranks.rank < len(states) else None

    def _clear(self) -> None:
        self._losses: list[Tensor] = []
        self._sample_names: list[list[str]] = []
        self._trained_tokens = torch.zeros(())
        self._labels = torch.zeros((), dtype=torch.int64)
        self._counts = [0, 0, 0, 0, 0]  # samples, tokens, images, rows, positions


def trainable_names(module: nn.Module) -> set[str]:
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


def check_resumable(
    checkpoint: Mapping[str, Any], trainable: set[str], frozen_hashes: Mapping[str, str]
) -> None:
    """Errors: `FlamingoError` when the checkpoint has other frozen parts or trains other parameters."""
    if checkpoint.get(FROZEN_HASHES) != dict(frozen_hashes):
        raise FlamingoError(
            "the checkpoint was trained on other frozen parameters than this model has; "
            "use the same backbones, or start over with resume=never"
        )
    if odd := trainable.symmetric_difference(checkpoint.get("state_dict", {})):
        raise FlamingoError(
            f"the checkpoint and this model train different parameters ({len(odd)}, such as {min(odd)}); "
            "use the same model and policy, or start over with resume=never"
        )


def _get_random_state() -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_random_state(state: dict[str, Tensor]) -> None:
    torch.set_rng_state(state["cpu"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())
