"""Converting: each input once, whole or not at all, and the same bytes whatever happened on the way."""

import errno
import json
import os
import shutil
import signal
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from flamingo_lite.data.convert.frame import Unit, fields, files, stretches
from flamingo_lite.data.convert.ledger import Ledger
from flamingo_lite.data.deny import deny_line
from flamingo_lite.data.manifest import load_manifest
from flamingo_lite.data.shards import read_samples
from flamingo_lite.errors import FlamingoError, SampleError
from tests.data.convert.conversion_runs import run, tree, write_input, write_inputs
from tests.data.convert.pages import img2dataset_members, picture, write_tar


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    return write_inputs(tmp_path / "in")


def times(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in directory.glob("*.tar")}


def test_each_input_becomes_shards_and_a_line_in_the_manifest_each(inputs: Path, tmp_path: Path) -> None:
    run(tmp_path / "to", inputs)
    manifest = load_manifest(tmp_path / "to", verify="sha256")
    assert [(shard.name, shard.samples, shard.images) for shard in manifest.shards] == [
        (f"shard-{i:05d}-{part:03d}.tar", samples, samples)
        for i in range(3)
        for part, samples in enumerate((4, 2))
    ]
    assert manifest.info == {
        "format": "img2dataset", "converter": 2, "options": {"samples_per_shard": 4}, "documents": 18, "images": 18,
        "rejects": {"image": 3}, "images_left_out": {},
    }  # fmt: skip
    keys = [key for key, _ in read_samples(tmp_path / "to")]
    assert keys == [f"{i:05d}-{number:08d}" for i in range(3) for number in (0, 2, 3, 4, 5, 6)]


def test_rejects_are_listed_in_the_order_of_the_inputs(inputs: Path, tmp_path: Path) -> None:
    run(tmp_path / "to", inputs)
    lines = [json.loads(line) for line in (tmp_path / "to" / "rejects.jsonl").read_text().splitlines()]
    assert [(line["key"], line["reason"]) for line in lines] == [
        (f"{i:05d}-00000001", "image") for i in range(3)
    ]
    assert lines[1]["message"].startswith("00001.tar: sample 00011.jpg: not a readable image")


def test_two_processes_write_the_bytes_of_one(inputs: Path, tmp_path: Path) -> None:
    run(tmp_path / "one", inputs)
    run(tmp_path / "two", inputs, workers=2)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_the_bytes_do_not_depend_on_where_the_inputs_lie(inputs: Path, tmp_path: Path) -> None:
    run(tmp_path / "one", inputs)
    shutil.copytree(inputs, tmp_path / "else" / "where")
    run(tmp_path / "two", *sorted((tmp_path / "else" / "where").iterdir()))
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_a_second_run_does_nothing(inputs: Path, tmp_path: Path) -> None:
    assert [was_done for _, was_done in run(tmp_path / "to", inputs)] == [False] * 3
    before, written = tree(tmp_path / "to"), (tmp_path / "to" / "shards.json").stat().st_mtime_ns
    assert [was_done for _, was_done in run(tmp_path / "to", inputs)] == [True] * 3
    assert tree(tmp_path / "to") == before and (tmp_path / "to" / "shards.json").stat().st_mtime_ns == written


def test_a_changed_input_is_done_again_alone(inputs: Path, tmp_path: Path) -> None:
    run(tmp_path / "to", inputs)
    before = times(tmp_path / "to")
    write_input(inputs / "00001.tar", 3, 50)
    assert [was_done for _, was_done in run(tmp_path / "to", inputs)] == [True, False, True]
    after = times(tmp_path / "to")
    assert {name for name in after if after[name] == before[name]} == {n for n in before if "00001" not in n}
    run(tmp_path / "anew", inputs)
    assert tree(tmp_path / "to") == tree(tmp_path / "anew")


def test_a_further_input_leaves_the_others_alone(inputs: Path, tmp_path: Path) -> None:
    run(tmp_path / "to", inputs)
    write_input(inputs / "00000a.tar", 3, 50)
    assert [was_done for _, was_done in run(tmp_path / "to", inputs)] == [True, False, True, True]
    run(tmp_path / "anew", inputs)
    assert tree(tmp_path / "to") == tree(tmp_path / "anew")


def test_another_option_does_all_again(inputs: Path, tmp_path: Path) -> None:
    run(tmp_path / "to", inputs)
    assert [was_done for _, was_done in run(tmp_path / "to", inputs, min_text=1)] == [False] * 3


@pytest.mark.parametrize(
    "name", ["shard-00001-000.tar", "shard-00001-000.tar.idx", ".convert/00001.rejects.jsonl"]
)
def test_a_lost_file_is_made_again(name: str, inputs: Path, tmp_path: Path) -> None:
    run(tmp_path / "to", inputs)
    before = tree(tmp_path / "to")
    (tmp_path / "to" / name).unlink()
    assert [was_done for _, was_done in run(tmp_path / "to", inputs)] == [True, False, True]
    assert tree(tmp_path / "to") == before


def test_a_damaged_ledger_counts_as_none(inputs: Path, tmp_path: Path) -> None:
    run(tmp_path / "to", inputs)
    before = tree(tmp_path / "to")
    (tmp_path / "to" / ".convert" / "00001.json").write_text('{"unit": "00001"')
    assert [was_done for _, was_done in run(tmp_path / "to", inputs)] == [True, False, True]
    assert tree(tmp_path / "to") == before


# Interrupted


def test_killed_in_the_middle_and_run_again_is_one_uninterrupted_run(inputs: Path, tmp_path: Path) -> None:
    write_inputs(inputs, 40)
    run(tmp_path / "one", inputs)
    if (child := os.fork()) == 0:
        try:
            run(tmp_path / "two", inputs)
        finally:
            os._exit(1)
    ledgers = tmp_path / "two" / ".convert"
    while len(list(ledgers.glob("*.json")) if ledgers.exists() else []) < 5:
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    done = len(list(ledgers.glob("*.json")))
    assert 5 <= done < 40 and not (tmp_path / "two" / "shards.json").exists()
    assert sum(was_done for _, was_done in run(tmp_path / "two", inputs)) == done
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


@pytest.mark.parametrize("call", range(20))
def test_killed_before_any_rename_and_run_again_is_one_uninterrupted_run(
    call: int, inputs: Path, tmp_path: Path
) -> None:
    """Over a conversion that is there already and differs. The three inputs have six files each, the directory two."""
    run(tmp_path / "one", inputs)
    run(tmp_path / "two", inputs, min_text=1, samples_per_shard=1)
    if (child := os.fork()) == 0:
        try:
            kill_before_rename(call)
            run(tmp_path / "two", inputs)
        finally:
            os._exit(1)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    run(tmp_path / "two", inputs)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def kill_before_rename(call: int) -> None:
    """This process ends when it is about to rename a file for the time `call`."""
    replace, calls = os.replace, iter(range(1000))

    def stopping(source: Any, target: Any) -> None:
        if next(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    os.replace = stopping


@pytest.mark.parametrize("call", range(0, 18, 2))
def test_on_a_full_disk_nothing_half_written_counts_as_done(
    call: int, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "one", inputs)
    sync, calls = os.fsync, iter(range(10_000))

    def full(descriptor: int) -> None:
        if next(calls) == call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(FlamingoError, match="No space left on device.*free some space"):
            run(tmp_path / "two", inputs)
    assert not list((tmp_path / "two").rglob("*.partial")) and not (tmp_path / "two" / "shards.json").exists()
    run(tmp_path / "two", inputs)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_memory_does_not_grow_with_the_input(tmp_path: Path) -> None:
    image = picture(0, (96, 80))
    peaks = []
    for count in (50, 50, 400):  # the first one pays for what is imported and cached
        members: dict[str, bytes] = {}
        for i in range(count):
            members |= img2dataset_members(f"{i:05d}", image, "u", "c")
        path = write_tar(tmp_path / "in" / f"{count}.tar", members)
        tracemalloc.start()
        run(tmp_path / "to", path, overwrite=True, samples_per_shard=10)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < peaks[1] + 10 * len(image)


# Bad input


def refused(target: Path, *inputs: Path, **options: Any) -> str:
    with pytest.raises(FlamingoError) as caught:
        run(target, *inputs, **options)
    return str(caught.value)


def test_inputs_of_another_kind_are_named(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").write_text("")
    target = tmp_path / "to"
    assert "nothing.tar: no such file" in refused(target, tmp_path / "nothing.tar")
    assert "no .tar file in this folder; found notes.txt" in refused(target, tmp_path / "folder")
    assert "notes.txt: expected a .tar file" in refused(target, tmp_path / "folder" / "notes.txt")
    (tmp_path / "no.tar").write_text("no tar at all")
    assert "no.tar: no sample can be read" in refused(target, tmp_path / "no.tar")


def test_two_inputs_of_one_name_are_refused(inputs: Path, tmp_path: Path) -> None:
    other = write_input(tmp_path / "other" / "00001.tar", 2)
    assert "would get the same keys" in refused(tmp_path / "to", inputs, other)


def test_inputs_of_one_name_in_two_folders_have_keys_of_their_own(inputs: Path, tmp_path: Path) -> None:
    write_input(inputs / "below" / "00001.tar", 3)
    run(tmp_path / "to", inputs)
    keys = [key for key, _ in read_samples(tmp_path / "to")]
    assert len(set(keys)) == len(keys) == 20


def test_inputs_in_a_folder_with_a_dot_have_keys_of_their_own(tmp_path: Path) -> None:
    for name in ("a.tar", "b.tar"):
        write_input(tmp_path / "in" / "v1.0" / name, 3)
    run(tmp_path / "to", tmp_path / "in")
    assert len({key for key, _ in read_samples(tmp_path / "to")}) == 4


def test_a_deny_list_that_changed_counts_at_once(inputs: Path, tmp_path: Path) -> None:
    deny = tmp_path / "deny.txt"
    for first in (2, 3):
        deny.write_text("".join(f"{deny_line(picture(i, (24, 16)), '')}\n" for i in range(first, 7)))
        (ledger, _), *_ = run(tmp_path / "to", inputs, deny=str(deny), deny_distance=0)
        assert ledger.rejects["denied"] == 7 - first


def test_a_target_with_other_shards_is_left_alone_unless_overwritten(inputs: Path, tmp_path: Path) -> None:
    target = tmp_path / "to"
    target.mkdir()
    (target / "shard-000000.tar").write_bytes(b"mine")
    assert "holds shard-000000.tar, which no conversion wrote" in refused(target, inputs)
    assert (target / "shard-000000.tar").read_bytes() == b"mine"
    run(target, inputs, overwrite=True)
    run(tmp_path / "anew", inputs)
    assert tree(target) == tree(tmp_path / "anew")


def test_a_target_with_the_conversion_of_other_inputs_is_left_alone_unless_overwritten(
    inputs: Path, tmp_path: Path
) -> None:
    run(tmp_path / "to", inputs)
    before = tree(tmp_path / "to")
    one = inputs / "00001.tar"
    assert "the conversion of other inputs (00000 and 1 more)" in refused(tmp_path / "to", one)
    assert tree(tmp_path / "to") == before
    run(tmp_path / "to", one, overwrite=True)
    run(tmp_path / "anew", one)
    assert tree(tmp_path / "to") == tree(tmp_path / "anew")


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_target_that_holds_an_input_is_refused_and_the_input_kept(overwrite: bool, tmp_path: Path) -> None:
    path = write_input(tmp_path / "in" / "shard-000000.tar", 2)
    for given in (path, path.parent):
        assert "choose" in refused(tmp_path / "in", given, overwrite=overwrite)
    assert tree(tmp_path / "in").keys() == {"shard-000000.tar"}


def test_a_target_inside_a_folder_of_inputs_is_refused(inputs: Path, tmp_path: Path) -> None:
    assert "lies in the input" in refused(inputs / "to", inputs)


def test_a_tar_cut_in_its_first_sample_is_counted_and_the_others_are_converted(
    inputs: Path, tmp_path: Path
) -> None:
    (inputs / "00001.tar").write_bytes((inputs / "00001.tar").read_bytes()[:700])
    (inputs / "00002.tar").write_bytes(b"")
    outcomes = run(tmp_path / "to", inputs)
    assert [(ledger.documents, dict(ledger.rejects)) for ledger, _ in outcomes] == [
        (6, {"image": 1}),
        (0, {"truncated": 1}),
        (0, {"truncated": 1}),
    ]


def test_an_input_whose_storage_fails_is_named(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("flamingo_lite.data.convert.tars.read_at", fail)
    assert "00000.tar: cannot be read (Input/output error)" in refused(tmp_path / "to", inputs)


def test_a_target_that_cannot_be_written_is_named(inputs: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "file: is a file; choose another directory" in refused(tmp_path / "file", inputs)
    assert "cannot be written" in refused(tmp_path / "file" / "to", inputs)


def test_nothing_left_is_an_error_that_says_why(inputs: Path, tmp_path: Path) -> None:
    shown = refused(tmp_path / "to", inputs, min_side=1000)
    assert "no document was left (18 small_image, 3 image)" in shown
    assert not (tmp_path / "to" / "shards.json").exists()


def test_a_worker_that_dies_is_named_and_what_is_done_is_kept(inputs: Path, tmp_path: Path) -> None:
    from flamingo_lite.data.convert.engines import run_local

    units = files([inputs], ".tar")
    with pytest.raises(FlamingoError, match="a worker process died"):
        list(run_local(die, units, 2))


def die(unit: Unit) -> tuple[Ledger, bool]:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def test_engines_and_workers_that_cannot_be_are_named(inputs: Path, tmp_path: Path) -> None:
    assert "did you mean 'ray'" in refused(tmp_path / "to", inputs, engine="rai")
    assert "--workers is -1" in refused(tmp_path / "to", inputs, workers=-1)
    assert "--images /nowhere: no such folder" in refused(tmp_path / "to", inputs, images=Path("/nowhere"))
    assert "/nowhere: the deny-list cannot be read" in refused(tmp_path / "to", inputs, deny="/nowhere")


# The frame


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("00012.tar", "00012"),
        ("docs_no_face_shard_0_v3.jsonl.zip", "docs_no_face_shard_0_v3"),
        ("below/00012.tar", "below_00012-"),
        ("my file.tar", "my_file-"),
        ("Bücher.tar", "B_cher-"),
        ("写真.tar", "input-"),
        ("_x.tar", "x-"),
        ("a" * 90 + ".tar", "a" * 40 + "-"),
    ],
)
def test_names_become_plain_keys(name: str, stem: str) -> None:
    key = Unit(Path(name), name).key(7)
    assert key.startswith(stem) and key.endswith("-00000007") and len(key) <= 80
    assert (key == f"{stem}-00000007") == (not stem.endswith("-"))


def test_a_stretch_has_the_keys_of_its_file() -> None:
    parts = stretches(Unit(Path("a.json"), "a.json"), 11, size=5)
    assert [(part.start, part.stop) for part in parts] == [(0, 5), (5, 10), (10, 11)]
    assert len({part.id for part in parts}) == 3 and {part.key(3) for part in parts} == {"a-00000003"}


def test_missing_unknown_and_mistyped_fields_are_all_named() -> None:
    with pytest.raises(SampleError, match="x: a is missing; c is unknown; b is a str, not a int") as caught:
        fields({"b": "1", "c": 2}, "x", {"a": str, "b": int})
    assert caught.value.reason == "layout"
