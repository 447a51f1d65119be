"""A tensor as a whole, also where FSDP2 has cut it into one share per rank."""

from typing import Any

from torch import Tensor


def whole(tensor: Tensor) -> Tensor:
    """`tensor` with the shares of all ranks put together; ranks must ask together. A plain tensor comes as it is."""
    share: Any = tensor
    return share.full_tensor() if hasattr(share, "full_tensor") else tensor
