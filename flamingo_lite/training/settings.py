"""What a run of training is told: its stage, how it runs, and all that goes with it. Bad values end here."""

from dataclasses import dataclass, field
from typing import Any

import torch

from flamingo_lite.data.make import DataConfig
from flamingo_lite.errors import FlamingoError
from flamingo_lite.evaluation.grid import EvaluationConfig
from flamingo_lite.models.build import ModelConfig
from flamingo_lite.names import check_choice
from flamingo_lite.training.loss_means import LOSS_MEANS
from flamingo_lite.training.optim import OptimizerConfig
from flamingo_lite.training.tracking import WandbConfig

MODEL = "flamingo"
"""The folder of the saved model in a run's output."""

PRECISIONS = ("32-true", "16-mixed", "bf16-mixed", "bf16-true")
STRATEGIES = ("auto", "ddp", "fsdp2")
AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
"""The type that operations are done in under the precisions that are mixed."""
FROZEN_DTYPES: dict[str, tuple[str, ...]] = {
    "bf16-mixed": ("float32", "bfloat16"),
    "16-mixed": ("float32", "float16"),
}
"""The types that frozen parameters may be held in, by the precisions that leave a choice."""
RESUME = ("auto", "never")


def small_evaluation() -> EvaluationConfig:
    """A few seconds of few-shot questions: whether demonstrations help yet."""
    return EvaluationConfig(
        splits=["test"],
        styles=["direct"],
        shots=[0, 4],
        seeds=[0],
        conditions=["standard"],
        queries=50,
        resamples=200,
    )


@dataclass
class StageConfig:
    """What is learned: for how long, from how many rows a step, by which optimizer.

    `batch_size`: rows of one optimizer step, over all devices and accumulated batches; a row is a document, or several
    where they are packed. `epochs`: how often each document comes, in place of `steps`; not with weighted sources.
    `start`: a saved model to continue from, instead of one built from the model's config. `max_length`: documents are
    cut there (by default at the language model's context). `pack`: documents share rows, so that little is padding;
    refused by name where the language model cannot keep them apart. `row_length`: tokens of such a row (by default
    `max_length`; a longer document has a row to itself); `images_per_row`: at most (by default without limit);
    `pack_window`: consecutive documents that are packed together.
    `loss_mean`: "tokens": every trained-on token of a step counts its source's loss_weight, and the loss is their weighted
    mean; "sources": the mean over each source's tokens, times its loss_weight, added up.
    `template`: fields of the model's template that the stage changes (conversation: v1), `image_transform`: those of how
    images are prepared (resize_mode: pad); they are saved with the model.
    `policy`: what trains, unless empty in place of the model's own policy (model.policy, or that of `start`).
    `samples`: how many documents the model continues for the table of samples, every `samples_every` steps and at the
    end (0: at the end alone). `evaluate_every`: after how many steps the few-shot `evaluation` is run, and at the end
    (0: never); neither changes the training. `keep`: how many of the last
    checkpoints stay, beside the one of the lowest loss. `max_skipped_steps`: a step whose loss or gradient is no
    number is skipped; one more than these stops the run (those that a loss scale explains are not counted).
    """

    steps: int = 300
    epochs: int | None = None
    batch_size: int = 32
    max_length: int | None = None
    start: str | None = None
    pack: bool = False
    row_length: int | None = None
    images_per_row: int | None = None
    pack_window: int = 1024
    log_every: int = 10
    checkpoint_every: int = 100
    keep: int = 2
    max_skipped_steps: int = 10
    loss_mean: str = "tokens"
    samples: int = 8
    samples_every: int = 0
    evaluate_every: int = 0
    evaluation: EvaluationConfig = field(default_factory=small_evaluation)
    template: dict[str, Any] = field(default_factory=dict)
    image_transform: dict[str, Any] = field(default_factory=dict)
    policy: dict[str, Any] = field(default_factory=dict)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        for name in (
            *("steps", "epochs", "batch_size", "max_length", "row_length", "images_per_row"),
            *("pack_window", "log_every", "checkpoint_every", "keep"),
        ):
            if (value := getattr(self, name)) is not None and value < 1:
                raise FlamingoError(f"stage.{name} is {value}; expected 1 or more")
        check_choice("value of stage.loss_mean:", self.loss_mean, LOSS_MEANS)
        for name in ("max_skipped_steps", "samples", "samples_every", "evaluate_every"):
            if getattr(self, name) < 0:
                raise FlamingoError(f"stage.{name} is {getattr(self, name)}; expected 0 or more")


@dataclass
class TrainerConfig:
    """Where and how it runs. `threads`: 0 = one per core; `workers`: processes that prepare batches.

    A step's rows go through each device in `accumulate` equal parts, one after the other. `precision`: 32-true and
    bf16-true hold and compute all in one type; under the mixed ones what trains is held in float32, and `frozen_dtype`
    is the type of frozen weights (null: that in which they were loaded). `checkpoint_activations`: decoder layers and
    blocks are computed again in the backward pass. `compile`: the decoder stack goes through torch.compile.
    `devices`: of each node, one process each; 0 = as many as torchrun or srun has started, else one. `strategy`: "ddp"
    (every device holds the model), "fsdp2" (every device holds its share of each layer); "auto" is ddp where there are
    several. `timeout_minutes`: how long ranks wait for each other before the run ends.
    `peak_flops`: operations a second that a device could do at most, for the share of it that the model uses; by default
    NVIDIA's figures for 16 bits, where they are known.
    """

    accelerator: str = "auto"
    devices: int = 0
    nodes: int = 0
    strategy: str = "auto"
    timeout_minutes: float = 30.0
    precision: str = "32-true"
    frozen_dtype: str | None = None
    checkpoint_activations: bool = False
    compile: bool = False
    accumulate: int = 1
    deterministic: bool = True
    threads: int = 0
    workers: int = 1
    peak_flops: float | None = None

    def __post_init__(self) -> None:
        check_choice("value of trainer.accelerator:", self.accelerator, ("auto", "cpu", "cuda", "gpu", "mps"))
        check_choice("value of trainer.precision:", self.precision, PRECISIONS)
        if self.frozen_dtype is not None:
            fitting = FROZEN_DTYPES.get(self.precision, ())
            if self.frozen_dtype not in fitting:
                raise FlamingoError(
                    f"trainer.frozen_dtype is {self.frozen_dtype}; under trainer.precision={self.precision} expected "
                    f"{' or '.join(('null', *fitting))}"
                )
        check_choice("value of trainer.strategy:", self.strategy, STRATEGIES)
        for name in ("devices", "nodes", "threads", "workers"):
            if getattr(self, name) < 0:
                raise FlamingoError(f"trainer.{name} is {getattr(self, name)}; expected 0 or more")
        if self.accumulate < 1:
            raise FlamingoError(f"trainer.accumulate is {self.accumulate}; expected 1 or more")
        if self.peak_flops is not None and not self.peak_flops > 0:
            raise FlamingoError(f"trainer.peak_flops is {self.peak_flops}; expected more than 0, or null")
        if not self.timeout_minutes > 0:
            raise FlamingoError(f"trainer.timeout_minutes is {self.timeout_minutes}; expected more than 0")
        if self.strategy == "fsdp2" and self.compile:
            raise FlamingoError(
                "trainer.strategy=fsdp2 does not go with trainer.compile, which would see layers that are not gathered; "
                "leave one of them out"
            )
        if self.strategy == "fsdp2" and self.precision == "16-mixed":
            raise FlamingoError(
                "trainer.strategy=fsdp2 does not go with trainer.precision=16-mixed, whose loss scale would be each "
                "rank's own; use bf16-mixed, or trainer.strategy=ddp"
            )


@dataclass
class TrainingConfig:
    """All that `run_stage` reads. `resume`: "auto" continues what is in `output`, "never" starts over."""

    name: str = "quickstart"
    output: str = "outputs/quickstart"
    seed: int = 0
    resume: str = "auto"
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    stage: StageConfig = field(default_factory=StageConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)

    def __post_init__(self) -> None:
        check_choice("value of resume:", self.resume, RESUME)
        if self.trainer.strategy == "fsdp2" and self.data.features.directory is not None:
            raise FlamingoError(
                "data.features does not go with trainer.strategy=fsdp2: ranks gather the vision encoder together, and one "
                "that knows its images would leave the others waiting; use trainer.strategy=ddp, or "
                "data.features.directory=null"
            )
        if self.trainer.strategy == "fsdp2" and self.stage.optimizer.muon_factor is not None:
            raise FlamingoError(
                "stage.optimizer.muon_factor does not go with trainer.strategy=fsdp2, where a rank has only a part of each "
                "matrix; use trainer.strategy=ddp, or muon_factor=null"
            )


def torch_device(accelerator: str, setting: str = "trainer.accelerator=") -> torch.device:
    """The device that Lightning's name for it means; "auto" takes the fastest that there is. `setting`: what named
    it, for the message."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return torch.device("cuda")
    if accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return torch.device("mps")
    if accelerator in ("auto", "cpu"):
        return torch.device("cpu")
    raise FlamingoError(f"{setting}{accelerator}: there is no such device here; auto or cpu will do")
