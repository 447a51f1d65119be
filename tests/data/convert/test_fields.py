"""The fields of foreign records: what is missing, unknown, of another kind or no text is named."""

import base64
from typing import Any

import pytest

from flamingo_lite.data.convert.fields import check_fields, check_list, image_from_base64, plain_text
from flamingo_lite.errors import SampleError

KINDS: dict[str, Any] = {"question": str, "answer": int, "image": (str, type(None))}


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ([], "r: is a list; expected an object with 'question', 'answer', 'image'"),
        ({"question": "a", "answer": 1}, "r: has no 'image'"),
        ({"question": "a", "answer": 1, "image": None, "sauce": 1}, "has an unknown field 'sauce'"),
        ({"question": 1, "answer": 1, "image": None}, "question is a int; expected str"),
        ({"question": "a", "answer": True, "image": None}, "answer is a bool; expected int"),
        ({"question": "a", "answer": 1, "image": 2}, "image is a int; expected str or null"),
        ({"question": None, "answer": 1, "image": None}, "question is a null; expected str"),
    ],
)
def test_a_field_that_does_not_fit_is_named(record: Any, expected: str) -> None:
    with pytest.raises(SampleError) as caught:
        check_fields(record, "r", KINDS, {"hint": str})
    assert expected in str(caught.value) and caught.value.reason == "fields"


def test_optional_fields_may_be_there_or_not() -> None:
    record = {"question": "a", "answer": 1, "image": None}
    assert check_fields(record, "r", KINDS, {"hint": str}) == record
    assert check_fields({**record, "hint": "b"}, "r", KINDS, {"hint": str})["hint"] == "b"


def test_an_entry_of_another_kind_is_named() -> None:
    with pytest.raises(SampleError, match="r: entry 1 is a int; expected str"):
        check_list(["a", 2], str, "r")


@pytest.mark.parametrize(
    ("text", "reason"),
    [(" \n", "empty"), ("a <image> b", "mark"), ("a<|endofchunk|>", "mark"), ("a \ud800", "text")],
)
def test_a_text_that_cannot_stand_in_a_document_is_counted_by_reason(text: str, reason: str) -> None:
    with pytest.raises(SampleError, match="^r: ") as caught:
        plain_text(text, "r")
    assert caught.value.reason == reason


def test_a_text_loses_the_blanks_at_its_ends() -> None:
    assert plain_text(" a  b\n", "r") == "a  b"


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
