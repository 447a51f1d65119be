"""MIMIC-IT: instructions meet their images by id; related ones stand before them when asked for."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from conversions import FIXTURES, convert, refused

from flamingo_lite.document import Document, Image, Text

MIMIC = FIXTURES / "mimic_it"
INSTRUCTIONS, IMAGES = MIMIC / "LA_instructions.json", MIMIC / "LA.json"
DATA = json.loads(INSTRUCTIONS.read_bytes())["data"]
RED, BLUE = (Image(base64.b64decode(text)) for text in json.loads(IMAGES.read_bytes()).values())


def turn(number: int) -> list[Text]:
    record = DATA[f"LA_INS_{number:06d}"]
    return [
        Text(record["instruction"], loss=False, role="user"),
        Text(record["answer"], role="assistant", ends_chunk=True),
    ]


def document(number: int, *segments: Any) -> Document:
    key = f"LA_INS_{number:06d}"
    kept = {name: DATA[key][name] for name in ("image_ids", "rel_ins_ids")}
    return Document(segments, {"id": key, **kept, "task": "LA_instructions"})


def mimic(tmp_path: Path, data: Any, images: str | None = None, *words: str) -> Any:
    instructions, path = tmp_path / "X_instructions.json", tmp_path / "X.json"
    instructions.write_text(json.dumps({"meta": {}, "data": data}), encoding="utf-8")
    path.write_text(images or IMAGES.read_text(encoding="utf-8"), encoding="utf-8")
    return convert(tmp_path / "out", "mimic_it", instructions, "--images", path, *words)


def test_an_instruction_stands_behind_its_images_and_before_its_answer(tmp_path: Path) -> None:
    converted = convert(tmp_path, "mimic_it", INSTRUCTIONS, "--images", IMAGES)
    assert converted.documents == [
        document(0, RED, *turn(0)),
        document(1, RED, *turn(1)),
        document(2, RED, BLUE, *turn(2)),
    ]
    assert converted.reasons == ["missing"]
    assert "image 'LA_IMG_000009' is not in" in converted.rejects[0][1]


def test_in_context_related_instructions_come_first_and_images_where_they_change(tmp_path: Path) -> None:
    converted = convert(tmp_path, "mimic_it", INSTRUCTIONS, "--images", IMAGES, "in_context=true")
    assert converted.documents == [
        document(0, RED, *turn(1), *turn(0)),
        document(1, RED, *turn(1)),
        document(2, RED, *turn(0), RED, BLUE, *turn(2)),
    ]


GOOD = DATA["LA_INS_000001"]


@pytest.mark.parametrize(
    ("record", "reason", "message"),
    [
        ({"instruction": "a", "answer": "b", "image_ids": []}, "layout", "rel_ins_ids is missing"),
        ({**GOOD, "video": 1}, "layout", "video is unknown"),
        ({**GOOD, "image_ids": [1]}, "layout", "image_ids: entry 0 is a int"),
        ({**GOOD, "answer": ""}, "answer", "answer: is empty"),
        ({**GOOD, "image_ids": ["lost"]}, "missing", "image 'lost' is not in"),
        ({**GOOD, "image_ids": ["number"]}, "image", "image number is a int, not base64"),
        ({**GOOD, "image_ids": ["text"]}, "image", "is no image in base64"),
        ({**GOOD, "image_ids": ["words"]}, "image", "not an image"),
        ({**GOOD, "rel_ins_ids": ["lost"]}, "reference", "the related instruction 'lost' is not in the file"),
    ],
)
def test_a_bad_record_is_one_reject_that_names_what_is_wrong(
    tmp_path: Path, record: Any, reason: str, message: str
) -> None:
    images = {"number": 1, "text": "!!!!", "words": base64.b64encode(b"words").decode()}
    known = {**json.loads(IMAGES.read_bytes()), **images}
    data = {"a": GOOD, "b": record, "c": GOOD}
    converted = mimic(tmp_path, data, json.dumps(known), "in_context=true")
    assert len(converted.documents) == 2 and converted.reasons == [reason]
    assert message in converted.rejects[0][1]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ([], "is a list; expected an object with 'data'"),
        ({"meta": {}}, "has no 'data'; found 'meta'"),
        ({"data": []}, "'data' is a list; expected an object"),
        (
            {"data": {"a": {"question": "q"}}},
            "not mimic_it: X_instructions.json: record 0 (a): instruction is missing",
        ),
    ],
)
def test_instructions_of_another_kind_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: Any, expected: str
) -> None:
    path = tmp_path / "X_instructions.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    assert expected in refused(capsys, tmp_path / "out", "mimic_it", path, "--images", IMAGES)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("[]", "is a list; expected an object"),
        ('{"a": "b", "a": "c"}', "has 'a' twice"),
        ('{"a": "b"', "no JSON at byte 9"),
    ],
)
def test_images_of_another_kind_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, expected: str
) -> None:
    path = tmp_path / "X.json"
    path.write_text(content, encoding="utf-8")
    assert expected in refused(capsys, tmp_path / "out", "mimic_it", INSTRUCTIONS, "--images", path)


@pytest.mark.parametrize("words", [(), ("--images", MIMIC)])
def test_without_a_file_of_images_it_says_how_to_name_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[Any, ...]
) -> None:
    shown = refused(capsys, tmp_path / "out", "mimic_it", INSTRUCTIONS, *words)
    assert "name it with --images LA.json" in shown
