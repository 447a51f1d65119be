"""Values of foreign records: texts, lists and images in base64, and the reasons under which bad ones count."""

import base64
from typing import Any

import pytest

from flamingo_lite.data.convert.values import image_from_base64, list_of, plain_text
from flamingo_lite.errors import SampleError


def test_an_entry_of_another_kind_is_named() -> None:
    with pytest.raises(SampleError, match="r: entry 1 is a int, not a str") as caught:
        list_of(str, ["a", 2], "r")
    assert caught.value.reason == "layout"


def test_a_text_loses_the_blanks_at_its_ends() -> None:
    assert plain_text(" a  b\n", "r") == "a  b"


def test_an_empty_text_is_refused() -> None:
    with pytest.raises(SampleError, match="r: is empty") as caught:
        plain_text(" \n", "r")
    assert caught.value.reason == "text"


@pytest.mark.parametrize("head", ["", "data:image/png;base64,"])
@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode, base64.encodebytes])
def test_base64_is_read_in_either_alphabet(head: str, encode: Any) -> None:
    data = bytes(range(256))
    assert image_from_base64(head + encode(data).decode(), "r").data == data
    assert image_from_base64(encode(data).decode().rstrip("=\n"), "r").data == data


@pytest.mark.parametrize("text", ["!!!!", "abcde", "é"])
def test_what_is_no_base64_is_a_broken_image(text: str) -> None:
    with pytest.raises(SampleError, match="r: is no image in base64") as caught:
        image_from_base64(text, "r")
    assert caught.value.reason == "image"
