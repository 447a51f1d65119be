"""Weights of four bits on paper: as many bytes as bitsandbytes', and the copies that it makes, without any numbers.

bitsandbytes quantizes numbers, which the meta device has not. It keeps no input for the backward pass, and reads the
weight back into a matrix for each product: one for the output, one for the gradient of the input.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flamingo_lite.models.adapters import adapters_of

BLOCK = 64
"""Numbers that share a scale (float32)."""
CODE = 16 * 4
"""Bytes of the table of the sixteen values, which each layer has."""


class FourBits(nn.Module):
    """Stands for a linear layer in a plan. `weight`: its four bits, scales and table in one, as bytes."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        numbers = layer.weight.numel()
        size = -(-numbers // 2) + 4 * -(-numbers // BLOCK) + CODE
        packed = torch.empty(size, dtype=torch.uint8, device=layer.weight.device)
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.bias = layer.bias
        self.read_back_dtype = layer.weight.dtype
        self.compute_dtype: torch.dtype | None = None

    def forward(self, x: Tensor) -> Tensor:
        inner = x if self.compute_dtype is None else x.to(self.compute_dtype)
        # Its product is an operation of its own, which autocast does not touch.
        with torch.autocast(x.device.type, enabled=False):
            shape = (self.out_features, self.in_features)
            return cast("Tensor", _Product.apply(inner, self.bias, shape, self.read_back_dtype)).to(x.dtype)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bias: Tensor | None, shape: tuple[int, int], dtype: torch.dtype
    ) -> Tensor:
        ctx.shape, ctx.dtype = shape, dtype
        return F.linear(x, x.new_empty(shape), None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (grad,) = grad_outputs
        weight = grad.new_empty(ctx.shape, dtype=ctx.dtype).to(grad.dtype)
        bias = grad.flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        return grad @ weight, bias, None, None


def quantize_on_paper(model: nn.Module) -> bool:
    """Replaces the weights that the model's adapters want in four bits; were there any?"""
    wanted = [name for name, adapter in adapters_of(model).items() if adapter.quantized]
    for name in wanted:
        layer: Any = model.get_submodule(name)
        layer.base_layer = FourBits(layer.base_layer)
    return bool(wanted)
