"""Tars: samples begin where tarfile and webdataset say, and no size in a header is believed."""

import io
import tarfile
from pathlib import Path

import pytest
import webdataset
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from webdataset.tariterators import base_plus_ext

from flamingo_lite.data.limits import Limits
from flamingo_lite.data.tar import MAX_NAME, Sample, Scan, parse, read_stretch, scan
from flamingo_lite.errors import REASONS, FlamingoError, SampleError

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def info(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, **changes: object) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.size, made.type = size, kind
    for field, value in changes.items():
        setattr(made, field, value)
    return made


def archive(
    path: Path, members: list[tuple[str, bytes] | tarfile.TarInfo], form: int = tarfile.PAX_FORMAT
) -> Path:
    with tarfile.open(path, "w", format=form) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                tar.addfile(info(member[0], len(member[1])), io.BytesIO(member[1]))
    return path


def stretches(path: Path, found: Scan) -> list[bytes]:
    data = path.read_bytes()
    return [data[start:stop] for start, stop in found.stretches]


def samples(path: Path) -> list[Sample]:
    found = scan(path)
    assert found.tail is None
    return [parse(stretch, str(path)) for stretch in stretches(path, found)]


def refused(data: bytes, reason: str, match: str, limits: Limits | None = None) -> None:
    with pytest.raises(SampleError, match=match) as caught:
        parse(data, "s.tar", limits)
    assert caught.value.reason == reason
    assert reason in REASONS


def offsets_of_tarfile(path: Path) -> list[int]:
    """Where samples begin, by tarfile's offsets and webdataset's rule."""
    offsets, last = [], None
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            key, _ = base_plus_ext(member.name)
            if member.isreg() and key is not None and key != last and not key.startswith("__"):
                offsets.append(member.offset)
                last = key
    return offsets


names = st.from_regex(r"(\./|a/b\.c/|)[a-z_]{1,3}(\.[0-9])?\.(json|jpg|JPG|pkl|txt)", fullmatch=True)
long_names = st.integers(90, 600).map(lambda n: "folder/" * (n // 7) + "a.json")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(names | long_names, st.binary(max_size=700)), max_size=8),
    st.sampled_from(["gnu", "pax"]),
    st.sampled_from([0, 1.5]),
)
def test_samples_begin_where_tarfile_and_webdataset_say(
    tmp_path: Path, members: list[tuple[str, bytes]], form: str, time: float
) -> None:
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w", format=FORMATS[form]) as tar:
        for name, data in members:
            tar.addfile(info(name, len(data), mtime=time), io.BytesIO(data))
    found = scan(path)
    assert found.tail is None
    assert found.offsets == offsets_of_tarfile(path)
    kinds = [base_plus_ext(name)[0].startswith("__") or name.endswith(("pkl", "txt")) for name, _ in members]
    assert found.skipped.total() == sum(kinds)


@pytest.mark.parametrize("form", FORMATS)
def test_members_are_those_that_webdataset_reads(form: str, tmp_path: Path) -> None:
    members = [(f"{key}.{suffix}", f"{key}{suffix}".encode() * 200)
               for key in ("a", "./b", "c/d") for suffix in ("json", "0.jpg", "Other.PNG")]  # fmt: skip
    path = archive(tmp_path / "s.tar", members, FORMATS[form])
    theirs = webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False)
    assert [{"__key__": s.key, **s.members} for s in samples(path)] == [
        {name: value for name, value in sample.items() if name not in ("__url__", "__local_path__")}
        for sample in theirs
    ]


def test_members_that_are_never_read_are_named_with_a_reason(tmp_path: Path) -> None:
    members: list[tuple[str, bytes] | tarfile.TarInfo] = [
        ("__meta__.json", b"{}"), ("a.json", b"{}"), ("a.pkl", b"x"), ("a.pth", b"x"), ("a.json.gz", b"x"),
        info("a.1.jpg", kind=tarfile.SYMTYPE, linkname="/etc/passwd"),
        info("a.2.jpg", kind=tarfile.LNKTYPE, linkname="a.json"),
        info("a.3.jpg", kind=tarfile.CHRTYPE), info("a.4.jpg", kind=tarfile.BLKTYPE), info("a.5.jpg", kind=tarfile.FIFOTYPE),
        info("folder", kind=tarfile.DIRTYPE), ("README", b"x"),
    ]  # fmt: skip
    path = archive(tmp_path / "s.tar", members)
    (sample,) = samples(path)
    assert sample.members == {"json": b"{}"}
    assert sample.skipped == {
        "a.pkl": "kind", "a.pth": "kind", "a.json.gz": "kind", "a.1.jpg": "link", "a.2.jpg": "link",
        "a.3.jpg": "device", "a.4.jpg": "device", "a.5.jpg": "device", "folder": "directory", "README": "metadata",
    }  # fmt: skip
    assert scan(path).skipped == {"kind": 3, "link": 2, "device": 3, "directory": 1, "metadata": 2}


@pytest.mark.parametrize("name", ["/etc/a.json", "../a.json", "x/../../a.json", "x\\..\\a.json"])
def test_a_name_that_leaves_the_archive_costs_its_sample(name: str, tmp_path: Path) -> None:
    path = archive(tmp_path / "s.tar", [("a.json", b"{}"), (name, b"{}"), ("b.json", b"{}")])
    first, middle, last = stretches(path, scan(path))
    assert (parse(first, "").key, parse(last, "").key) == ("a", "b")
    refused(middle, "member", "leaves the archive")


def test_odd_bytes_in_a_name_are_escaped(tmp_path: Path) -> None:
    members = [(name, b"{}") for name in ("caf\udce9.json", "a\x1b[31m.json", "b\u202e.json", "é.json")]
    with tarfile.open(tmp_path / "s.tar", "w", format=tarfile.GNU_FORMAT, errors="surrogateescape") as tar:
        for name, data in members:
            tar.addfile(info(name, len(data)), io.BytesIO(data))
    assert [s.key for s in samples(tmp_path / "s.tar")] == ["caf\\xe9", "a\\x1b[31m", "b\\u202e", "é"]


def test_a_member_that_comes_twice_costs_its_sample(tmp_path: Path) -> None:
    path = archive(tmp_path / "s.tar", [("a.0.jpg", b"1"), ("a.0.JPG", b"2")])
    refused(path.read_bytes(), "duplicate", "comes twice")


def test_a_key_that_comes_back_is_told(tmp_path: Path) -> None:
    path = archive(
        tmp_path / "s.tar", [("a.json", b"{}"), ("b.json", b"{}"), ("a.0.jpg", b"x"), ("b.0.jpg", b"")]
    )
    found = scan(path)
    assert (len(found.offsets), found.repeated, found.images) == (4, [2, 3], 2)


def test_two_samples_in_one_stretch_are_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "s.tar", [("a.json", b"{}"), ("b.json", b"{}")])
    refused(path.read_bytes(), "tar", "of a and of b")


def test_a_stretch_without_members_is_refused() -> None:
    refused(bytes(1024), "tar", "no sample here")


def test_a_member_above_the_limit_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "s.tar", [("a.json", b"x" * 100), ("a.0.jpg", b"x" * 200)])
    refused(path.read_bytes(), "bytes", "a.json claims 100 bytes", Limits(json_bytes=99))
    refused(path.read_bytes(), "bytes", "a.0.jpg claims 200 bytes", Limits(member_bytes=199))


def test_a_stretch_above_the_limit_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(SampleError, match="above the limit") as caught:
        read_stretch(tmp_path / "no such file", 0, 10**12, "s.tar")
    assert caught.value.reason == "bytes"


def test_a_limit_below_one_is_refused() -> None:
    with pytest.raises(FlamingoError, match="limits.images is 0"):
        Limits(images=0)


def header(name: str = "a.json", **changes: object) -> bytes:
    return info(name, **changes).tobuf(tarfile.GNU_FORMAT)  # pyrefly: ignore


def with_checksum(block: bytes) -> bytes:
    total = 256 + sum(block[:148]) + sum(block[156:])
    return block[:148] + f"{total:06o}\0 ".encode() + block[156:]


@pytest.mark.parametrize(
    "block, reason, match",
    [
        (header("a.pkl", size=2**60), "truncated", "bytes are missing"),
        (with_checksum(header()[:124] + b"\xff" * 12 + header()[136:]), "tar", "claims -1 bytes"),
        (with_checksum(header()[:124] + b"eleven bytes" + header()[136:]), "tar", "damaged tar header"),
        (header(kind=tarfile.GNUTYPE_SPARSE), "tar", "sparse"),
        (header(kind=tarfile.GNUTYPE_LONGNAME, size=MAX_NAME + 2), "tar", "above the limit"),
        (header(kind=tarfile.GNUTYPE_LONGNAME, size=600), "truncated", "bytes are missing"),
        (header(kind=tarfile.XHDTYPE, size=2**40), "tar", "above the limit"),
        (header(kind=tarfile.XHDTYPE, size=9) + b"99 a=b\n  ".ljust(512, b"\0"), "tar", "pax records"),
        (header(kind=tarfile.XHDTYPE, size=9) + b"-9 a=bcd\n".ljust(512, b"\0"), "tar", "pax records"),
        (header(kind=tarfile.XHDTYPE, size=11) + b"11 size=-1\n".ljust(512, b"\0") + header(), "tar", "size"),
        (header(kind=tarfile.XHDTYPE, size=22) + b"22 GNU.sparse.major=1\n".ljust(512, b"\0") + header(), "tar", "sparse"),
        (b"\x1f\x8b" + bytes(510), "tar", "no header of a plain tar"),
        (header()[:300], "truncated", "212 bytes are missing"),
    ],
)  # fmt: skip
def test_a_header_that_lies_is_refused(block: bytes, reason: str, match: str) -> None:
    refused(block, reason, match)


def test_a_scan_ends_at_the_damage_and_says_what_it_is(tmp_path: Path) -> None:
    path = archive(tmp_path / "s.tar", [("a.json", b"{}"), ("b.json", b"{}"), ("c.json", b"{}")])
    data = bytearray(path.read_bytes())
    data[1024 : 1024 + 512] = b"\xaa" * 512
    path.write_bytes(data)
    found = scan(path)
    assert found.offsets == [0]
    assert found.tail is not None and found.tail.reason == "tar" and "byte 1,024" in str(found.tail)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 3 * 1024 - 1), st.integers(0, 255)), max_size=3), st.booleans())
@example([(156, ord("g"))], True)
@example([(156, ord("L"))], True)
def test_a_mutated_header_never_moves_the_samples_that_tarfile_finds(
    tmp_path: Path, changes: list[tuple[int, int]], repaired: bool
) -> None:
    """Where both read the whole archive they agree; ours stops earlier, or says what is wrong, but never sees more."""
    path = archive(tmp_path / "s.tar", [("a.json", b"{}"), ("a.0.jpg", b"x" * 9), ("b.json", b"{}")])
    data = bytearray(path.read_bytes())
    for position, value in changes:
        data[position] = value
        block = position // 512 * 512
        if repaired:
            data[block : block + 512] = with_checksum(bytes(data[block : block + 512]))
    path.write_bytes(data)
    found = scan(path)
    try:
        theirs = offsets_of_tarfile(path)
    except tarfile.TarError:
        return
    if found.tail is None:
        assert found.offsets == theirs
    else:
        assert found.offsets == theirs[: len(found.offsets)]
