"""Arithmetic by part of a model, forward and backward: a multiply-add counts as two, as in torch's flop counter.

An operation of the forward pass belongs to the part whose module is running. One of the backward pass belongs to the
part that made its autograd node, which the node's number tells: numbers are given in the order of the forward pass.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, shape_wrapper

Shape = tuple[int, int, int, int]


def _attention(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    """Scores, and what they are the weights of. Shapes are (b h l d); keys and values may have fewer heads."""
    b, h, length, d = query
    return 2 * b * h * length * key[-2] * (d + value[-1])


def _attention_backward(_: Shape, query: Shape, key: Shape, value: Shape, *__: Any, **___: Any) -> int:
    """The scores again, then the gradients of scores, values, queries and keys."""
    b, h, length, d = query
    return 2 * b * h * length * key[-2] * (3 * d + 2 * value[-1])


KERNELS = ("flash_attention", "efficient_attention", "cudnn_attention", "flash_attention_for_cpu")
ATTENTION = {
    getattr(torch.ops.aten, f"_scaled_dot_product_{kernel}{ending}"): formula
    for kernel in KERNELS
    for ending, formula in {"": _attention, "_backward": _attention_backward}.items()
}
"""Of shapes. Some versions of torch have none for the CPU, and refuse heads that share keys."""

COUNTS = {**flop_registry, **{operation: shape_wrapper(formula) for operation, formula in ATTENTION.items()}}


class FlopsByPart(TorchDispatchMode):
    """`parts`: modules by the part that each is, none inside another. `flops`: the counts, None for all the rest."""

    def __init__(self, parts: Mapping[nn.Module, str]) -> None:
        super().__init__()
        self.parts = parts
        self.flops: Counter[str | None] = Counter()
        self._running: list[str] = []
        # From which number of an autograd node on a part made them, in order.
        self._numbers: list[int] = [0]
        self._owners: list[str | None] = [None]
        self._hooks: list[Any] = []

    def __enter__(self) -> Self:
        for module, part in self.parts.items():
            self._hooks += [
                module.register_forward_pre_hook(lambda *_, part=part: self._begin(part)),
                module.register_forward_hook(lambda *_: self._end()),
            ]
        super().__enter__()
        return self

    def __exit__(self, exc_type: Any, exc_val: Any, exc_tb: Any) -> None:
        super().__exit__(exc_type, exc_val, exc_tb)
        for hook in self._hooks:
            hook.remove()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self._count(func, args, kwargs or {}, result)
        return result

    def _count(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> None:
        count = COUNTS.get(func._overloadpacket)
        if count is not None:
            self.flops[self._part()] += count(*args, **kwargs, out_val=result)

    def _part(self) -> str | None:
        if self._running:
            return self._running[-1]
        node = torch._C._current_autograd_node()
        if node is None:
            return None
        return self._owners[bisect_right(self._numbers, node._sequence_nr()) - 1]

    def _begin(self, part: str) -> None:
        self._running.append(part)
        self._note(part)

    def _end(self) -> None:
        self._running.pop()
        self._note(self._running[-1] if self._running else None)

    def _note(self, part: str | None) -> None:
        self._numbers.append(torch._C._autograd._get_sequence_nr())
        self._owners.append(part)
