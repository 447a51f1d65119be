"""Patch features of images on the local disk: what a frozen vision encoder has computed once is read ever after.

A file for each image, by the image's id, under a key of all that the features depend on. A file appears whole or not at
all, and carries a checksum: what does not fit it is computed anew.
Shape letters: m images, p patches, d width.
"""

import os
import warnings
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from flamingo_lite.data.stores import parse_bytes

FEATURES, CHECKSUM = "features", "crc32"


@dataclass
class FeatureCacheConfig:
    """`directory`: where features are kept; null keeps none. `bytes`: the most that they take ("50GB", "200MiB").

    What has a place keeps it: training reads all images in turn, and by the time an image comes again, a cache that
    makes room would have forgotten it.
    """

    directory: str | None = None
    bytes: str = "50GB"

    def __post_init__(self) -> None:
        parse_bytes(self.bytes, "data.features.bytes")


class FeatureCache:
    """The features (p d) by image id in `directory`/`key`, at most `limit` bytes of them. Picklable.

    Processes may share it; each counts what was there when it began, and what it has added.
    """

    def __init__(self, directory: str | Path, key: str, limit: int) -> None:
        self.directory = Path(directory) / key
        self.limit = limit
        self.used = sum(path.stat().st_size for path in self.directory.glob("*/*.safetensors"))

    def get(self, image_id: str) -> Tensor | None:
        """The features of an image, or None where they are not there or damaged."""
        path = self._path(image_id)
        try:
            with safe_open(path, "pt") as file:
                found = file.get_tensor(FEATURES)
                recorded = (file.metadata() or {}).get(CHECKSUM)
        except (OSError, SafetensorError):
            return None
        return found if recorded == _checksum(found) else None

    def put(self, image_id: str, features: Tensor) -> None:
        """Keeps the features, replacing damaged ones, unless they are too many."""
        features = features.detach().cpu().contiguous()
        data = save({FEATURES: features}, {CHECKSUM: _checksum(features)})
        if self.used + len(data) > self.limit:
            return
        path = self._path(image_id)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(data)
            temporary.replace(path)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            self.limit = 0
            warnings.warn(
                f"{self.directory} takes no more features ({error}); training goes on", stacklevel=2
            )
            return
        self.used += len(data)

    def _path(self, image_id: str) -> Path:
        return self.directory / image_id[:2] / f"{image_id}.safetensors"


@dataclass(frozen=True)
class KnownFeatures:
    """Of a batch's images: their ids, which of them have features, and those features (k p d), in order."""

    ids: tuple[str, ...]
    is_known: tuple[bool, ...]
    features: Tensor | None

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> "KnownFeatures":
        if self.features is None:
            return self
        return KnownFeatures(self.ids, self.is_known, self.features.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "KnownFeatures":
        if self.features is None:
            return self
        return KnownFeatures(self.ids, self.is_known, self.features.pin_memory())


def known_features(ids: Sequence[str], known: Mapping[str, Tensor]) -> KnownFeatures:
    """Of images in order, what is known by id."""
    features = [known[image_id] for image_id in ids if image_id in known]
    is_known = tuple(image_id in known for image_id in ids)
    return KnownFeatures(tuple(ids), is_known, torch.stack(features) if features else None)


def _checksum(features: Tensor) -> str:
    return f"{zlib.crc32(features.reshape(-1).view(torch.uint8).numpy().data):08x}"
