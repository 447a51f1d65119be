"""`data check`: 0 for whole shards, 2 with one line for any other, and a repaired copy of what can be used."""

import json
import shutil
from pathlib import Path

import pytest
from hostile_shards import between_good_ones, interleaved, picture, with_image, write

from flamingo_lite.cli import main
from flamingo_lite.data.check import check, tasks
from flamingo_lite.data.manifest import MANIFEST, load_manifest
from flamingo_lite.data.shards import read_samples, write_shards
from flamingo_lite.document import Document, Image, Text


def documents(count: int) -> list[tuple[str, Document]]:
    image = Image(picture(), words="a square")
    return [
        (f"{i:04d}", Document([image, Text(f"text {i}", loss=False, role="user")], {"number": i}))
        for i in range(count)
    ]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Five documents in shards of two."""
    write_shards(documents(5), tmp_path / "shards", samples_per_shard=2, info={"made": "here"})
    return tmp_path / "shards"


def change_byte(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def spoil_an_image(directory: Path) -> None:
    """The picture of the first document loses its head."""
    data = (directory / "shard-000000.tar").read_bytes()
    (directory / "shard-000000.tar").write_bytes(data.replace(b"\x89PNG", b"\x89GNP", 1))


def claim_more_samples(directory: Path) -> None:
    manifest = directory / MANIFEST
    manifest.write_text(manifest.read_text().replace('"samples": 2', '"samples": 3'))


def test_whole_shards_end_with_zero(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(directory), "--workers", "1"]) == 0
    shown = capsys.readouterr().out
    assert "3 shards, 5 samples, 5 images decoded" in shown
    assert "whole" in shown


@pytest.mark.parametrize(
    "damage, named",
    [
        (lambda d: change_byte(d / "shard-000001.tar", 2), "1 of 5 samples cannot be used"),
        (lambda d: change_byte(d / "shard-000001.tar", 9000), "2 things are wrong with shards"),
        (lambda d: (d / "shard-000002.tar").unlink(), "1 of 5 samples cannot be used"),
        (lambda d: change_byte(d / "shard-000001.tar.idx", 1), "1 thing is wrong with shards"),
        (spoil_an_image, "1 of 5 samples cannot be used"),
        (lambda d: (d / MANIFEST).unlink(), "1 thing is wrong with shards"),
        (claim_more_samples, "2 of 7 samples"),
    ],
)  # fmt: skip
def test_any_damage_ends_with_two_and_one_line(
    damage: object, named: str, directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(directory)  # pyrefly: ignore
    assert main(["data", "check", str(directory), "--workers", "1"]) == 2
    error = capsys.readouterr().err
    assert named in error and "--repair" in error and error.count("\n") == 1


def test_rejects_are_counted_by_reason_and_the_first_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "a.tar", between_good_ones([("[red]k.json", b"{"), ("k.pkl", b"x")]))
    assert main(["data", "check", str(tmp_path), "--workers", "1"]) == 2
    shown = capsys.readouterr().out
    assert "a.tar/[red]k: the json cannot be parsed" in shown.replace("\n", "")
    assert "1 kind" in shown


def test_samples_behind_damage_are_found_by_the_index(directory: Path, tmp_path: Path) -> None:
    change_byte(directory / "shard-000000.tar", 2)
    words = ["data", "check", str(directory), "--workers", "1", "--repair", str(tmp_path / "to")]
    assert main(words) == 0
    assert list(read_samples(tmp_path / "to")) == documents(5)[1:]


def test_workers_change_nothing(directory: Path) -> None:
    spoil_an_image(directory)
    todo, _ = tasks(directory)
    assert list(check(todo, 1)) == list(check(todo, 2))


def test_a_repaired_copy_holds_the_usable_samples_and_is_whole(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil_an_image(directory)
    words = ["data", "check", str(directory), "--workers", "1"]
    assert main([*words, "--repair", str(tmp_path / "to")]) == 0
    assert "4 samples with 4 images" in capsys.readouterr().out
    assert list(read_samples(tmp_path / "to")) == documents(5)[1:]
    manifest = load_manifest(tmp_path / "to", verify="sha256")
    assert [shard.samples for shard in manifest.shards] == [2, 2]
    assert manifest.info == {"made": "here", "repaired": True}
    assert main(["data", "check", str(tmp_path / "to"), "--workers", "1"]) == 0


def test_shards_of_other_programs_are_indexed_by_a_repair(tmp_path: Path) -> None:
    (tmp_path / "from").mkdir()
    for name in ("b", "a"):  # keys with folders, and keys that come in both
        members = [
            (f"x/{name}.json", interleaved("0.png")),
            (f"x/{name}.0.png", picture()),
            *with_image(picture()),
        ]
        write(tmp_path / "from" / f"{name}.tar", members)
    words = ["data", "check", str(tmp_path / "from"), "--workers", "1", "--repair", str(tmp_path / "to")]
    assert main(words) == 0
    assert [key for key, _ in read_samples(tmp_path / "to")] == [
        "shard-000000-00000000", "k", "shard-000001-00000000", "shard-000001-00000001",
    ]  # fmt: skip
    assert main(["data", "check", str(tmp_path / "to"), "--workers", "1"]) == 0


def test_a_repair_into_the_directory_itself_is_refused(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    for more in ([], ["--overwrite"]):
        words = ["data", "check", str(directory), "--workers", "1", "--repair", str(directory), *more]
        assert main(words) == 2
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before
    assert "another directory" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["nowhere"], ["."], [".", "--workers", "-1"], []])
def test_what_cannot_be_checked_is_one_line(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["data", "check", *words]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_shards_that_no_manifest_names_are_told(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(directory / "shard-000000.tar", directory / "stray.tar")
    assert main(["data", "check", str(directory), "--workers", "1"]) == 0
    assert "stray.tar" in capsys.readouterr().out
    assert json.loads((directory / MANIFEST).read_text())["version"] == 1
