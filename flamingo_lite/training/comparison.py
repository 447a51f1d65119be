"""Systems that are compared: what they are trained on is one budget, of documents or of arithmetic, however unlike they are.

All see the same documents in the same order, about as many in each step. Where documents share rows, a system whose
images take more positions gets longer rows, not smaller steps.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from flamingo_lite.batch import IGNORED
from flamingo_lite.checkpoints import io as checkpoints
from flamingo_lite.data.encoding import encode_for_training, source_template
from flamingo_lite.data.lengths import Measure, index_lengths
from flamingo_lite.data.mixing import SourceConfig
from flamingo_lite.data.shards import Shards
from flamingo_lite.errors import FlamingoError, SampleError
from flamingo_lite.models.build import build_processor
from flamingo_lite.models.language import context_length
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.models.policy import apply_policy
from flamingo_lite.processing import VisionLanguageProcessor
from flamingo_lite.training.datamodule import ONLY_SOURCE
from flamingo_lite.training.measuring import use_stage
from flamingo_lite.training.plan import Part, meta_model, parts_of
from flamingo_lite.training.settings import TrainingConfig
from flamingo_lite.training.sharding import skeleton
from flamingo_lite.training.utilization import StepFlops, Work, step_flops

SAMPLED = 512
"""Documents whose arithmetic is counted, to stand for all."""


@dataclass
class SystemConfig:
    """A system by name: a preset of model= or experiment=, and overrides that are its own."""

    preset: str = ""
    overrides: list[str] = field(default_factory=list)


@dataclass
class ComparisonConfig:
    """`samples`: the documents that each system is trained on, each once. `flops`: the arithmetic of each system's
    training in place of that (a multiply-add is two); documents then come as often as it takes. `documents`: of one
    step. `seeds`: of training. `jobs`: runs at a time; 0 = one per core. `same_media_tokens`: systems whose images
    become unlike numbers of tokens are refused.
    """

    systems: dict[str, SystemConfig] = field(default_factory=dict)
    samples: int = 8000
    flops: float | None = None
    documents: int = 32
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    jobs: int = 0
    same_media_tokens: bool = True

    def __post_init__(self) -> None:
        for name in ("samples", "documents"):
            if getattr(self, name) < 1:
                raise FlamingoError(f"compare.{name} is {getattr(self, name)}; expected 1 or more")
        if self.flops is not None and not self.flops > 0:
            raise FlamingoError(f"compare.flops is {self.flops}; expected more than 0, or null")
        if self.jobs < 0:
            raise FlamingoError(f"compare.jobs is {self.jobs}; expected 0 (one per core) or more")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise FlamingoError(f"compare.seeds is {self.seeds}; expected different seeds, at least one")


@dataclass(frozen=True)
class SystemPlan:
    """What a system is and what its training takes. `tokens`: of a document on average; `flops`: of all training,
    `flops_by_document` of one document, forward and backward; None for quantized weights, which are not counted.
    """

    config: TrainingConfig
    parts: dict[str, Part]
    media_tokens: int
    tokens: float
    documents: int
    steps: int
    flops_by_document: float | None

    @property
    def parameters(self) -> int:
        return sum(part.parameters for part in self.parts.values())

    @property
    def trainable(self) -> int:
        return sum(part.trainable for part in self.parts.values())

    @property
    def flops(self) -> float | None:
        return None if self.flops_by_document is None else self.flops_by_document * self.documents


def plan_systems(systems: Mapping[str, TrainingConfig], compare: ComparisonConfig) -> dict[str, SystemPlan]:
    """The plan of each system, whose config says what training uses the budget up.

    Errors: `FlamingoError` for fewer documents than the budget, for arithmetic that cannot be counted, and for unlike
    numbers of media tokens.
    """
    bare = {name: _bare(config) for name, config in systems.items()}
    counts = {name: model.connector.tokens for name, (model, _) in bare.items()}
    if compare.same_media_tokens and len(set(counts.values())) > 1:
        shown = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise FlamingoError(
            f"an image becomes unlike numbers of tokens ({shown}), so that more than the fusion is compared; set a "
            "resampler's NAME/model.connector.latents=, or compare.same_media_tokens=false"
        )
    return {name: _plan(config, compare, *bare[name]) for name, config in systems.items()}


def _plan(
    config: TrainingConfig,
    compare: ComparisonConfig,
    model: VisionLanguageModel,
    processor: VisionLanguageProcessor,
) -> SystemPlan:
    stage = config.stage
    template = source_template(processor, {}, ONLY_SOURCE)
    shards = Shards(config.data.directory)
    if compare.flops is None and len(shards) < compare.samples:
        raise FlamingoError(
            f"compare.samples is {compare.samples:,}, but {config.data.directory} holds {len(shards):,} documents; ask for "
            "at most so many, or draw more into another folder"
        )
    longest = stage.max_length or context_length(model.language.config)
    measure = Measure(processor, template, longest)
    tokens, images = index_lengths(shards, measure).take(np.arange(min(len(shards), compare.samples)))
    mean_tokens = float(tokens[tokens > 0].mean()) if tokens.any() else 0.0
    counted = step_flops(model, config.trainer.precision)
    by_document = _flops_by_document(counted, shards, measure) if counted else None
    documents, steps = _extent(compare, by_document)
    changed: dict[str, Any] = {"steps": steps, "epochs": 1 if compare.flops is None else None}
    if not stage.pack:
        changed["batch_size"] = compare.documents
    else:
        changed["row_length"] = math.ceil(mean_tokens * compare.documents / stage.batch_size)
    source = SourceConfig(config.data.directory, samples=min(len(shards), compare.samples))
    return SystemPlan(
        config=replace(
            config,
            stage=replace(stage, **changed),
            data=replace(config.data, sources={ONLY_SOURCE: source}),
        ),
        parts=parts_of(model),
        media_tokens=model.connector.tokens,
        tokens=mean_tokens,
        documents=documents,
        steps=steps,
        flops_by_document=by_document,
    )


def _bare(config: TrainingConfig) -> tuple[VisionLanguageModel, VisionLanguageProcessor]:
    """The model that training starts from, without its weights, as the policy sets it; and its processor, which writes
    as the stage does."""
    stage = config.stage
    if stage.start is None:
        model = meta_model(replace(config.model, policy=stage.policy or config.model.policy))
        processor = build_processor(config.model)
    else:
        loaded, processor = checkpoints.load(stage.start)
        model = skeleton(loaded).train()
        apply_policy(model, stage.policy or model.config.policy)
    use_stage(processor, stage)
    return model, processor


def _extent(compare: ComparisonConfig, by_document: float | None) -> tuple[int, int]:
    """How many documents, in how many steps."""
    if compare.flops is None:
        return compare.samples, math.ceil(compare.samples / compare.documents)
    if by_document is None:
        raise FlamingoError(
            "compare.flops needs arithmetic that can be counted, and that of quantized weights cannot; give "
            "compare.samples alone"
        )
    steps = max(1, round(compare.flops / (by_document * compare.documents)))
    return steps * compare.documents, steps


def _flops_by_document(counted: StepFlops, shards: Shards, measure: Measure) -> float:
    """The mean over documents spread evenly over the shards."""
    found = []
    for number in np.unique(np.linspace(0, len(shards) - 1, SAMPLED).astype(int)).tolist():
        try:
            key, document = shards[number]
            encoded = encode_for_training(
                measure.processor, document, measure.template, measure.max_length, key
            )
        except SampleError:
            continue
        trained = sum(label != IGNORED for label in encoded.labels[1:])
        found.append(counted(Work(1, len(encoded), len(encoded.images), trained)))
    if not found:
        raise FlamingoError(f"{shards.store.location}: none of the documents can be trained on")
    return float(np.mean(found))


def folder_of(output: str | Path, system: str, seed: int) -> Path:
    """Where a system's run under a seed lies in the comparison's output."""
    return Path(output) / system / f"seed_{seed}"
