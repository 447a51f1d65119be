"""Strict JSON equals the standard library's on what is whole, and refuses what it lets pass."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flamingo_lite.data.strict_json import loads
from flamingo_lite.errors import SampleError

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(values, st.booleans())
def test_whole_json_is_read_as_the_standard_library_reads_it(value: object, ascii_only: bool) -> None:
    data = json.dumps(value, ensure_ascii=ascii_only).encode()
    assert loads(data, "k", 10**6, 99) == json.loads(data) == value


@settings(max_examples=150, deadline=None)
@given(st.text(st.characters(codec=None, categories=["Cs", "Lu", "So"]), max_size=4))
def test_half_of_a_surrogate_pair_is_refused_exactly_when_utf8_cannot_hold_it(text: str) -> None:
    data = json.dumps([text]).encode()
    try:
        json.loads(data)[0].encode()
    except UnicodeEncodeError:
        with pytest.raises(SampleError, match="surrogate") as caught:
            loads(data, "k", 10**6, 99)
        assert caught.value.reason == "text"
    else:
        assert loads(data, "k", 10**6, 99) == json.loads(data)


@pytest.mark.parametrize("depth", range(1, 6))
def test_nesting_is_counted_as_brackets_are(depth: int) -> None:
    data = b"[" * depth + b"1" + b"]" * depth
    assert loads(data, "k", 999, depth) == json.loads(data)
    with pytest.raises(SampleError, match=f"more than {depth} deep"):
        loads(b'{"a": ' + data + b"}", "k", 999, depth)


def test_many_brackets_side_by_side_are_not_deep() -> None:
    assert loads(b"[" + b"[]," * 99 + b"{}]", "k", 999, 2)


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"NaN", "json"), (b"[Infinity]", "json"), (b'{"a": -Infinity}', "json"), (b"1e999", "json"), (b"-1e999", "json"),
        (b"9" * 5000, "json"), (b'{"a": 1, "a": 1}', "duplicate"), (b'[{"b": {"a": 1, "\\u0061": 2}}]', "duplicate"),
        (b"[" * 100_000, "json"), (b"[" * 100_000 + b"]" * 100_000, "json"), (b'{"":' * 50_000, "json"),
        (b'"\xed\xa0\x80"', "json"), (b'"\xff"', "json"), ('"a"'.encode("utf-16"), "json"), (b"", "json"), (b"{", "json"),
        (b'"\\ud800"', "text"), (b'{"\\udc00": 1}', "text"), (b" " * 10**6 + b"1", "bytes"), (b"1 2", "json"),
    ],
)  # fmt: skip
def test_what_is_refused_is_counted_under_its_reason(data: bytes, reason: str) -> None:
    with pytest.raises(SampleError, match="^shard/k: ") as caught:
        loads(data, "shard/k", 10**6, 32)
    assert caught.value.reason == reason
    assert len(str(caught.value)) < 300
