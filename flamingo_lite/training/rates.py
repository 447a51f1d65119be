"""How fast this machine multiplies and reads: the limits beside which times are told."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

TRIES = 12
LARGER_THAN_CACHES = 64 * 2**20


def matrix_rate(device: str = "cpu", dtype: torch.dtype = torch.float32, size: int = 2048) -> float:
    """Operations a second: the best of a dozen products of square matrices, a multiply-add counted as two."""
    left = torch.randn(size, size, device=device, dtype=dtype)
    return 2 * size**3 / _best(lambda: left @ left, device)


def read_rate(device: str = "cpu", size: int = LARGER_THAN_CACHES) -> float:
    """Bytes a second: the best of a dozen products of a float32 matrix of `size` bytes and a vector, which is what a
    decoding step does with its weights."""
    matrix, vector = torch.randn(size // 4096, 1024, device=device), torch.randn(1024, device=device)
    return size / _best(lambda: matrix @ vector, device)


def seconds_of(call: Callable[[], object], device: str = "cpu") -> float:
    """Of one call, until the device is done."""
    wait(device)
    started = time.perf_counter()
    call()
    wait(device)
    return time.perf_counter() - started


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _best(call: Callable[[], object], device: str) -> float:
    call()
    return min(seconds_of(call, device) for _ in range(TRIES))
