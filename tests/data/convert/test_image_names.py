"""A name that comes from data finds an image of its folder, and nothing outside of it."""

from pathlib import Path

import pytest

from flamingo_lite.data.convert.sources import image_in
from flamingo_lite.errors import SampleError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inside = tmp_path / "images" / "train"
    inside.mkdir(parents=True)
    (inside / "a.png").write_bytes(b"image")
    (tmp_path / "secret.png").write_bytes(b"secret")
    (tmp_path / "images" / "link.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "images" / "loop").symlink_to(tmp_path / "images" / "loop")
    return tmp_path / "images"


def test_an_image_is_found_below_the_folder(folder: Path) -> None:
    assert image_in(folder, "train/a.png", "r").data == b"image"


def test_an_image_is_found_where_the_folder_itself_is_a_link(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "linked").symlink_to(folder)
    assert image_in(tmp_path / "linked", "train/a.png", "r").data == b"image"


@pytest.mark.parametrize(
    "name", ["../secret.png", "train/../../secret.png", "/etc/passwd", "link.png", "/", "..", "train/../.."]
)
def test_a_name_that_leads_out_is_refused(folder: Path, name: str) -> None:
    with pytest.raises(SampleError, match="lies outside") as caught:
        image_in(folder, name, "r")
    assert caught.value.reason == "path"


@pytest.mark.parametrize("name", ["train/b.png", "train", "train/a.png/b", "x" * 300, "loop"])
def test_a_name_without_an_image_is_counted_as_missing(folder: Path, name: str) -> None:
    with pytest.raises(SampleError, match="^r: image") as caught:
        image_in(folder, name, "r")
    assert caught.value.reason == "missing"


@pytest.mark.parametrize("name", ["", "a\0.png", 3, None])
def test_what_is_no_name_is_refused(folder: Path, name: object) -> None:
    with pytest.raises(SampleError, match="is no name of an image"):
        image_in(folder, name, "r")
