"""ScienceQA: question, context and options as its own prompt has them, the answer's letter trained on."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conversions import FIXTURES, convert, refused

from flamingo_lite.document import Document, Image, Text
from flamingo_lite.evaluation.rendering import turns

SCIENCEQA = FIXTURES / "scienceqa"
PROBLEMS = json.loads((SCIENCEQA / "problems.json").read_bytes())


def answered(key: str, prompt: str, letter: str, *images: Image) -> Document:
    left_out = ("question", "hint", "image")
    meta = {"id": key, **{name: value for name, value in PROBLEMS[key].items() if name not in left_out}}
    return Document(
        [*images, Text(prompt, loss=False), Text(f" The answer is {letter}.", ends_chunk=True)], meta
    )


SHAPE = answered(
    "1", "Question: Which shape is it?\nContext: Look at the picture.\nOptions: (A) ball (B) box\nAnswer:", "A",
    Image(SCIENCEQA / "images" / "train" / "1" / "image.png"),
)  # fmt: skip
RHYME = answered(
    "2",
    "Question: Which word rhymes with ball?\nContext: N/A\nOptions: (A) box (B) wall (C) table\nAnswer:",
    "B",
)
THING = answered(
    "3", "Question: What is this?\nContext: N/A\nOptions: (A) a box (B) a ball\nAnswer:", "A",
    Image(SCIENCEQA / "images" / "test" / "3" / "image.png"),
)  # fmt: skip


@pytest.mark.parametrize(("split", "expected"), [("train", [SHAPE, RHYME]), ("test", [THING])])
def test_a_split_comes_out_as_these_documents(tmp_path: Path, split: str, expected: list[Document]) -> None:
    converted = convert(tmp_path, "scienceqa", SCIENCEQA, f"split={split}")
    assert converted.documents == expected and converted.rejects == []


def test_with_roles_it_is_a_conversation_as_an_evaluation_shows_it(tmp_path: Path) -> None:
    documents = convert(tmp_path, "scienceqa", SCIENCEQA, "roles=true").documents
    assert [list(document[:-1]) for document in documents] == [
        list(turns(Document(plain[:-1]))) for plain in (SHAPE, RHYME)
    ]
    assert documents[1][-1] == Text("The answer is B.", True, "assistant", ends_chunk=True)


def test_images_may_lie_elsewhere(tmp_path: Path) -> None:
    shutil.copytree(SCIENCEQA / "images", tmp_path / "elsewhere")
    words = (SCIENCEQA / "problems.json", "--images", tmp_path / "elsewhere")
    assert convert(tmp_path / "out", "scienceqa", *words).documents == [SHAPE, RHYME]


def spoiled(tmp_path: Path, problems: Any) -> Path:
    shutil.copytree(SCIENCEQA, tmp_path / "scienceqa")
    (tmp_path / "scienceqa" / "problems.json").write_text(json.dumps(problems), encoding="utf-8")
    return tmp_path / "scienceqa"


@pytest.mark.parametrize(
    ("change", "reason", "message"),
    [
        ({"answer": 3}, "reference", "answer 3 of 3 choices"),
        ({"answer": -1}, "reference", "answer -1 of 3 choices"),
        ({"answer": "B"}, "layout", "answer is a str"),
        ({"choices": ["a", 2]}, "layout", "choices: entry 1 is a int"),
        ({"video": 1}, "layout", "video is unknown"),
        ({"image": "image.png"}, "missing", "train/2/image.png"),
        ({"image": "../../../problems.json"}, "path", "lies outside"),
        ({"question": ""}, "text", "question: is empty"),
    ],
)
def test_a_bad_problem_is_one_reject_that_names_what_is_wrong(
    tmp_path: Path, change: dict[str, Any], reason: str, message: str
) -> None:
    folder = spoiled(tmp_path, {**PROBLEMS, "2": {**PROBLEMS["2"], **change}})
    converted = convert(tmp_path / "out", "scienceqa", folder)
    assert converted.documents == [SHAPE] and converted.reasons == [reason]
    assert message in converted.rejects[0][1] and "record 1 (2)" in converted.rejects[0][1]


def test_a_field_that_is_missing_from_the_first_problem_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = spoiled(tmp_path, {"1": {"question": "q"}})
    assert "not scienceqa: problems.json: record 0 (1): " in refused(
        capsys, tmp_path / "out", "scienceqa", folder
    )


def test_an_unknown_split_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = refused(capsys, tmp_path, "scienceqa", SCIENCEQA, "split=trian")
    assert "did you mean 'train'?" in shown and "pid_splits.json" in shown


def test_missing_splits_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = spoiled(tmp_path, PROBLEMS)
    (folder / "pid_splits.json").unlink()
    assert "pid_splits.json: cannot be read" in refused(capsys, tmp_path / "out", "scienceqa", folder)
