"""Limits: what one sample may cost. Each is checked before the work that it bounds is done."""

from dataclasses import dataclass, fields

from flamingo_lite.document import MAX_BYTES, MAX_PIXELS
from flamingo_lite.errors import FlamingoError

MIB = 2**20

DENY_DISTANCE = 4
"""In how many of 64 bits the perceptual hashes of two images may differ that count as one."""


@dataclass(frozen=True)
class Limits:
    """`sample_bytes`: all members of a sample; `member_bytes`: one of them; `json_bytes`, `json_depth`: its JSON,
    whose objects take some twenty times its bytes in memory; `images`, `characters`: of one document;
    `pixels`: of one image. Errors: `FlamingoError` for a limit below 1.
    """

    sample_bytes: int = 512 * MIB
    member_bytes: int = MAX_BYTES
    json_bytes: int = 4 * MIB
    json_depth: int = 32
    images: int = 256
    characters: int = 1_000_000
    pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        for field in fields(self):
            if (value := getattr(self, field.name)) < 1:
                raise FlamingoError(f"limits.{field.name} is {value}; expected 1 or more")
