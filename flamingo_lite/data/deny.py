"""A deny-list: hashes of images that must not be trained on, because models are evaluated on them.

A line of the file is `sha256 phash`: the sha256 of the encoded bytes finds exact copies, the perceptual hash
(64 bits, imagehash's) those that were resized or compressed again.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import imagehash
import numpy as np
import PIL.Image

from flamingo_lite.document import decode_image
from flamingo_lite.errors import FlamingoError

_LINE = re.compile(r"([0-9a-f]{64}) ([0-9a-f]{16})")
_BITS = np.array([bin(byte).count("1") for byte in range(256)], dtype=np.uint8)


@dataclass(frozen=True)
class DenyList:
    """`exact`: sha256 in hex; `perceptual`: uint64, one each."""

    exact: frozenset[str]
    perceptual: np.ndarray

    def find(self, data: bytes, pixels: "PIL.Image.Image", distance: int) -> str | None:
        """Why the image is denied: an exact copy, or a perceptual hash within `distance` bits. None if it is not."""
        if (digest := hashlib.sha256(data).hexdigest()) in self.exact:
            return f"an exact copy of a denied image ({digest[:12]})"
        if not len(self.perceptual):
            return None
        least = int(bits_apart(self.perceptual, perceptual_hash(pixels)).min())
        return f"{least} bits from a denied image" if least <= distance else None


def perceptual_hash(pixels: "PIL.Image.Image") -> int:
    """imagehash.phash as an integer of 64 bits."""
    return int(str(imagehash.phash(pixels)), 16)


def bits_apart(hashes: np.ndarray, value: int) -> np.ndarray:
    """In how many bits each of `hashes` (uint64) differs from `value`."""
    return _BITS[(hashes ^ np.uint64(value)).view(np.uint8).reshape(-1, 8)].sum(1)


def deny_line(data: bytes, name: str) -> str:
    """The line of one encoded image. Errors: `FlamingoError` naming an image that is not whole."""
    return f"{hashlib.sha256(data).hexdigest()} {perceptual_hash(decode_image(data, name)):016x}"


def parse_deny_list(lines: Iterable[str], name: str) -> DenyList:
    """Errors: `FlamingoError` naming the line that is not `sha256 phash`, or a list without any."""
    exact, perceptual = set(), []
    for number, line in enumerate(lines, start=1):
        if not (match := _LINE.fullmatch(line.strip())):
            raise FlamingoError(
                f"{name}: line {number} is not 'sha256 phash'; make the list with `flamingo-lite data deny`"
            )
        exact.add(match[1])
        perceptual.append(int(match[2], 16))
    if not exact:
        raise FlamingoError(f"{name}: names no image; make the list with `flamingo-lite data deny`")
    return DenyList(frozenset(exact), np.array(perceptual, dtype=np.uint64))


def load_deny_list(path: str) -> DenyList:
    """The list in a file. Errors: `FlamingoError` naming a file that cannot be read or is no such list."""
    try:
        status = Path(path).stat()
        return _load(path, status.st_size, status.st_mtime_ns)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise FlamingoError(
            f"{path}: the deny-list cannot be read ({reason}); make it with `flamingo-lite data deny`"
        ) from error


# The size and the time of the last change are here for the cache: a list that has changed is read anew.
@lru_cache(maxsize=1)
def _load(path: str, size: int, changed: int) -> DenyList:
    with Path(path).open(encoding="utf-8") as file:
        return parse_deny_list(file, path)
