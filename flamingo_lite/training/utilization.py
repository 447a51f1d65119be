"""Model FLOPs utilization: the arithmetic that the model needs for what it read, beside what the devices could do.

What a step takes is fitted to a few steps on fake tensors (`trial.py`), so that counting costs a running step nothing.
Padding, and layers that are computed a second time, are no use and are left out (PaLM, appendix B).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from flamingo_lite.batch import IGNORED
from flamingo_lite.models.adapters import has_quantized
from flamingo_lite.models.language import context_length
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.training.sharding import skeleton
from flamingo_lite.training.trial import StepShape, run_trial, step_inputs

PEAK_FLOPS = {
    "GB200": 2.5e15, "B200": 2.25e15, "H200": 9.89e14, "H100 PCIe": 7.56e14, "H100 NVL": 8.35e14, "H100": 9.89e14,
    "A100": 3.12e14, "A40": 1.497e14, "A10G": 7e13, "L40S": 3.62e14, "L4": 1.21e14, "V100": 1.25e14, "T4": 6.5e13,
}  # fmt: skip
"""Dense operations a second in 16 bits with float32 sums, by a part of the device's name; from NVIDIA's data sheets."""

LENGTHS = (64, 128)
MOST_IMAGES = 2


@dataclass(frozen=True)
class Work:
    """What batches held: rows, tokens without padding, images, trained-on tokens."""

    rows: int
    tokens: int
    images: int
    trained: int

    @property
    def features(self) -> list[float]:
        """What the arithmetic is a sum of: per token, per pair of tokens of a row, per image, per token and image."""
        length, images = self.tokens / max(1, self.rows), self.images / max(1, self.rows)
        return [self.tokens, self.tokens * length, self.images, self.tokens * images]


@dataclass(frozen=True)
class StepFlops:
    """Operations of a forward and backward pass: `shares` of each of a work's features, `head` per trained-on token."""

    shares: tuple[float, ...]
    head: float

    def __call__(self, work: Work) -> float:
        return float(np.dot(self.shares, work.features)) + self.head * work.trained


def known_peak(device: torch.device, precision: str) -> float | None:
    """Operations a second that `device` could do under trainer.precision; None where that is not known."""
    if device.type != "cuda" or precision == "32-true":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)


def step_flops(model: VisionLanguageModel, precision: str) -> StepFlops | None:
    """The arithmetic of `model` as it trains now; None for quantized weights, which no fake tensor stands for."""
    if has_quantized(model):
        return None
    # A copy: run_trial replaces the weights of what it is given.
    bare = skeleton(model).train()
    marks = model.connector.tokens if model.fusion.replaces_marks else 1
    limit = context_length(model.language.config)
    shortest = marks * MOST_IMAGES
    lengths = [max(length, shortest) + length for length in LENGTHS]
    if limit is not None and max(lengths) > limit:
        lengths = [limit // 2, limit]
    sizes = [(lengths[0], 1), (lengths[1], 1), (lengths[1], MOST_IMAGES)]
    if model.fusion.sees == "all_previous":  # alone, a position's arithmetic grows with the images before it
        sizes.append((lengths[0], MOST_IMAGES))
    shapes = [StepShape(length, images, precision) for length, images in sizes]
    works = [_work(bare, shape) for shape in shapes]
    head = head_flops(model)
    found = [sum(run_trial(bare, shape, 1).flops.values()) for shape in shapes]
    rest = [flops - head * work.trained for flops, work in zip(found, works, strict=True)]
    # The last feature is left out where nothing was varied that would tell it from the others.
    shares = _fitted([work.features[: len(works)] for work in works], rest)
    return StepFlops((*shares, *[0.0] * (4 - len(shares))), head)


def head_flops(model: VisionLanguageModel) -> float:
    """Of one trained-on position: the product, its gradient for the states, and for the matrix where that trains."""
    text = model.config.text_config.get_text_config()
    matrix = model.language.get_output_embeddings()
    trains = matrix is not None and matrix.weight.requires_grad
    return 2.0 * text.hidden_size * text.vocab_size * (3 if trains else 2)


def _work(model: VisionLanguageModel, shape: StepShape) -> Work:
    labels = step_inputs(model, shape, 1)["labels"]
    return Work(1, shape.length, shape.images, int((labels[:, 1:] != IGNORED).sum()))


def _fitted(features: Sequence[Sequence[float]], values: Sequence[float]) -> tuple[float, ...]:
    matrix = np.asarray(features, dtype=np.float64)
    scale = matrix.max(axis=0)  # a pair of tokens is counted in thousands, an image in ones
    return tuple(np.linalg.lstsq(matrix / scale, np.asarray(values), rcond=None)[0] / scale)


@dataclass
class Utilization:
    """Work added up, and the share of `peak` (operations a second of all devices) that it took."""

    flops: StepFlops
    peak: float

    def share(self, works: Sequence[Work], seconds: float) -> float:
        return sum(map(self.flops, works)) / (self.peak * seconds)


def utilization(
    model: VisionLanguageModel, precision: str, device: torch.device, peak: float | None, devices: int
) -> Utilization | None:
    """For `devices` devices like `device`; `peak`: operations a second of one, by default what is known of it.

    None where no peak is known, or what a step takes cannot be counted.
    """
    peak = peak or known_peak(device, precision)
    flops = step_flops(model, precision) if peak else None
    return Utilization(flops, peak * devices) if peak and flops else None
