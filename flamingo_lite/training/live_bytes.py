"""The bytes of live tensors while a piece of code runs: every storage once, from when it is made to when it is freed.

It works on real tensors and on fake ones, which have sizes but no numbers, so a training step of any model can be
measured without the memory that it would take.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from typing import Any, Self

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts what operations make while it is on. `ignored` tensors (weights) and views of them are not counted.

    `activations`, `gradients`: bytes that live now; the latter of storages handed to `is_gradient`.
    `most_activations`, `most`: the largest number of bytes that lived at once, without and with gradients.
    """

    def __init__(self, ignored: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.activations = self.gradients = self.most_activations = self.most = 0
        self._bytes: dict[int, int] = {}
        self._gradients: set[int] = set()
        self._ignored = {_key(tensor) for tensor in ignored}
        self._finalizers: dict[int, weakref.finalize[Any, Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.add(tensor for tensor in tree_leaves(result) if isinstance(tensor, Tensor))
        return result

    def __exit__(self, exc_type: Any, exc_val: Any, exc_tb: Any) -> None:
        for finalizer in self._finalizers.values():
            finalizer.detach()
        super().__exit__(exc_type, exc_val, exc_tb)

    def add(self, tensors: Iterable[Tensor]) -> Self:
        """Count these too, if they are not counted yet."""
        for tensor in tensors:
            key = _key(tensor)
            if key in self._bytes or key in self._ignored:
                continue
            storage = tensor.untyped_storage()
            self._bytes[key] = storage.nbytes()
            self.activations += self._bytes[key]
            # A storage's Python object lives as long as the storage itself.
            self._finalizers[key] = weakref.finalize(storage, self._free, key)
        self._look()
        return self

    def is_gradient(self, tensor: Tensor) -> None:
        """From now on the storage of `tensor` counts as a gradient."""
        key = _key(tensor)
        if key in self._bytes and key not in self._gradients:
            self._gradients.add(key)
            self.activations -= self._bytes[key]
            self.gradients += self._bytes[key]

    def _free(self, key: int) -> None:
        size = self._bytes.pop(key)
        del self._finalizers[key]
        if key in self._gradients:
            self._gradients.remove(key)
            self.gradients -= size
        else:
            self.activations -= size

    def _look(self) -> None:
        self.most_activations = max(self.most_activations, self.activations)
        self.most = max(self.most, self.activations + self.gradients)


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
