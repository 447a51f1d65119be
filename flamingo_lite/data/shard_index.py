"""Where the samples of a shard begin: an index beside it, `shard-000000.tar.idx`, as Megatron-Energon writes it.

Little-endian 64-bit offsets, one for each sample, and the end of the last. It is read when its shard is: a billion samples
cost nothing at the start. Shards of other programs without one are scanned once.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from flamingo_lite.data.manifest import Shard
from flamingo_lite.data.stores import Store
from flamingo_lite.data.tar import BLOCK, scan
from flamingo_lite.errors import FlamingoError

Offsets = NDArray[np.int64]


def index_bytes(offsets: Sequence[int]) -> bytes:
    """What an index holds. `offsets`: of each sample, and of the end."""
    return np.asarray(offsets, "<u8").tobytes()


def sample_offsets(store: Store, shard: Shard) -> Offsets:
    """Where each sample of the shard begins, and where the last one ends.

    From the manifest, else the index, else the shard itself; a truncated one has fewer than the manifest says.
    Errors: `FlamingoError` naming the index or the shard that the manifest does not describe.
    """
    if shard.offsets:
        return np.array([*shard.offsets, shard.bytes], np.int64)
    if (data := store.sidecar(shard)) is not None:
        return _from_index(data, shard, f"{store.location}/{shard.name}.idx")
    return _scanned(store, shard)


def index_fits(data: bytes, shard: Shard) -> bool:
    """Can it be the index of this shard?"""
    if len(data) != 8 * (shard.samples + 1):
        return False
    offsets = np.frombuffer(data, "<u8").astype(np.int64)
    rising = bool((np.diff(offsets) > 0).all())
    return rising and not (offsets % BLOCK).any() and offsets[0] >= 0 and bool(offsets[-1] <= shard.bytes)


def _from_index(data: bytes, shard: Shard, where: str) -> Offsets:
    if not index_fits(data, shard):
        raise FlamingoError(
            f"{where}: the index does not fit {shard.samples} samples in {shard.bytes} bytes; "
            "delete it (the shard is then scanned), or make the shards again"
        )
    return np.frombuffer(data, "<u8").astype(np.int64)


def _scanned(store: Store, shard: Shard) -> Offsets:
    path = store.path(shard)
    found = scan(path)
    if len(found.offsets) != shard.samples and path.stat().st_size >= shard.bytes:
        trouble = f": {found.tail}" if found.tail is not None else ""
        raise FlamingoError(
            f"{path}: not the tar that the manifest describes "
            f"({len(found.offsets)} samples, expected {shard.samples}{trouble}); make it again"
        )
    return np.array([*found.offsets[: shard.samples], found.end], np.int64)
