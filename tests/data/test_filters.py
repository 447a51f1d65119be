"""Filters: each judgement by its limit, and the deny-list that keeps evaluation images out of training."""

import io
from pathlib import Path
from typing import Any

import imagehash
import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flamingo_lite import cli
from flamingo_lite.data import filters
from flamingo_lite.data.deny import deny_line, load_deny_list, parse_deny_list, perceptual_hash
from flamingo_lite.data.filters import (
    Filters,
    check_bulk,
    check_count,
    check_image,
    check_similarity,
    check_texts,
    in_share,
    join_texts,
    mark_chunks,
)
from flamingo_lite.data.limits import Limits
from flamingo_lite.document import Document, Image, Text
from flamingo_lite.errors import FlamingoError, SampleError


def scene(seed: int, size: tuple[int, int] = (320, 240)) -> PIL.Image.Image:
    """Smooth blobs: like a photograph, it has a shape that survives resizing."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return PIL.Image.fromarray(noise).resize(size, PIL.Image.Resampling.BICUBIC)


def encoded(image: PIL.Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def reason(check: Any, *arguments: Any) -> str | None:
    try:
        check(*arguments)
    except SampleError as error:
        return error.reason
    return None


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, None),
        ({"min_bytes": 10**6}, "small_image"),
        ({"min_side": 240}, None),
        ({"min_side": 241}, "small_image"),
        ({"max_side": 320}, None),
        ({"max_side": 319}, "large_image"),
        ({"max_aspect": 4 / 3}, None),
        ({"max_aspect": 1.3}, "aspect"),
    ],
)
def test_an_image_is_judged_by_its_bytes_and_sides(limits: dict[str, Any], expected: str | None) -> None:
    assert reason(check_image, Image(encoded(scene(0))), Filters(**limits)) == expected


def test_an_image_that_is_not_whole_is_refused() -> None:
    assert reason(check_image, Image(encoded(scene(0))[:-500]), Filters()) == "image"


@pytest.mark.parametrize(
    ("similarity", "threshold", "expected"),
    [
        (0.1, None, None),
        (None, None, None),
        (0.24, 0.24, None),
        (0.2399, 0.24, "similarity"),
        (None, 0.24, "layout"),
    ],
)
def test_similarity_is_judged_where_a_threshold_is_set(
    similarity: float | None, threshold: float | None, expected: str | None
) -> None:
    assert reason(check_similarity, similarity, "x", Filters(min_similarity=threshold)) == expected


@pytest.mark.parametrize(
    ("texts", "limits", "expected"),
    [
        (["abc", "de"], {"min_text": 5, "max_text": 5}, None),
        (["abc"], {"min_text": 4}, "text"),
        (["abc"], {"max_text": 2}, "text"),
        (["a\ud800"], {}, "text"),
        (["an <image>"], {}, "marks"),
        (["<|endofchunk|>"], {}, "marks"),
    ],
)
def test_texts_are_judged_by_length_and_by_what_no_template_can_take(
    texts: list[str], limits: dict[str, Any], expected: str | None
) -> None:
    assert reason(check_texts, Document(texts), "x", Filters(**limits)) == expected


def test_the_number_of_images_is_judged() -> None:
    limits = Filters(min_images=1, max_images=2)
    assert [reason(check_count, n, "k", "x", limits) for n in range(4)] == ["images", None, None, "images"]
    assert reason(check_count, 1, "k", "x", Filters(single_images=0.0)) == "single_image"


def test_what_could_not_be_read_again_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    assert reason(check_bulk, Document(["é" * 300_000]), "x") is None
    assert reason(check_bulk, Document(["é" * 400_000]), "x") == "bytes"
    monkeypatch.setattr(filters, "LIMITS", Limits(member_bytes=100, sample_bytes=200))
    for sizes, expected in (([100], None), ([101], "bytes"), ([90, 90], None), ([100, 100], "bytes")):
        document = Document([Image(b"\xff\xd8\xff" + bytes(size - 3)) for size in sizes])
        assert reason(check_bulk, document, "x") == expected


@given(st.text(max_size=20), st.floats(0, 1), st.floats(0, 1))
def test_a_key_in_a_share_is_in_every_larger_one(key: str, one: float, other: float) -> None:
    assert in_share(key, 1.0) and not in_share(key, 0.0)
    assert in_share(key, min(one, other)) <= in_share(key, max(one, other))


def test_a_share_of_keys_has_its_size() -> None:
    assert abs(sum(in_share(f"{i}", 0.3) for i in range(10_000)) - 3000) < 150


@settings(deadline=None)
@given(st.lists(st.booleans(), max_size=10))
def test_a_chunk_ends_once_behind_each_image_that_has_text(is_image: list[bool]) -> None:
    picture = Image(b"\xff\xd8\xff")
    segments = mark_chunks(join_texts([picture if image else Text("a") for image in is_image], " "))
    written = "".join("I" if isinstance(s, Image) else "t" + "." * s.ends_chunk for s in segments)
    assert "tt" not in written
    assert not any(head.endswith(".") for head in [written.split("I")[0]] if "I" in written)
    assert all(part in ("", "t.") for part in written.split("I")[1:])


@pytest.mark.parametrize(
    ("limits", "named"),
    [
        ({"min_side": -1}, "min_side is -1"),
        ({"min_images": 3, "max_images": 2}, "nothing would be left"),
        ({"max_aspect": 0.5}, "max_aspect is 0.5"),
        ({"min_similarity": 24.0}, "min_similarity is 24.0"),
        ({"single_images": 2.0}, "single_images is 2.0"),
        ({"deny_distance": 64}, "deny_distance is 64"),
    ],
)
def test_limits_that_cannot_be_are_named(limits: dict[str, Any], named: str) -> None:
    with pytest.raises(FlamingoError, match=named):
        Filters(**limits)


# The deny-list


def test_the_perceptual_hash_is_imagehashs() -> None:
    assert perceptual_hash(scene(1)) == int(str(imagehash.phash(scene(1))), 16)


def test_copies_are_found_exactly_resized_and_compressed_again_and_others_are_not() -> None:
    denied = [encoded(scene(i)) for i in range(20)]
    deny = parse_deny_list([deny_line(data, "x") for data in denied], "list")
    for i in range(20):
        for copy in (denied[i], encoded(scene(i).resize((200, 150))), encoded(scene(i), quality=30)):
            assert reason(check_image, Image(copy), Filters(), deny) == "denied"
        assert reason(check_image, Image(encoded(scene(100 + i))), Filters(), deny) is None


def test_the_message_says_how_near_it_is() -> None:
    deny = parse_deny_list([deny_line(encoded(scene(0)), "x")], "list")
    with pytest.raises(SampleError, match="bits from a denied image"):
        check_image(Image(encoded(scene(0), "PNG")), Filters(), deny)
    with pytest.raises(SampleError, match="an exact copy of a denied image"):
        check_image(Image(encoded(scene(0))), Filters(), deny)


def test_the_command_makes_the_list_that_a_conversion_reads(tmp_path: Path) -> None:
    folder = tmp_path / "evaluation" / "below"
    folder.mkdir(parents=True)
    (folder / "a.jpg").write_bytes(encoded(scene(0)))
    (folder / "b.PNG").write_bytes(encoded(scene(1), "PNG"))
    (folder / "notes.txt").write_text("not an image")
    assert cli.main(["data", "deny", str(tmp_path / "evaluation"), "--to", str(tmp_path / "deny.txt")]) == 0
    deny = load_deny_list(str(tmp_path / "deny.txt"))
    assert len(deny.exact) == len(deny.perceptual) == 2
    assert reason(check_image, Image(encoded(scene(1))), Filters(), deny) == "denied"


@pytest.mark.parametrize("content", ["", "hello\n", "a" * 64 + "\n", "a" * 64 + " " + "g" * 16 + "\n"])
def test_a_file_that_is_no_deny_list_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "list").write_text(content)
    with pytest.raises(FlamingoError, match="list: .*flamingo-lite data deny"):
        load_deny_list(str(tmp_path / "list"))
