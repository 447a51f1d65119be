"""How large the gradients, the weights and the last update of each group of the optimizer are.

The update is what a step did to the weights, whatever the optimizer and the precision made of the gradients: the
weights after it less a copy from before, which lives for this one step.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from flamingo_lite.evaluation.panels import column_part
from flamingo_lite.training.sharding import local

Groups = Mapping[str, Sequence[Tensor]]


def optimizer_groups(optimizer: torch.optim.Optimizer) -> dict[str, list[Tensor]]:
    """The parameters of each group, by a name that can be part of a column."""
    groups: dict[str, list[Tensor]] = {}
    for number, group in enumerate(optimizer.param_groups):
        groups.setdefault(column_part(str(group.get("name", number))), []).extend(group["params"])
    return groups


def learning_rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """{"learning_rate/<group>": the rate of its next step}."""
    groups = enumerate(optimizer.param_groups)
    return {
        f"learning_rate/{column_part(str(group.get('name', number)))}": float(group["lr"])
        for number, group in groups
    }


def squared_norm(tensors: Iterable[Tensor]) -> Tensor:
    """The sum of the squares of all numbers, a float32 scalar: on a rank that holds shares, of its own shares."""
    norms = torch._foreach_norm([local(tensor).detach() for tensor in tensors], dtype=torch.float32)
    return torch.stack(norms).square().sum() if norms else torch.zeros(())


class GroupNorms:
    """The norms of one optimizer step: `before` it, then `after` it, then `columns`.

    Under FSDP2 a rank holds a share of each parameter, and `columns` adds the ranks up; then all must ask for it.
    """

    def __init__(self) -> None:
        self._groups: Groups = {}
        self._copies: dict[str, list[Tensor]] = {}
        self._squares: dict[str, Tensor] = {}
        self._is_shared = False

    @torch.no_grad()
    def before(self, optimizer: torch.optim.Optimizer) -> None:
        """Gradients are whole here: unscaled, over all ranks, not clipped yet."""
        self._groups = optimizer_groups(optimizer)
        self._is_shared = any(_is_shared(p) for group in self._groups.values() for p in group)
        for name, parameters in self._groups.items():
            gradients = [p.grad for p in parameters if p.grad is not None]
            self._squares[f"gradient_norm/{name}"] = squared_norm(gradients)
            self._copies[name] = [local(p).detach().clone() for p in parameters]

    @torch.no_grad()
    def after(self) -> None:
        for name, copies in self._copies.items():
            now = [local(parameter).detach() for parameter in self._groups[name]]
            self._squares[f"weight_norm/{name}"] = squared_norm(now)
            # In place of the copies: a difference needs no memory of its own.
            torch._foreach_sub_(copies, now)
            self._squares[f"update_norm/{name}"] = squared_norm(copies)
        self._copies, self._groups = {}, {}

    def columns(self, strategy: Any) -> dict[str, Tensor]:
        """Norms by column, on their device; none where no step was looked at."""
        if not self._squares:
            return {}
        names, device = list(self._squares), next(iter(self._squares.values())).device
        squares = torch.stack([square.to(device) for square in self._squares.values()])
        if self._is_shared:
            squares = strategy.reduce(squares, reduce_op="sum")
        self._squares = {}
        return dict(zip(names, squares.sqrt().unbind(), strict=True))


def _is_shared(tensor: Tensor) -> bool:
    return local(tensor) is not tensor
