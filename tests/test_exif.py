"""EXIF: the orientation is the one that Pillow applies, and blocks that claim too much are refused before they are read."""

import io
import struct

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flamingo_lite.document import Image
from flamingo_lite.errors import SampleError
from flamingo_lite.exif import MAX_FOLD, claims, orientation


def block(*entries: tuple[int, int, int, int], order: str = ">", size: int = 400) -> bytes:
    head = (b"MM\0*" if order == ">" else b"II*\0") + struct.pack(f"{order}IH", 8, len(entries))
    return b"Exif\0\0" + (head + b"".join(struct.pack(f"{order}HHII", *e) for e in entries)).ljust(
        size, b"\0"
    )


def encoded(kind: str, exif: bytes | PIL.Image.Exif) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, kind, exif=exif)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_an_image_is_turned_as_pillow_turns_it(kind: str, turn: int) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = turn
    exif[0x010F] = "a maker with a long name"
    data = encoded(kind, exif)
    upright = PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(data))).convert("RGB")
    assert np.array_equal(np.asarray(Image(data).pil()), np.asarray(upright))


@pytest.mark.parametrize("order", [">", "<"])
def test_claims_are_added_up_by_type_and_at_most_the_block_each(order: str) -> None:
    entries = [(1, 2, 30, 8), (2, 5, 4, 8), (3, 7, 10**9, 8), (4, 99, 10**9, 8)]
    assert claims(block(*entries, order=order)) == 30 + 32 + 400


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60), st.sampled_from([b"", b"Exif\0\0", b"Exif\0\0Exif\0\0MM\0*", b"II*\0"]))
def test_any_bytes_have_claims(tail: bytes, head: bytes) -> None:
    assert claims(head + tail) >= 0


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_block_that_claims_itself_many_times_is_refused(kind: str) -> None:
    entries = [(tag, 7, 40_000, 8) for tag in range(1, MAX_FOLD + 20)]
    with pytest.raises(SampleError, match="claims many times") as caught:
        Image(encoded(kind, block(*entries, size=40_008))).pil()
    assert caught.value.reason == "image"


@pytest.mark.filterwarnings("ignore")  # Pillow tells of the damage
def test_a_few_damaged_tags_leave_the_rest_as_it_was() -> None:
    entries = [(0x0112, 3, 1, 6 << 16), (0x8769, 7, 10**9, 8), (0x9000, 7, 4000, 5000)]
    assert Image(encoded("JPEG", block(*entries))).pil().size == (6, 9)


def test_an_image_without_exif_stands_as_it_is() -> None:
    assert orientation(PIL.Image.new("RGB", (2, 2))) == 1
