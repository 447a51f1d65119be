"""What tells the weights in one directory from those in another."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

WEIGHTS = ("*.safetensors", "*.pt", "*.bin")


def files_sha256(directory: Path, patterns: Sequence[str] = WEIGHTS) -> str:
    """sha256 over the names and bytes of the directory's files that match, by default those of weights."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in patterns for path in directory.glob(pattern)}):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
