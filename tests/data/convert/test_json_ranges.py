"""Elements of a JSON file by their bytes: they agree with the whole file parsed by the standard library."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flamingo_lite.data.convert import json_ranges
from flamingo_lite.data.convert.json_ranges import JsonFile
from flamingo_lite.errors import FlamingoError

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**64), 2**64)
    | st.floats(allow_nan=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=20,
)
containers = st.lists(values, max_size=6) | st.dictionaries(st.text(max_size=6), values, max_size=6)


def elements(path: Path) -> list[Any]:
    with JsonFile(path) as file:
        return [
            (element.key, json.loads(file.read(element.start, element.end))) for element in file.elements()
        ]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(containers, st.booleans(), st.sampled_from([None, 2]), st.sampled_from([(2**12,), (48,)]))
def test_the_elements_are_those_of_the_whole_file(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: Any,
    escaped: bool,
    indent: int | None,
    windows: tuple[int, ...],
) -> None:
    # Small windows take the way of elements of more than a megabyte: they are walked, not parsed.
    monkeypatch.setattr(json_ranges, "_WINDOWS", windows)
    path = tmp_path / "content.json"
    path.write_text(json.dumps(content, ensure_ascii=escaped, indent=indent), encoding="utf-8")
    expected = [(None, v) for v in content] if isinstance(content, list) else list(content.items())
    assert elements(path) == expected


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(containers, st.data())
def test_damaged_bytes_are_read_or_refused_in_one_line(
    tmp_path: Path, content: Any, data: st.DataObject
) -> None:
    encoded = bytearray(json.dumps(content).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, max(len(encoded) - 1, 0)))
        encoded[place : place + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    path = tmp_path / "damaged.json"
    path.write_bytes(encoded)
    try:
        with JsonFile(path) as file:
            found = list(file.elements())
    except FlamingoError as error:
        assert "damaged.json" in str(error)
    else:
        assert all(0 < element.start < element.end < len(encoded) for element in found)


def test_an_element_of_several_megabytes_is_found_whole(tmp_path: Path) -> None:
    content = {"first": "x" * 3_000_000, "second": [["y" * 50] * 40_000, 1], "third": 2}
    path = tmp_path / "large.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    assert elements(path) == list(content.items())


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "marked.json"
    path.write_text('[1, "é"]', encoding="utf-8-sig")
    assert elements(path) == [(None, 1), (None, "é")]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is empty"),
        (b"hello", "no JSON at byte 0: found 'hello', expected a list or an object"),
        (b"[1 2]", "no JSON at byte 3"),
        (b"[1, 2", "found the end of the file, expected a comma or ]"),
        (b'{"a" 1}', "expected a name and a colon"),
        (b'{"a": "b', "expected the end of a text"),
        (b"[[1, ]", "no JSON at byte 1"),
        (b'{"a": 1}\n{"a": 2}', "no JSON at byte 9: found '{\"a\": 2}', expected nothing more"),
        (b"[" * 100_000, "not nested so deeply"),
        (b"[" + b"9" * 10_000 + b"]", "no JSON at byte 1"),
    ],
)
def test_what_is_no_json_is_named_with_its_byte(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(FlamingoError, match="broken.json: ") as caught:
        elements(path)
    assert expected in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FlamingoError, match=r"nowhere\.json: cannot be read"):
        elements(tmp_path / "nowhere.json")
