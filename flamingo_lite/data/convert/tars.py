"""Samples of foreign tars: members that share a key, one sample at a time, nothing extracted."""

from collections.abc import Collection, Iterator
from pathlib import Path

from flamingo_lite.data.tar import is_safe, split, walk
from flamingo_lite.document import MAX_BYTES
from flamingo_lite.errors import FlamingoError, SampleError


def tar_samples(path: Path, suffixes: Collection[str]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(key, members by suffix) of each sample, in order; members with other suffixes are not read.

    Errors: `FlamingoError` for a file that is no plain tar; `SampleError` behind the last whole sample of a tar that
    is damaged or truncated from there on.
    """
    key: str | None = None
    members: dict[str, bytes] = {}
    with path.open("rb") as file:

        def read(offset: int, length: int) -> bytes:
            file.seek(offset)
            return file.read(length)

        try:
            for member in walk(read, path.stat().st_size, path.name, end_mark=True):
                found, suffix = split(member.name)
                if member.skipped is not None or found is None or not is_safe(member.name):
                    continue
                if found != key:
                    if members:
                        yield str(key), members
                    key, members = found, {}
                if suffix in suffixes and member.size <= MAX_BYTES:
                    members[suffix] = read(member.data, member.size)
        except SampleError as error:
            if key is None:
                raise FlamingoError(f"{path}: not a plain tar ({error})") from error
            raise
    if members:
        yield str(key), members
