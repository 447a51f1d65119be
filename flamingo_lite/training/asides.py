"""What is done beside training every so many steps: prompts are continued, and a small few-shot evaluation is run.

Neither changes a bit of the training: random generators are put back, and so is the model's mode. The first rank does
it while the others wait; where each rank holds a share of the model, all of them generate together.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import numpy as np
import torch

from flamingo_lite.document import Document
from flamingo_lite.evaluation.answering import ModelAnswers
from flamingo_lite.evaluation.grid import EvaluationConfig
from flamingo_lite.evaluation.panels import column_part
from flamingo_lite.evaluation.runner import evaluate
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.processing import VisionLanguageProcessor
from flamingo_lite.training.beside import Beside
from flamingo_lite.training.callbacks import Row
from flamingo_lite.training.module import TrainingModule
from flamingo_lite.training.ranks import Ranks
from flamingo_lite.training.samples import Prompt, SampleHistory, choose_prompts, continue_prompts
from flamingo_lite.training.sharding import ShardedStrategy
from flamingo_lite.training.tracking import Tracker

FEW_SHOT = "few_shot"
"""The folder of the evaluations, one in each of its own: step-<step>/results.json and samples.jsonl."""

Aside = Callable[[VisionLanguageModel, int, bool], Row]
"""(model, step, whether all ranks generate together) -> columns."""


class Asides(lightning.Callback):
    """Calls each of `asides` at every step that its period divides, and at the last; period 0: at the last alone.

    `columns` hands over what they found, once. `paused`: holds the clock meanwhile.
    """

    def __init__(
        self,
        asides: Sequence[tuple[int, Aside]],
        ranks: Ranks,
        paused: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self.asides = list(asides)
        self.ranks = ranks
        self.paused = paused
        self._found: Row = {}

    @property
    def periods(self) -> list[int]:
        return [period for period, _ in self.asides if period]

    def columns(self) -> Row:
        found, self._found = self._found, {}
        return found

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        assert isinstance(pl_module, TrainingModule)
        if pl_module.report is None:
            return
        step = trainer.global_step
        due = [
            aside
            for period, aside in self.asides
            if step == trainer.max_steps or (period and step % period == 0)
        ]
        if not due:
            return
        together = isinstance(trainer.strategy, ShardedStrategy)
        # Outside a training step nothing casts what frozen parts in a narrow type are to meet. Prompts that grow token
        # by token would be compiled over and over.
        eager = torch.compiler.set_stance("force_eager")
        with self.paused(), undisturbed(), trainer.precision_plugin.forward_context(), eager:

            def work() -> Row:
                found = self._found
                for aside in due:
                    found |= aside(pl_module.model, step, together)
                return found

            def work_alone(is_alive: Callable[[], None]) -> Row:
                with each_forward(pl_module.model, is_alive):
                    return work()

            # Every rank's row is the same.
            if together:
                with root_gathered(pl_module.model):
                    found = work()
                self._found = self.ranks.broadcast(found)
            else:
                self._found = self.ranks.first_alone(work_alone)


def few_shot(
    processor: VisionLanguageProcessor, config: EvaluationConfig, directory: Path | None, beside: Beside
) -> Aside:
    """An evaluation in columns few_shot/<task>/<split>/<style>/<condition>/<shots>_shots: the share of right answers.

    Its files go into a folder of its own in `directory`.
    """

    def run(model: VisionLanguageModel, step: int, together: bool) -> Row:
        options: dict[str, Any] = {"synced_gpus": True} if together else {}

        folder = None if directory is None else directory / FEW_SHOT / f"step-{step:08d}"
        asked = ModelAnswers(model, processor, config.batch_size, options=options)
        with beside.writing(f"{directory}/{FEW_SHOT}"):
            return few_shot_columns(evaluate(asked.generate, config, folder, rank=asked.rank))
        return {}

    return run


def few_shot_columns(results: Mapping[str, Any]) -> Row:
    """A column per cell; a cell in which every prediction failed has none."""
    keys = ("task", "split", "style", "condition")
    return {
        "/".join([FEW_SHOT, *(column_part(cell[key]) for key in keys), f"{cell['shots']}_shots"]): cell[
            "value"
        ]
        for cell in results["cells"]
        if cell["value"] is not None
    }


def continued(
    processor: VisionLanguageProcessor,
    documents: Callable[[], Iterable[Document]],
    count: int,
    history: SampleHistory | None,
    tracker: Tracker,
    beside: Beside,
) -> Aside:
    """The first `count` prompts of `documents` continued, for the table of samples; no columns."""
    chosen: list[Prompt] = []

    def run(model: VisionLanguageModel, step: int, together: bool) -> Row:
        if not chosen:
            chosen.extend(choose_prompts(model, processor, documents(), count))
        samples = continue_prompts(model, processor, chosen, step, together)
        if history is not None:
            history.add(samples, chosen)
            with beside.writing("the table of samples for W&B"):
                tracker.log_samples(history, step)
        return {}

    return run


@contextmanager
def undisturbed() -> Iterator[None]:
    """Whatever is drawn inside, the generators stand after it where they stood before."""
    states = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


@contextmanager
def each_forward(model: VisionLanguageModel, then: Callable[[], None]) -> Iterator[None]:
    """Calls `then` whenever the model, or its vision encoder, computes: at every token and every batch of images."""
    hooks = [part.register_forward_pre_hook(lambda *_: then()) for part in (model, model.vision)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def root_gathered(model: Any) -> Iterator[None]:
    """FSDP2 gathers a layer when it runs; what lies in none (embeddings, connector) it gathers with the whole model's
    forward, past which prompts' images are encoded.
    """
    model.unshard()
    try:
        yield
    finally:
        model.reshard()
