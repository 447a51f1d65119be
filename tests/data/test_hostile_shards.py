"""Hostile shards: nothing executes, nothing hangs, memory stays bounded, and every reject is counted."""

import json
import os
import subprocess
import sys
import tarfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hostile_shards import (
    CANARY,
    SAMPLES,
    animated,
    between_good_ones,
    interleaved,
    picture,
    with_image,
    write,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flamingo_lite.data.check import Task, check_shard, tasks
from flamingo_lite.data.manifest import MANIFEST, Shard, sha256_of
from flamingo_lite.data.shard_index import index_bytes
from flamingo_lite.data.shards import Shards
from flamingo_lite.data.tar import scan
from flamingo_lite.document import Image
from flamingo_lite.errors import REASONS, FlamingoError, SampleError

# Pillow tells of each claim of a hostile EXIF block; pytest collects what a program would not be told.
pytestmark = pytest.mark.filterwarnings("ignore")


def described(path: Path) -> Shard:
    found = scan(path)
    return Shard(path.name, path.stat().st_size, sha256_of(path), len(found.offsets), found.images)


def directory_of(path: Path, shard: Shard | None = None) -> Path:
    entry = vars(shard or described(path))
    (path.parent / MANIFEST).write_text(json.dumps({"version": 1, "shards": [entry]}))
    return path.parent


@pytest.mark.parametrize("name", SAMPLES)
def test_a_hostile_sample_costs_itself_alone_and_is_counted(name: str, tmp_path: Path) -> None:
    members, reason = SAMPLES[name]
    path = write(tmp_path / "s.tar", between_good_ones(members))
    found = check_shard(Task(path, described(path)))
    assert found.problems == []
    assert found.samples == 3
    assert found.rejects == ({reason: 1} if reason else {})
    assert all(len(line) < 600 and line.isprintable() for lines in found.examples.values() for line in lines)


@pytest.mark.parametrize("name", [name for name, (_, reason) in SAMPLES.items() if reason])
def test_reading_a_hostile_sample_is_an_error_with_its_reason(name: str, tmp_path: Path) -> None:
    members, reason = SAMPLES[name]
    shards = Shards(directory_of(write(tmp_path / "s.tar", between_good_ones(members))))
    assert [shards[0][0], shards[2][0]] == ["before", "behind"]
    with pytest.raises(SampleError, match="s.tar") as caught:
        for image in shards[1][1].images:
            image.pil()
    assert caught.value.reason == reason
    assert reason in REASONS


CHILD = """
import resource, sys
from pathlib import Path
import PIL.Image
from flamingo_lite.data.check import Task, check_shard, tasks
PIL.Image.init()
folder, seen = Path(sys.argv[1]), []
harmless = str(folder), sys.prefix, sys.base_prefix

def watch(event, arguments):
    if event in ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "pickle.find_class"):
        seen.append(event)
    elif event.startswith(("socket.connect", "urllib.", "os.mkdir", "os.symlink", "os.link", "ctypes.dlopen")):
        seen.append(event)
    elif event == "open" and not str(arguments[0]).startswith(harmless):
        seen.append(f"open {arguments[0]}")

check_shard(Task(folder / "good.tar", None))  # whatever is imported late is imported now
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
sys.addaudithook(watch)
samples = sum(check_shard(Task(path, None)).samples for path in sorted(folder.glob("*.tar")))
print(samples, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024, seen)
"""


def test_nothing_executes_and_memory_and_time_stay_bounded(tmp_path: Path) -> None:
    for number, (members, _) in enumerate(SAMPLES.values()):
        write(tmp_path / f"{number:03d}.tar", between_good_ones(members))
    write(tmp_path / "good.tar", with_image(picture()))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.getcwd(), *sys.path])}
    words = [sys.executable, "-c", CHILD, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=100, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    samples, megabytes, seen = done.stdout.split(maxsplit=2)
    assert int(samples) == 3 * len(SAMPLES) + 1
    assert seen.strip() == "[]"
    # Two hundred texts of a PNG are the dearest: Pillow reads 64 MB of them.
    assert int(megabytes) < 400
    assert not (tmp_path / CANARY).exists()
    assert "Warning" not in done.stderr and len(done.stderr) < 1000


@pytest.mark.parametrize("size", [2**30, 100 * 2**20])
def test_a_json_of_a_gigabyte_is_refused_unread(size: int, tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    claim = tarfile.TarInfo("k.json")
    claim.size = size
    with path.open("wb") as file:
        file.write(claim.tobuf(tarfile.GNU_FORMAT))
        file.truncate(512 + size + 1024)  # a hole: no block of it lies on the disk
    found = check_shard(Task(path, None))
    assert (found.samples, found.rejects, found.problems) == (1, {"bytes": 1}, [])


def test_members_out_of_order_are_refused_and_counted_once_a_key(tmp_path: Path) -> None:
    names = [("a.json", interleaved("0.jpg")), ("b.json", interleaved("0.jpg"))]
    images = [("a.0.jpg", picture("JPEG")), ("b.0.jpg", picture("JPEG"))]
    found = check_shard(Task(write(tmp_path / "s.tar", [*names, *images]), None))
    assert found.rejects == {"member": 2, "duplicate": 2}
    assert found.samples == 4


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_the_first_frame_of_an_animation_is_its_image(kind: str) -> None:
    assert Image(animated(kind)).pil().getpixel((0, 0)) == (10, 0, 0)


@pytest.mark.parametrize("link", ["pipe", "link", "directory"])
def test_a_shard_that_is_no_file_is_named_and_not_opened(link: str, tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    {"pipe": os.mkfifo, "link": lambda p: p.symlink_to("/dev/zero"), "directory": Path.mkdir}[link](path)
    found = check_shard(Task(path, None))
    assert found.samples == 0
    assert len(found.problems) == 1 and "s.tar" in found.problems[0]


@pytest.mark.parametrize(
    "name",
    [
        f"pipe:mkdir {CANARY}; cat s.tar",
        "file:///etc/s.tar",
        "http://127.0.0.1:9/s.tar",
        "../s.tar",
        "/etc/s.tar",
    ],
)
def test_a_shard_name_that_is_an_address_or_a_path_is_never_opened(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "s.tar", with_image(picture()))
    directory_of(path, replace(described(path), name=name))
    for read in (Shards, tasks):
        with pytest.raises(FlamingoError, match="shard name"):
            read(tmp_path)
    assert not (tmp_path / CANARY).exists()


@pytest.mark.parametrize("claim", [{"samples": 10**15}, {"images": 10**15}])
def test_a_manifest_that_claims_more_than_fits_is_refused(claim: dict[str, int], tmp_path: Path) -> None:
    path = write(tmp_path / "s.tar", with_image(picture()))
    with pytest.raises(FlamingoError, match="bytes can hold"):
        Shards(directory_of(path, replace(described(path), **claim)))


def test_the_documentation_names_every_reason() -> None:
    told = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    assert all(f"\n| `{reason}` | " in told for reason in REASONS)


def small_shard(path: Path) -> Path:
    """Two samples of two members each, the second with a long name."""
    members = [
        *with_image(picture()),
        ("x" * 120 + ".json", interleaved("0.png")),
        ("x" * 120 + ".0.png", picture()),
    ]
    return write(path, [("k.json", interleaved("0.png")), ("k.0.png", picture()), *members[2:]])


def test_a_shard_cut_at_any_block_is_read_up_to_the_cut_and_the_tail_is_counted(tmp_path: Path) -> None:
    path = small_shard(tmp_path / "s.tar")
    whole, shard, content = path.read_bytes(), described(path), scan(path)
    ends = [stop for _, stop in content.stretches]
    path.with_name("s.tar.idx").write_bytes(index_bytes([*content.offsets, content.end]))
    for cut in range(0, len(whole), 512):
        path.write_bytes(whole[:cut])
        usable = sum(end <= cut for end in ends)
        found = check_shard(Task(path, shard))
        assert (found.samples, found.rejects.total()) == (2, 2 - usable), cut
        assert found.problems
        if cut <= content.end:
            assert any("truncated" in problem for problem in found.problems), cut
        shards = Shards(directory_of(path, shard))
        read: Counter[str] = Counter()
        for number in range(2):
            try:
                read[shards[number][0][:1]] += 1
            except SampleError as error:
                read[error.reason] += 1
        assert read == Counter(["k", "x"][:usable] + ["truncated"] * (2 - usable)), cut


edits = st.lists(
    st.one_of(
        st.tuples(st.just("byte"), st.integers(0, 2**16), st.integers(0, 255)),
        st.tuples(st.just("bit"), st.integers(0, 2**16), st.integers(0, 7)),
        st.tuples(st.just("cut"), st.integers(0, 2**16), st.integers(1, 600)),
        st.tuples(st.just("repeat"), st.integers(0, 40), st.integers(0, 40)),
        st.tuples(st.just("swap"), st.integers(0, 40), st.integers(0, 40)),
        st.tuples(st.just("type"), st.integers(0, 40), st.sampled_from(b"0123456789LKxgXSMVND\0")),
        st.tuples(st.just("size"), st.integers(0, 40), st.sampled_from([0, 1, 511, 513, 2**20, 2**33 - 1])),
    ),
    max_size=5,
)


def mutated(data: bytes, changes: list[tuple[str, int, int]]) -> bytes:
    """The shard after each change; those of a header mend its checksum, so that they get past it."""
    for kind, where, value in changes:
        changed = bytearray(data)
        block = 512 * (where % max(1, len(data) // 512))
        other = 512 * (value % max(1, len(data) // 512))
        at = where % max(1, len(data))
        if not data:
            return data
        if kind == "byte":
            changed[at] = value
        elif kind == "bit":
            changed[at] ^= 1 << value
        elif kind == "cut":
            del changed[at : at + value]
        elif kind == "repeat":
            changed[other:other] = data[block : block + 512]
        elif kind == "swap":
            changed[block : block + 512], changed[other : other + 512] = (
                data[other : other + 512], data[block : block + 512],
            )  # fmt: skip
        else:
            field = bytes([value]) if kind == "type" else f"{value:011o}\0".encode()
            start = block + (156 if kind == "type" else 124)
            changed[start : start + len(field)] = field
            header = changed[block : block + 512]
            total = 256 + sum(header[:148]) + sum(header[156:512])
            changed[block + 148 : block + 156] = f"{total:06o}\0 ".encode()
        data = bytes(changed)
    return data


def read_or_refuse_all(path: Path, whole: bytes, shard: Shard, changes: list[tuple[str, int, int]]) -> None:
    path.write_bytes(mutated(whole, changes))
    for known in (shard, None):
        found = check_shard(Task(path, known))
        assert 0 <= found.rejects.total() <= found.samples
        assert set(found.rejects) <= set(REASONS)
    if path.read_bytes() != whole:
        assert check_shard(Task(path, shard)).problems


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes, Shard]:
    path = small_shard(tmp_path_factory.mktemp("fuzz") / "s.tar")
    with path.open("r+b") as file:
        file.truncate(scan(path).end + 1024)  # without the padding, in which most changes would fall
    return path, path.read_bytes(), described(path)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits)
def test_a_mutated_shard_is_read_or_refused(
    fuzzed: tuple[Path, bytes, Shard], changes: list[tuple[str, int, int]]
) -> None:
    read_or_refuse_all(*fuzzed, changes)


@pytest.mark.slow
@settings(max_examples=10_000, deadline=2000, suppress_health_check=list(HealthCheck))
@given(edits)
def test_ten_thousand_mutated_shards_are_read_or_refused(
    fuzzed: tuple[Path, bytes, Shard], changes: list[tuple[str, int, int]]
) -> None:
    read_or_refuse_all(*fuzzed, changes)
