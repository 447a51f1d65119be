"""What an image is called when it is written, by its bytes and not by its name."""

import io

import PIL.Image
import pytest

from flamingo_lite.data.images import IMAGE_SUFFIXES, check_image, suffix
from flamingo_lite.document import Image
from flamingo_lite.errors import FlamingoError


@pytest.mark.parametrize("kind, expected", [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp")])
def test_the_suffix_follows_the_bytes(kind: str, expected: str, tmp_path) -> None:
    path = tmp_path / "picture.gif"
    PIL.Image.new("RGB", (4, 4)).save(path, kind)
    assert suffix(Image(path)) == expected
    assert expected in IMAGE_SUFFIXES


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"RIFF1234WAVE", b"\x80\x04pickle"])
def test_other_bytes_have_no_suffix(data: bytes) -> None:
    with pytest.raises(FlamingoError, match="expected JPEG, PNG or WebP"):
        suffix(Image(data))


def test_a_check_finds_an_image_that_only_begins_well() -> None:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (64, 64)).save(buffer, "JPEG")
    check_image(Image(buffer.getvalue()))
    with pytest.raises(FlamingoError, match="cut.jpg"):
        check_image(Image(buffer.getvalue()[:300], name="cut.jpg"))
