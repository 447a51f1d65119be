"""A name that comes from data finds an image of its folder, and nothing outside of it."""

import io
from pathlib import Path

import PIL.Image
import pytest

from flamingo_lite.data.convert.image_folder import ImageFolder
from flamingo_lite.errors import FlamingoError, SampleError


def picture() -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (6, 4), "red").save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> ImageFolder:
    inside = tmp_path / "images" / "train"
    inside.mkdir(parents=True)
    (inside / "a.png").write_bytes(picture())
    (tmp_path / "secret.png").write_bytes(picture())
    return ImageFolder(tmp_path / "images")


def test_an_image_is_found_below_the_folder(folder: ImageFolder) -> None:
    assert folder.image("train/a.png").data == picture()


def test_the_first_name_that_exists_is_taken(folder: ImageFolder) -> None:
    assert folder.image("a.png", "train/a.png").name == "train/a.png"


def test_an_image_is_found_where_the_folder_itself_is_a_link(folder: ImageFolder, tmp_path: Path) -> None:
    (tmp_path / "linked").symlink_to(folder.directory)
    assert ImageFolder(tmp_path / "linked").image("train/a.png").data == picture()


@pytest.mark.parametrize(
    "name",
    [
        "../secret.png",
        "train/../../secret.png",
        "train\\..\\..\\secret.png",
        "/etc/passwd",
        "C:\\secret.png",
        "\\\\server\\secret.png",
        "",
        "a\0.png",
        "link.png",
        "loop",
    ],
)
def test_a_name_that_leads_out_is_refused(folder: ImageFolder, tmp_path: Path, name: str) -> None:
    (folder.directory / "link.png").symlink_to(tmp_path / "secret.png")
    (folder.directory / "loop").symlink_to(folder.directory / "loop")
    with pytest.raises(SampleError, match="leads out of the folder") as caught:
        folder.image(name)
    assert caught.value.reason == "path"


def test_an_absolute_name_is_refused_even_inside_the_folder(folder: ImageFolder) -> None:
    with pytest.raises(SampleError, match="leads out"):
        folder.image(str(folder.directory / "train" / "a.png"))


@pytest.mark.parametrize("name", ["train/b.png", "train", "train/a.png/b", "x" * 300])
def test_a_name_without_an_image_is_named(folder: ImageFolder, name: str) -> None:
    with pytest.raises(SampleError, match="has no image") as caught:
        folder.image(name)
    assert caught.value.reason == "missing_image"


def test_a_missing_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(FlamingoError, match="no such folder of images; name it with --images"):
        ImageFolder(tmp_path / "nowhere")
