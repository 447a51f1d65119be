"""In which types a model is held while it trains, what is computed twice to save memory, and what is compiled.

Master weights, which the optimizer moves by less than a narrow type can tell, are float32 under every precision but
bf16-true. Frozen ones move never, and held in the type that autocast computes in they need no cast at each use.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from flamingo_lite.models.adapters import is_packed
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.models.parts import cast_parameters
from flamingo_lite.training.settings import AUTOCAST, TrainerConfig

WHOLE = {"32-true": torch.float32, "bf16-true": torch.bfloat16}
"""The precisions under which a model is held in one type."""


def prepare(model: VisionLanguageModel, trainer: TrainerConfig) -> None:
    """Makes `model` what `trainer` says; call it once, after the policy is applied."""
    hold(model, trainer.precision, trainer.frozen_dtype)
    if trainer.checkpoint_activations:
        checkpoint_activations(model)
    if trainer.compile:
        compile_layers(model)


def hold(model: nn.Module, precision: str, frozen_dtype: str | None = None) -> None:
    """Casts the parameters: to one type under 32-true and bf16-true; under the mixed ones what trains to float32, and
    what is frozen to `frozen_dtype`, or leaves it in the type that it was loaded in.
    """
    if precision in WHOLE:
        cast_parameters(model, WHOLE[precision])
        return
    narrow = None if frozen_dtype is None else getattr(torch, frozen_dtype)
    for module in model.modules():
        if is_packed(module):
            _compute_in(module, AUTOCAST[precision])
            continue
        own = dict(module.named_parameters(recurse=False))
        # A norm gets what the layers before it add up, which is float32, and on the CPU must then be it too.
        is_norm = all(parameter.ndim < 2 for parameter in own.values())
        for parameter in own.values():
            if parameter.requires_grad or is_norm:
                _cast(parameter, torch.float32)
            elif narrow is not None:
                _cast(parameter, narrow)


def _compute_in(layer: Any, dtype: torch.dtype) -> None:
    """What autocast does to other layers, bitsandbytes' do by themselves: in the type of their first input, unless told,
    and with their bias cast to it for good, which one that trains must not be.
    """
    if layer.bias is not None:
        dtype = torch.float32 if layer.bias.requires_grad else dtype
        _cast(layer.bias, dtype)
    layer.compute_dtype, layer.compute_type_is_set = dtype, True


def checkpoint_activations(model: VisionLanguageModel) -> None:
    """Each decoder layer and each gated block keeps its input alone, and is computed again in the backward pass."""
    # The later name; transformers below 5.20 has the earlier one alone.
    enable: Any = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": False})


def compile_layers(model: VisionLanguageModel, backend: str = "inductor") -> None:
    """Compiles the decoder stack with its blocks, for any number of rows, positions and images.

    Outside it stays what depends on the data: the layout of images, the splice, the choice of trained positions.
    """
    stack: Any = model.language.base_model
    stack.compile(backend=backend, dynamic=True)


def as_saved(model: VisionLanguageModel) -> VisionLanguageModel:
    """The trained model, in evaluation, in the one type that it was loaded in, and compiled no longer."""
    stack: Any = model.language.base_model
    stack._compiled_call_impl = None
    kind: Any = model.config.dtype
    cast_parameters(model, getattr(torch, kind) if isinstance(kind, str) else kind)
    return model.eval()


def lightning_precision(precision: str) -> str:
    """What Lightning is to do about it. Under bf16-true nothing: it would round the rotary tables too."""
    return "32-true" if precision == "bf16-true" else precision


def _cast(parameter: nn.Parameter, dtype: torch.dtype) -> None:
    if parameter.is_floating_point():
        parameter.data = parameter.data.to(dtype)
