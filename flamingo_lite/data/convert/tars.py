"""Samples of foreign tars: members that share a key, one sample at a time, nothing extracted."""

import tarfile
from collections.abc import Collection, Iterator
from pathlib import Path

from flamingo_lite.document import MAX_BYTES
from flamingo_lite.errors import FlamingoError, SampleError, first_line


def tar_samples(path: Path, suffixes: Collection[str]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(key, members by suffix) of each sample, in order; members with other suffixes are not read.

    Errors: `FlamingoError` for a file that is no plain tar; `SampleError` ("truncated") behind the last whole sample
    of a tar that is damaged from there on.
    """
    key: str | None = None
    members: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if not member.isreg():
                    continue
                folder, _, name = member.name.rpartition("/")
                stem, _, suffix = name.partition(".")
                found = f"{folder}/{stem}" if folder else stem
                if found != key:
                    if key is not None and members:
                        yield key, members
                    key, members = found, {}
                if (suffix := suffix.lower()) in suffixes and member.size <= MAX_BYTES:
                    members[suffix] = _content(tar, member)
                tar.members.clear()  # tarfile keeps every header that it has seen
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        if key is None:
            raise FlamingoError(f"{path}: not a plain tar ({first_line(error)})") from error
        raise SampleError(
            f"{path}: damaged behind sample {key} ({first_line(error)}); get the file again", "truncated"
        ) from error
    if key is not None and members:
        yield key, members


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    data = b"" if file is None else file.read()
    if len(data) < member.size:
        raise tarfile.ReadError("unexpected end of data")
    return data
