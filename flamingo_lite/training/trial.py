"""A training step on fake tensors: what it computes and how much of it lives at once, without computing anything.

The step is the model's own forward and backward, so whatever autograd keeps is counted as it is kept: the scores of an
eager attention, the narrow copies of weights under autocast, the logits of one chunk. A formula would have to know all
of that for every family, and would be wrong at the next release of any of them.
Shape letters: b rows, t text positions, m images in the whole batch, n media tokens per image.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from flamingo_lite.batch import IGNORED, NO_IMAGE
from flamingo_lite.errors import FlamingoError
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.models.policy import BLOCKS, CONNECTOR, LANGUAGE, VISION
from flamingo_lite.training.flops import FlopsByPart
from flamingo_lite.training.live_bytes import LiveBytes
from flamingo_lite.training.settings import AUTOCAST


@dataclass(frozen=True)
class StepShape:
    """`length`: text positions of a row (t), `images`: of a row, evenly spread; `packed`: documents share rows."""

    length: int
    images: int
    precision: str = "32-true"
    packed: bool = False


@dataclass(frozen=True)
class Trial:
    """Of one forward and backward pass. `activations`: most bytes that live at once beside weights and gradients;
    `peak`: the same with the gradients that exist by then. `flops`: by part, a multiply-add counted as two.
    """

    activations: int
    peak: int
    flops: dict[str, int]


def run_trial(model: VisionLanguageModel, shape: StepShape, rows: int) -> Trial:
    """One step of `rows` rows. `model` is on the meta device, as the policy sets it; it is left without numbers,
    and may be used again. Raises FlamingoError where the images do not fit into the rows.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    _use_fake_weights(model, mode)
    weights = [*model.parameters(), *model.buffers()]
    counter = FlopsByPart(_part_modules(model))
    inputs = step_inputs(model, shape, rows, mode)
    with counter, LiveBytes(weights) as live, _gradients_counted(model, live):
        live.add(inputs.values())
        with autocast(shape.precision):
            loss = model.train()(**inputs).loss
        loss.backward()
    for parameter in model.parameters():
        parameter.grad = None
    flops = {name or LANGUAGE: count for name, count in sorted(counter.flops.items(), key=str)}
    return Trial(live.most_activations, live.most, flops)


def autocast(precision: str, device: str = "cpu") -> AbstractContextManager[Any]:
    """What Lightning runs the forward pass in under `precision`."""
    return torch.autocast(device, AUTOCAST[precision]) if precision in AUTOCAST else nullcontext()


def step_inputs(
    model: VisionLanguageModel, shape: StepShape, rows: int, mode: AbstractContextManager[Any] | None = None
) -> dict[str, Tensor]:
    """The fields of a batch of full rows. With `mode`, whatever no decision hangs on is made in it (fake)."""
    marks = model.connector.tokens if model.fusion.replaces_marks else 1
    if shape.images * marks > shape.length:
        raise FlamingoError(
            f"plan.length is {shape.length}, but {shape.images} images take {shape.images * marks} positions of a row; "
            "give a longer plan.length or fewer plan.images"
        )
    starts = [image * shape.length // max(shape.images, 1) for image in range(shape.images)]
    ids = torch.full((rows, shape.length), 0 if model.config.image_token_id else 1)
    index = torch.full((rows, shape.length), NO_IMAGE)
    first_of_row = torch.arange(rows)[:, None] * shape.images
    for number, start in enumerate(starts):
        ids[:, start : start + marks] = model.config.image_token_id
        index[:, start:] = first_of_row + number
    labels = ids.masked_fill(ids == model.config.image_token_id, IGNORED)
    labels[:, 0] = IGNORED
    inputs = {"input_ids": ids, "labels": labels, "media_index": index}
    weight = next(model.vision.parameters())
    with mode or nullcontext():
        # Pixels are float32 in a batch, whatever the model's type is.
        size = (rows * shape.images, 3, *model.vision.image_size)
        inputs["pixel_values"] = torch.zeros(size, device=weight.device)
    if shape.packed:
        with mode or nullcontext():
            inputs["segment_ids"] = torch.zeros((rows, shape.length), dtype=torch.int64)
            inputs["attention_mask"] = torch.ones((rows, shape.length), dtype=torch.bool)
        inputs["media_first"] = first_of_row.expand(rows, shape.length).masked_fill(index < 0, NO_IMAGE)
    else:
        inputs["attention_mask"] = torch.ones((rows, shape.length), dtype=torch.bool)
    return inputs


def _part_modules(model: VisionLanguageModel) -> dict[nn.Module, str]:
    blocks = dict.fromkeys(model.blocks.values(), BLOCKS)
    return {model.vision: VISION, model.connector: CONNECTOR, **blocks}


@contextmanager
def _gradients_counted(model: nn.Module, live: LiveBytes) -> Iterator[None]:
    def mark(parameter: Tensor) -> None:
        assert parameter.grad is not None
        live.is_gradient(parameter.grad)

    trainable = [p for p in model.parameters() if p.requires_grad]
    handles = [p.register_post_accumulate_grad_hook(mark) for p in trainable]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _use_fake_weights(model: nn.Module, mode: FakeTensorMode) -> None:
    """Replace parameters and buffers by fake ones of the CPU, whose attention keeps what a GPU's flash attention
    keeps. Parameters that are shared stay shared.
    """
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                if id(parameter) not in made:
                    with mode:
                        fake = torch.empty_like(parameter, device="cpu")
                    made[id(parameter)] = nn.Parameter(fake, requires_grad=parameter.requires_grad)
                module._parameters[name] = made[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                with mode:
                    module._buffers[name] = torch.empty_like(buffer, device="cpu")
