"""Activations by the names that Hugging Face configs use, so that a foreign config needs no translation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from flamingo_lite.names import check_choice


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x): the GELU of OpenAI's CLIP."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": quick_gelu,
    "relu": F.relu,
    "silu": F.silu,
}


def check_activation(field: str, name: str) -> None:
    """Errors: `FlamingoError` that names the field and the nearest activation unless `name` is one."""
    check_choice(f"value of {field}:", name, ACTIVATIONS)
