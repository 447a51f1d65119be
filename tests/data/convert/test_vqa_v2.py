"""VQA v2: each question with its own answer, which alone is trained on; files that do not belong together are named."""

import json
from pathlib import Path
from typing import Any

import pytest
from conversions import FIXTURES, convert, refused

from flamingo_lite.document import Document, Image, Text

VQA = FIXTURES / "vqa_v2"
QUESTIONS = VQA / "v2_OpenEnded_mscoco_val2014_questions.json"
ANNOTATIONS = VQA / "v2_mscoco_val2014_annotations.json"
IMAGES = VQA / "val2014"


def asked(image: int, question: str, answer: str, **meta: Any) -> Document:
    path = IMAGES / f"COCO_val2014_{image:012d}.jpg"
    put = Text(f"Question: {question} Short answer:", loss=False)
    about = {"image_id": image, "question": question, **meta}
    return Document([Image(path), put, Text(f" {answer}", ends_chunk=True)], about)


def spoiled(tmp_path: Path, source: Path, **changes: Any) -> Path:
    path = tmp_path / source.name
    path.write_text(json.dumps({**json.loads(source.read_bytes()), **changes}), encoding="utf-8")
    return path


def members(source: Path, name: str) -> list[dict[str, Any]]:
    return json.loads(source.read_bytes())[name]


EXPECTED = [
    asked(
        9, "What color is the ball?", "red", question_id=9000, question_type="what color is the",
        answer_type="other", answers=["red"] * 8 + ["dark red", "orange"],
    ),
    asked(
        9, "Is it round?", "yes", question_id=9001, question_type="is it", answer_type="yes/no",
        answers=["yes"] * 9 + ["no"],
    ),
    asked(
        25, "How many boxes are there?", "1", question_id=25000, question_type="how many", answer_type="number",
        answers=["1"] * 10,
    ),
]  # fmt: skip


@pytest.mark.parametrize("files", [(QUESTIONS, ANNOTATIONS), (ANNOTATIONS, QUESTIONS)])
def test_a_question_comes_with_its_own_answer_in_either_order_of_the_files(
    tmp_path: Path, files: tuple[Path, Path]
) -> None:
    converted = convert(tmp_path / "out", "vqa_v2", *files, "--images", IMAGES)
    assert converted.documents == EXPECTED
    assert converted.reasons == ["missing"]


def test_a_prompt_of_ones_own(tmp_path: Path) -> None:
    words = (QUESTIONS, ANNOTATIONS, "--images", IMAGES, "prompt=Q: {question} A:")
    assert convert(tmp_path / "out", "vqa_v2", *words).documents[1][1] == Text(
        "Q: Is it round? A:", loss=False
    )


@pytest.mark.parametrize(
    ("change", "reason", "message"),
    [
        ({"question_id": 5}, "reference", "question_id 5 has no annotation"),
        ({"image_id": 25}, "reference", "image_id 25, but 9 in the annotation"),
        ({"question": ""}, "text", "question: is empty"),
        ({"question": None}, "layout", "question is a NoneType"),
        ({"question": "what <image>?"}, "marks", "holds <image>"),
        ({"hint": "h"}, "layout", "hint is unknown"),
    ],
)
def test_a_bad_question_is_one_reject_that_names_what_is_wrong(
    tmp_path: Path, change: dict[str, Any], reason: str, message: str
) -> None:
    first, second, *_ = members(QUESTIONS, "questions")
    questions = spoiled(tmp_path, QUESTIONS, questions=[first, {**second, **change}])
    converted = convert(tmp_path / "out", "vqa_v2", questions, ANNOTATIONS, "--images", IMAGES)
    assert converted.documents == EXPECTED[:1] and converted.reasons == [reason]
    assert message in converted.rejects[0][1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"multiple_choice_answer": None}, "multiple_choice_answer is a NoneType"),
        ({"answers": [{"answer": 3}]}, "annotation 0: answer 0: answer is a int, not a str"),
        ({"answers": [{"text": "a"}]}, "answer is missing; text is unknown"),
    ],
)
def test_a_bad_annotation_is_one_reject_that_names_it(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    first, *others = members(ANNOTATIONS, "annotations")
    annotations = spoiled(tmp_path, ANNOTATIONS, annotations=[{**first, **change}, *others])
    converted = convert(tmp_path / "out", "vqa_v2", QUESTIONS, annotations, "--images", IMAGES)
    assert converted.documents == [EXPECTED[0], EXPECTED[2]] and converted.reasons == ["layout", "missing"]
    assert message in converted.rejects[0][1]


def test_a_question_that_is_answered_twice_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, *others = members(ANNOTATIONS, "annotations")
    annotations = spoiled(tmp_path, ANNOTATIONS, annotations=[first, first, *others])
    shown = refused(capsys, tmp_path / "out", "vqa_v2", QUESTIONS, annotations, "--images", IMAGES)
    assert "annotation 1: question_id 9001 comes twice" in shown


def test_annotations_of_another_split_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    annotations = spoiled(tmp_path, ANNOTATIONS, data_subtype="train2014")
    shown = refused(capsys, tmp_path / "out", "vqa_v2", QUESTIONS, annotations, "--images", IMAGES)
    assert "is of val2014" in shown and "of train2014; expected one split" in shown


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ((QUESTIONS,), "there is none of annotations"),
        ((QUESTIONS, QUESTIONS), "is a second file of questions"),
        ((FIXTURES / "llava" / "llava_instruct.json",), "holds neither questions nor annotations"),
    ],
)
def test_files_of_another_kind_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], files: tuple[Path, ...], expected: str
) -> None:
    assert expected in refused(capsys, tmp_path / "out", "vqa_v2", *files, "--images", IMAGES)


def test_a_prompt_without_a_question_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = refused(capsys, tmp_path / "out", "vqa_v2", QUESTIONS, ANNOTATIONS, "prompt=Answer:")
    assert "expected a text that holds {question}" in shown
