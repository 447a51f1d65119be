"""Foreign files that converters read: lines of JSON, images in a folder. Nothing leaves the folder, nothing is
read without a limit."""

import gzip
import io
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from flamingo_lite.data.strict_json import loads
from flamingo_lite.document import MAX_BYTES, Image
from flamingo_lite.errors import FlamingoError, SampleError, first_line

MAX_LINE = 256 * 2**20
"""Bytes of one line of JSON: a document with its images in base64 fits."""
MAX_DEPTH = 64
"""Of JSON's nesting."""


def json_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The number and bytes of each line that is not blank, of a .jsonl, .jsonl.gz or .jsonl.zip file.

    Errors: `FlamingoError` naming a file that cannot be read, or a line above the limit.
    """
    with opened(path) as file:
        number = 0
        while line := file.readline(MAX_LINE + 1):
            if len(line) > MAX_LINE:
                raise FlamingoError(
                    f"{path}: line {number + 1} has more than {MAX_LINE:,} bytes; expected JSON lines"
                )
            if not line.isspace():
                yield number, line
            number += 1


def parse_json(data: bytes | str, where: str) -> Any:
    """Strict JSON, as in our own shards. Errors: `SampleError` ("json", "text", "duplicate" or "bytes")."""
    encoded = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    return loads(encoded, where, MAX_LINE, MAX_DEPTH)


def image_in(folder: Path | None, name: Any, where: str) -> Image:
    """The image that a record names, read from the folder of images.

    Errors: `FlamingoError` without a folder; `SampleError` for a name that leaves the folder ("path"), an image that
    is not there ("missing") or too large ("bytes").
    """
    if folder is None:
        raise FlamingoError(f"{where}: names an image; say where the images are with --images FOLDER")
    if not isinstance(name, str) or not name or "\0" in name:
        raise SampleError(f"{where}: {name!r} is no name of an image", "layout")
    path = folder / name
    try:
        # Resolved: a link, like "..", may lead out of the folder.
        if not path.resolve().is_relative_to(folder.resolve()):
            raise SampleError(f"{where}: image {name!r} lies outside {folder}", "path")
        if not path.is_file():
            raise SampleError(f"{where}: image {name!r} is not in {folder}", "missing")
        if (size := path.stat().st_size) > MAX_BYTES:
            raise SampleError(
                f"{where}: image {name!r} has {size:,} bytes, above the limit of {MAX_BYTES:,}", "bytes"
            )
        return Image(path.read_bytes(), name=f"{where}: {name}")
    except (OSError, RuntimeError) as error:  # a link that leads to itself is a RuntimeError to Python 3.11
        raise SampleError(
            f"{where}: image {name!r} cannot be read ({first_line(error)})", "missing"
        ) from error


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """The bytes of a file, inflated as they are read where its name ends in .gz or .zip (of one member).

    Errors: `FlamingoError` naming the file, for all that goes wrong with it while it is open.
    """
    try:
        if path.name.endswith(".gz"):
            with gzip.open(path) as file:
                yield file  # type: ignore[misc]
        elif path.name.endswith(".zip"):
            with zipfile.ZipFile(path) as archive:
                members = [name for name in archive.namelist() if not name.endswith("/")]
                if len(members) != 1:
                    raise FlamingoError(f"{path}: holds {len(members)} files; expected one")
                with archive.open(members[0]) as file:
                    yield io.BufferedReader(file)  # type: ignore[arg-type]
        else:
            with path.open("rb") as file:
                yield file
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
        raise FlamingoError(f"{path}: cannot be read ({first_line(error)}); get the file again") from error
