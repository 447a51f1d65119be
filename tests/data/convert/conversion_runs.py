"""Runs the engine itself over small inputs of img2dataset, and looks at every byte of what it leaves."""

import hashlib
from pathlib import Path
from typing import Any

from flamingo_lite.data.convert.engine import Job, convert
from flamingo_lite.data.convert.frame import Options
from flamingo_lite.data.convert.ledger import Ledger
from tests.data.convert.pages import img2dataset_members, picture, write_tar


def write_input(path: Path, count: int, first: int = 0) -> Path:
    """A tar of img2dataset; its second sample is broken."""
    members: dict[str, bytes] = {}
    for i in range(first, first + count):
        image = picture(i, (24, 16))
        members |= img2dataset_members(
            f"{i:05d}", image[:200] if i == first + 1 else image, f"http://x/{i}", f"caption {i}"
        )
    return write_tar(path, members)


def write_inputs(folder: Path, count: int = 3) -> Path:
    """So many tars of seven samples."""
    for i in range(count):
        write_input(folder / f"{i:05d}.tar", 7, 10 * i)
    return folder


def run(
    target: Path,
    *inputs: Path,
    workers: int = 1,
    engine: str = "local",
    overwrite: bool = False,
    **options: Any,
) -> list[tuple[Ledger, bool]]:
    """What each unit came to, in order, and whether it was done before."""
    chosen = Options(**{"samples_per_shard": 4, **options})
    _, converted = convert(Job("img2dataset", chosen, target, overwrite), inputs, workers, engine)
    return sorted(converted, key=lambda outcome: outcome[0].unit)


def tree(directory: Path) -> dict[str, str]:
    """Every file below a directory, and what is in it."""
    paths = (path for path in sorted(directory.rglob("*")) if path.is_file())
    return {p.relative_to(directory).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}
