"""Muon for the matrices of blocks: torch's, with all matrices of one shape made orthogonal at once, and in float32 on CPUs.

Shape letters: n matrices, r rows, c columns.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


class Muon(torch.optim.Muon):
    """`torch.optim.Muon` with updates of AdamW's size (`match_rms_adamw`).

    Torch iterates in bfloat16, which CPUs without instructions for it do fourteen times as slowly as float32, and matrix by
    matrix.
    """

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, lr=lr, adjust_lr_fn="match_rms_adamw")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters: list[Tensor] = []
            gradients: list[Tensor] = []
            momenta: list[Tensor] = []
            self._init_group(group, parameters, gradients, momenta)
            if not parameters:
                continue
            torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
            updates = torch._foreach_lerp(gradients, momenta, group["momentum"])
            updates = orthogonal(updates, group["ns_coefficients"], group["ns_steps"], group["eps"])
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            for parameter, update in zip(parameters, updates, strict=True):
                parameter.add_(update, alpha=-group["lr"] * 0.2 * max(parameter.shape) ** 0.5)
        return loss


def orthogonal(
    matrices: Sequence[Tensor], coefficients: tuple[float, float, float], steps: int, eps: float
) -> list[Tensor]:
    """Matrices (r c) of any shapes -> nearly orthogonal ones: Newton and Schulz's iteration, as in torch's Muon."""
    by_shape = defaultdict(list)
    for place, matrix in enumerate(matrices):
        by_shape[matrix.shape].append(place)
    found: dict[int, Tensor] = {}
    a, b, c = coefficients
    for (rows, columns), places in by_shape.items():
        x = torch.stack([matrices[place] for place in places])  # n r c
        x = x.float() if x.device.type == "cpu" else x.bfloat16()
        x = x.mT if rows > columns else x
        x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=eps)
        for _ in range(steps):
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        found.update(zip(places, x.mT if rows > columns else x, strict=True))
    return [found[place] for place in range(len(matrices))]
