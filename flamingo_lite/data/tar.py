"""Tars of unknown origin: where each sample begins, and what one sample holds. Nothing is unpacked or opened.

Headers are decoded by the standard library and members grouped by webdataset's rule. The walk from header to
header is our own: `tarfile` reads names and pax records of any length, follows sparse maps and inflates
compressed archives; here no size in a header is believed beyond the bytes that are there.
"""

import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

from webdataset.tariterators import base_plus_ext

from flamingo_lite.data.images import IMAGE_SUFFIXES
from flamingo_lite.data.limits import Limits
from flamingo_lite.errors import SampleError

BLOCK = 512  # a tar is made of blocks of this many bytes
MAX_NAME = 1024
# Bytes of a member's name, its folders included. webdataset's rule takes time quadratic in it.
MAX_RECORDS = 64 * 1024
# Bytes of the pax records of one member: a time and a long name fit a hundred times.

_EMPTY = bytes(BLOCK)
_DEVICES = (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)
_LINKS = (tarfile.LNKTYPE, tarfile.SYMTYPE)
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_RECORDS = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE)
_LONG = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)

Reader = Callable[[int, int], bytes]  # (offset, length) to at most so many bytes


class Member(NamedTuple):
    """One member: where its headers start, and its data. `skipped`: why it belongs to no sample, None if it does."""

    name: str
    start: int
    data: int
    size: int
    skipped: str | None


@dataclass(frozen=True)
class Sample:
    """The members of one sample by suffix in lower case ("json", "0.jpg"); `skipped`: those never read, and why."""

    key: str
    members: dict[str, bytes]
    skipped: dict[str, str] = field(default_factory=dict)


@dataclass
class Scan:
    """What stands where in one tar. `end`: where the last sample ends; `tail`: what is wrong behind it.

    `repeated`: the numbers of samples whose key came earlier; `skipped`: members never read, by reason.
    """

    offsets: list[int] = field(default_factory=list)
    end: int = 0
    images: int = 0
    repeated: list[int] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    tail: SampleError | None = None

    @property
    def stretches(self) -> list[tuple[int, int]]:
        """[start, stop) of each sample."""
        return list(zip(self.offsets, [*self.offsets[1:], self.end], strict=False))


def scan(path: str | Path) -> Scan:
    """Where each sample of a tar begins. Only headers are read; a damaged tar is scanned up to the damage.

    A sample that the end of the file cuts is among the offsets: reading it says that it is truncated.
    Errors: `OSError` alone.
    """
    path = Path(path)
    found = Scan()
    keys: set[int] = set()
    last: str | None = None
    # Unbuffered: a buffer would read eight kilobytes around every header.
    with path.open("rb", buffering=0) as file:

        def read(offset: int, length: int) -> bytes:
            file.seek(offset)
            return file.read(length)

        try:
            for member in walk(read, path.stat().st_size, str(path), end_mark=True):
                found.end = -(-(member.data + member.size) // BLOCK) * BLOCK
                if (reason := member.skipped or skipped(member.name)) is not None:
                    found.skipped[reason] += 1
                found.images += reason is None and not member.name.lower().endswith(".json")
                key = None if member.skipped else split(member.name)[0]
                if key is None or key == last:
                    continue
                if (mark := hash(key)) in keys:
                    found.repeated.append(len(found.offsets))
                keys.add(mark)
                found.offsets.append(member.start)
                last = key
        except SampleError as error:
            found.tail = error
    return found


def read_stretch(path: Path, start: int, stop: int, where: str, limits: Limits | None = None) -> bytes:
    """`stretch_of` the file at `path`, which is not opened for more than the limit."""
    _check_stretch(stop - start, where, limits)
    with path.open("rb") as file:
        return stretch_of(file, start, stop, where, limits)


def stretch_of(file: BinaryIO, start: int, stop: int, where: str, limits: Limits | None = None) -> bytes:
    """The bytes of one sample, [start, stop) of a tar. Errors: `SampleError` before anything is read when they are
    more than the limit, and when the file ends earlier; `OSError`."""
    _check_stretch(size := stop - start, where, limits)
    file.seek(start)
    data = file.read(size)
    if len(data) < size:
        raise SampleError(
            f"{where}: truncated, the shard ends {size - len(data):,} bytes early; make it again", "truncated"
        )
    return data


def _check_stretch(size: int, where: str, limits: Limits | None) -> None:
    if size > (most := (limits or Limits()).sample_bytes):
        raise SampleError(f"{where}: {size:,} bytes, above the limit of {most:,} for a sample", "bytes")


def parse(data: bytes, where: str, limits: Limits | None = None) -> Sample:
    """The one sample in a stretch of a tar. `where` (shard and number) is named in errors.

    Errors: `SampleError` for bytes that are no plain tar, are cut, hold members of no sample or of several, an
    unsafe name, a member twice, or one above the limit.
    """
    limits = limits or Limits()
    key: str | None = None
    members: dict[str, bytes] = {}
    passed: dict[str, str] = {}
    for member in walk(lambda offset, length: data[offset : offset + length], len(data), where):
        if member.skipped is not None:
            passed[member.name] = member.skipped
            continue
        own, suffix = split(member.name)
        if own is None:
            passed[member.name] = "metadata"
            continue
        key = own if key is None else key
        if own != key:
            raise SampleError(f"{where}: holds members of {key} and of {own}; expected one sample", "tar")
        if not is_safe(member.name):
            raise SampleError(f"{where}: the name {member.name} leaves the archive; rename it", "member")
        if (reason := skipped(member.name)) is not None:
            passed[member.name] = reason
            continue
        if suffix in members:
            raise SampleError(f"{where}: the member {member.name} comes twice; expected once", "duplicate")
        allowed = limits.json_bytes if suffix == "json" else limits.member_bytes
        if member.size > allowed:
            raise SampleError(
                f"{where}: {member.name} claims {member.size:,} bytes, above the limit of {allowed:,}",
                "bytes",
            )
        members[suffix] = data[member.data : member.data + member.size]
    if key is None:
        raise SampleError(f"{where}: no sample here; expected members named KEY.json, KEY.0.jpg, ...", "tar")
    return Sample(key, members, passed)


def split(name: str) -> tuple[str | None, str]:
    """Key and suffix (in lower case, as in webdataset) of a member's name; no key for metadata (`__like_this__`)
    and for names without a suffix."""
    key, suffix = base_plus_ext(name)
    if key is None or suffix is None or key.startswith("__"):
        return None, ""
    return key, suffix.lower()


def is_member(name: str) -> bool:
    """Whether a member of a tar is ever read: interleaved JSON or an image. All others are skipped."""
    return name.rpartition(".")[2].lower() in IMAGE_SUFFIXES | {"json"}


def is_safe(name: str) -> bool:
    """Whether a name stays inside the folder in which somebody else may unpack the archive."""
    return not name.startswith("/") and ".." not in name.replace("\\", "/").split("/")


def skipped(name: str) -> str | None:
    """Why a regular member is never read, None if it is."""
    if split(name)[0] is None:
        return "metadata"
    return None if is_member(name) else "kind"


def walk(read: Reader, end: int, where: str, end_mark: bool = False) -> Iterator[Member]:
    """The members of the tar in [0, end), in order, up to its end mark (a block of zeros).

    A member is yielded before its data are known to be there. Errors: `SampleError` for a block that is no
    header of a plain tar, a name or records above the limits, a sparse member, data that end early, and a
    missing end mark where one is due.
    """
    position = start = 0
    name, records = None, {}
    while position < end:
        block = read(position, BLOCK)
        if block == _EMPTY:
            return
        header = _header(block, f"{where}, byte {position:,}")
        data, size = position + BLOCK, header.size
        if header.type in _RECORDS + _LONG:
            body = _extension(read, header, data, end, where)
            if header.type == tarfile.GNUTYPE_LONGNAME:
                name = body.partition(b"\0")[0]
            elif header.type in _RECORDS:
                found = _pax(body, where)
                # A record for all members behind it would be lost on a reader that begins at one of them.
                records = records if header.type == tarfile.XGLTYPE else found
        else:
            size = _size(header, records, where)
            spoken = records.get("path", name)
            shown = header.name if spoken is None else spoken.decode("utf-8", "backslashreplace").rstrip("/")
            yield Member(_printable(shown, where), start, data, size, _kind(header))
            name, records = None, {}
        position = data + -(-size // BLOCK) * BLOCK
        if data + size > end:
            raise _cut(where, data + size - end)
        if header.type not in _RECORDS + _LONG:
            start = position
    if end_mark:
        raise _cut(where, BLOCK)


def _header(block: bytes, where: str) -> tarfile.TarInfo:
    # Older headers have no mark, and neither has anything compressed.
    if len(block) >= 262 and block[257:262] != b"ustar":
        raise SampleError(f"{where}: no header of a plain tar; make the shard again, uncompressed", "tar")
    if len(block) < BLOCK:
        raise _cut(where, BLOCK - len(block))
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "backslashreplace")
    except (tarfile.TarError, ValueError) as error:
        raise SampleError(f"{where}: a damaged tar header ({error}); make the shard again", "tar") from error
    if header.size < 0:
        raise SampleError(f"{where}: a tar header claims {header.size} bytes; make the shard again", "tar")
    if header.type == tarfile.GNUTYPE_SPARSE:
        raise SampleError(f"{where}: a sparse member; expected plain files", "tar")
    return header


def _kind(header: tarfile.TarInfo) -> str | None:
    if header.type in _FILES:
        return None
    if header.type in _LINKS:
        return "link"
    if header.type in _DEVICES:
        return "device"
    return "directory" if header.type == tarfile.DIRTYPE else "kind"


def _size(header: tarfile.TarInfo, records: dict[str, bytes], where: str) -> int:
    """Bytes of data behind the header. Links, devices and folders have none, whatever they claim."""
    if header.type in _LINKS + _DEVICES + (tarfile.DIRTYPE,):
        return 0
    if any(name.startswith("GNU.sparse") for name in records):
        raise SampleError(f"{where}: a sparse member; expected plain files", "tar")
    claimed = records.get("size")
    if claimed is None:
        return header.size
    if not claimed.isdigit() or len(claimed) > 18:
        raise SampleError(f"{where}: a pax record claims a size of {claimed[:20]!r}", "tar")
    return int(claimed)


def _extension(read: Reader, header: tarfile.TarInfo, data: int, end: int, where: str) -> bytes:
    """The body of a header that only says more of the next one: a long name, or pax records."""
    limit = MAX_NAME + 1 if header.type in _LONG else MAX_RECORDS
    if header.size > limit:
        raise SampleError(
            f"{where}: a name or records of {header.size:,} bytes, above the limit of {limit:,}", "tar"
        )
    if data + header.size > end:
        raise _cut(where, data + header.size - end)
    return read(data, header.size)


def _pax(body: bytes, where: str) -> dict[str, bytes]:
    """Records of the form `LENGTH NAME=VALUE\\n`. Our own loop, because tarfile's pattern took time quadratic in
    the body (CVE-2024-6232) in releases that are still in use."""
    records: dict[str, bytes] = {}
    position = 0
    while position < len(body) and body[position]:
        length, space, _ = body[position : position + 8].partition(b" ")
        stop = position + int(length) if length.isdigit() and space else 0
        name, equals, value = body[position + len(length) + 1 : stop].partition(b"=")
        if not equals or not value.endswith(b"\n") or stop > len(body):
            raise SampleError(f"{where}: damaged pax records; make the shard again", "tar")
        records[name.decode("utf-8", "backslashreplace")] = value[:-1]
        position = stop
    return records


def _printable(name: str, where: str) -> str:
    """The name, with escapes for what would command a terminal or cannot be encoded."""
    if len(name) > MAX_NAME:
        raise SampleError(
            f"{where}: a name of {len(name):,} characters, above the limit of {MAX_NAME:,}", "member"
        )
    if name.isprintable():
        return name
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in name)


def _cut(where: str, missing: int) -> SampleError:
    return SampleError(
        f"{where}: truncated, at least {missing:,} bytes are missing; restore the shard", "truncated"
    )
