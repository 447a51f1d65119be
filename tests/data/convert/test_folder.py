"""Plain folders: images with the texts beside them, or with the names of their folders."""

import shutil
from pathlib import Path

import pytest
from conversions import FIXTURES, convert, refused

from flamingo_lite.cli import main
from flamingo_lite.data.shards import read_shards
from flamingo_lite.document import Document, Image, Text

FOLDER = FIXTURES / "folder"


def pair(name: str, text: str) -> Document:
    return Document([Image(FOLDER / name), Text(text, ends_chunk=True)], {"path": name})


def test_an_image_is_paired_with_the_text_beside_it(tmp_path: Path) -> None:
    converted = convert(tmp_path, "folder", FOLDER)
    assert converted.documents == [
        pair("balls/green.png", "A green ball."),
        pair("balls/red.jpg", "A red ball."),
        pair("boxes/blue.jpg", "A blue box."),
    ]
    assert converted.rejects == []


def test_a_folders_name_can_be_the_text(tmp_path: Path) -> None:
    converted = convert(tmp_path, "folder", FOLDER, "text=folder")
    assert converted.documents == [
        pair("balls/green.png", "balls"),
        pair("balls/red.jpg", "balls"),
        pair("boxes/blue.jpg", "boxes"),
    ]


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FOLDER, tmp_path / "copied"))


def test_images_without_texts_and_texts_without_images_are_counted(tmp_path: Path, copied: Path) -> None:
    (copied / "balls" / "red.txt").unlink()
    (copied / "boxes" / "lost.txt").write_text("lost")
    converted = convert(tmp_path / "out", "folder", copied)
    assert len(converted.documents) == 2 and converted.reasons == ["missing", "missing"]
    assert "no red.txt" in converted.rejects[0][1]
    assert "lost.txt: no image of this name beside it" in converted.rejects[1][1]


def test_a_text_that_is_empty_or_not_utf8_is_counted(tmp_path: Path, copied: Path) -> None:
    (copied / "balls" / "red.txt").write_text(" \n")
    (copied / "balls" / "green.txt").write_bytes(b"\xff\xfe")
    assert convert(tmp_path / "out", "folder", copied).reasons == ["text", "text"]


def test_a_text_that_changed_is_read_by_the_next_conversion(tmp_path: Path, copied: Path) -> None:
    words = [
        "data",
        "convert",
        str(copied),
        "--from",
        "folder",
        "--to",
        str(tmp_path / "out"),
        "--workers",
        "1",
    ]
    for text in ("One text.", "Another text."):
        (copied / "balls" / "red.txt").write_text(text)
        assert main(words) == 0
        assert list(read_shards(tmp_path / "out"))[1] == pair("balls/red.jpg", text)


@pytest.mark.parametrize("name", ["red.jpg", "red.txt"])
def test_a_link_that_leads_out_of_the_folder_is_refused(tmp_path: Path, copied: Path, name: str) -> None:
    (copied / "balls" / name).rename(tmp_path / name)
    (copied / "balls" / name).symlink_to(tmp_path / name)
    converted = convert(tmp_path / "out", "folder", copied)
    assert len(converted.documents) == 2 and converted.reasons == ["path"]


def test_what_is_hidden_is_passed_over(tmp_path: Path, copied: Path) -> None:
    (copied / ".trash").mkdir()
    shutil.copy(copied / "balls" / "red.jpg", copied / ".trash" / "red.jpg")
    shutil.copy(copied / "balls" / "red.jpg", copied / "balls" / "._red.jpg")
    converted = convert(tmp_path / "out", "folder", copied)
    assert len(converted.documents) == 3 and converted.rejects == []


def test_no_folder_and_a_folder_without_images_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("a")
    assert "no images in this folder" in refused(capsys, tmp_path / "out", "folder", tmp_path)
    assert "no such folder" in refused(capsys, tmp_path / "out", "folder", tmp_path / "nowhere")


def test_an_unknown_source_of_texts_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean 'folder'?" in refused(capsys, tmp_path, "folder", FOLDER, "text=folders")
