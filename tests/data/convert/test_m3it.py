"""M3IT: images out of base64, instruction and inputs put by the user, outputs trained on."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from conversions import FIXTURES, convert, refused

from flamingo_lite import cli
from flamingo_lite.data.shards import read_samples
from flamingo_lite.document import Document, Image, Text

M3IT = FIXTURES / "m3it" / "train.jsonl"
RECORDS = [json.loads(line) for line in M3IT.read_text(encoding="utf-8").splitlines()]
RED, BLUE = (Image(base64.b64decode(text)) for text in RECORDS[1]["image_base64_str"])
GREEN = Image(base64.b64decode(RECORDS[2]["image_base64_str"][0]))


def answered(images: list[Image], asked: list[str], answer: str) -> Document:
    questions = (Text(text, False, "user") for text in asked)
    return Document(
        [*images, *questions, Text(answer, True, "assistant", ends_chunk=True)], {"task": "train"}
    )


EXPECTED = [
    answered([RED], ["Write a caption."], "A red ball."),
    answered([RED, BLUE], ["Answer the question.", "\nAre the pictures alike?"], "No."),
    answered([GREEN], ["写一个标题。"], "一个绿色的球。"),
]


def test_the_fixture_comes_out_as_these_documents(tmp_path: Path) -> None:
    converted = convert(tmp_path, "m3it", M3IT)
    assert converted.documents == EXPECTED and converted.rejects == []


def test_episodes_are_of_the_data_set_that_a_file_is_of(tmp_path: Path) -> None:
    parts = {"coco.jsonl": [RECORDS[0], RECORDS[2]], "vqa/v2/train.jsonl": [RECORDS[1]]}
    for name, records in parts.items():
        path = tmp_path / "m3it" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(json.dumps(record) for record in records))
    converted = convert(tmp_path / "shards", "m3it", tmp_path / "m3it")
    assert [document.meta["task"] for document in converted.documents] == ["coco", "coco", "vqa/v2"]
    words = ["--to", str(tmp_path / "episodes"), "--shots", "1", "--by", "task"]
    assert cli.main(["data", "episodes", str(tmp_path / "shards"), *words]) == 0
    episodes = [document for _, document in read_samples(tmp_path / "episodes")]
    assert [{image.id for image in episode.images} for episode in episodes] == [{RED.id, GREEN.id}] * 2


@pytest.mark.parametrize(
    ("line", "reason", "message"),
    [
        ({**RECORDS[0], "outputs": " "}, "answer", "outputs: is empty"),
        ({**RECORDS[0], "data_dir": "x"}, "layout", "data_dir is unknown"),
        ({**RECORDS[0], "image_base64_str": "abcd"}, "layout", "image_base64_str is a str, not a list"),
        ({**RECORDS[0], "image_base64_str": ["?"]}, "image", "image 0: is no image in base64"),
        ({**RECORDS[0], "image_base64_str": ["YWJj"]}, "image", "not an image"),
        ({**RECORDS[0], "inputs": "what is <image>?"}, "marks", "holds <image>"),
        ("{", "json", "record 1: the json cannot be parsed"),
        ("[1]", "layout", "a list; expected an object"),
    ],
)
def test_a_bad_line_is_one_reject_that_names_what_is_wrong(
    tmp_path: Path, line: Any, reason: str, message: str
) -> None:
    lines = [RECORDS[0], line, RECORDS[1]]
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    converted = convert(tmp_path / "out", "m3it", path)
    assert converted.documents == EXPECTED[:2] and converted.reasons == [reason]
    assert message in converted.rejects[0][1]


def test_a_file_of_another_kind_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mmc4.jsonl"
    path.write_text(json.dumps({"url": "u", "text_list": [], "image_info": []}))
    shown = refused(capsys, tmp_path / "out", "m3it", path)
    assert (
        "not m3it: mmc4.jsonl: record 0: instruction is missing" in shown and "text_list is unknown" in shown
    )
