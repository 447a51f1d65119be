"""Samples of foreign tars: members that share a key, one sample at a time, nothing extracted."""

from collections.abc import Collection, Iterator
from itertools import groupby
from pathlib import Path
from typing import IO

from flamingo_lite.data.tar import BLOCK, Member, is_safe, split, walk
from flamingo_lite.document import MAX_BYTES
from flamingo_lite.errors import FlamingoError, SampleError


def tar_samples(path: Path, suffixes: Collection[str]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(key, members by suffix) of each sample, in order; members with other suffixes are not read.

    Errors: `FlamingoError` for a file that is no plain tar; `SampleError` behind the last whole sample of a tar that
    is damaged or truncated from there on, though that be its start.
    """
    with path.open("rb") as file:
        is_first = True
        try:
            for key, members in members_by_key(file, path):
                is_first = False
                yield (
                    key,
                    {
                        split(member.name)[1]: read_at(file, member.data, member.size)
                        for member in members
                        if split(member.name)[1] in suffixes and member.size <= MAX_BYTES
                    },
                )
        except SampleError as error:
            # Cut, unless it is too short to be known for a tar: nothing at all is what a broken transfer leaves.
            is_cut = error.reason == "truncated" and not 0 < path.stat().st_size < BLOCK
            if is_first and not is_cut:
                raise FlamingoError(f"{path}: no sample can be read ({error})") from error
            raise


def members_by_key(file: IO[bytes], path: Path) -> Iterator[tuple[str, list[Member]]]:
    """The members of each whole sample of an open tar, unread. Errors: as `walk`."""
    members = walk(
        lambda start, size: read_at(file, start, size), path.stat().st_size, path.name, end_mark=True
    )
    regular = (m for m in members if m.skipped is None and split(m.name)[0] is not None and is_safe(m.name))
    for key, group in groupby(regular, key=lambda member: split(member.name)[0]):
        yield str(key), list(group)


def read_at(file: IO[bytes], start: int, size: int) -> bytes:
    """Bytes from a place in a file."""
    file.seek(start)
    return file.read(size)
