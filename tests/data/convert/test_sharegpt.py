"""ShareGPT-style messages: either pair of names, marks or typed parts, images where they stand, answers trained on."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from conversions import FIXTURES, convert, refused

from flamingo_lite.document import Document, Image, Text

SHAREGPT = FIXTURES / "sharegpt"
IMAGES = SHAREGPT / "images"
BALL, BOX = Image(IMAGES / "ball.jpg"), Image(IMAGES / "box.jpg")


def system(text: str) -> Text:
    return Text(text, False, "system")


def user(text: str) -> Text:
    return Text(text, False, "user")


def assistant(text: str) -> Text:
    return Text(text, True, "assistant", ends_chunk=True)


def sharegpt(tmp_path: Path, records: list[Any], *words: str) -> Any:
    path = tmp_path / "file.jsonl"
    path.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    return convert(tmp_path / "out", "sharegpt", path, "--images", IMAGES, *words)


def says(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


GOOD = {"messages": [says("user", "1 + 1?"), says("assistant", "2")]}


def test_typed_parts_and_marks_come_out_as_these_documents(tmp_path: Path) -> None:
    converted = convert(tmp_path / "out", "sharegpt", SHAREGPT / "messages.jsonl", "--images", IMAGES)
    assert converted.documents == [
        Document(
            [
                system("Be brief."), user(""), BALL, user("What is this?"), assistant("A red ball."),
                user("Is it round?"), assistant("Yes, it is."),
            ],
            {"id": "typed"},
        ),
        Document([user(""), BALL, BOX, user("Compare these."), assistant("A ball and a box.")], {"id": "marks"}),
        Document([user("How much is 2 + 2?"), assistant("4")], {"id": "text"}),
    ]  # fmt: skip
    assert converted.rejects == []


def test_a_json_list_of_named_turns_comes_out_as_these_documents(tmp_path: Path) -> None:
    converted = convert(tmp_path / "out", "sharegpt", SHAREGPT / "conversations.json", "--images", IMAGES)
    assert converted.documents == [
        Document(
            [system("Be brief."), user("Describe the picture."), BOX, assistant("A blue box.")],
            {"id": "named"},
        ),
        Document(
            [user("Show me the ball."), Text("", True, "assistant"), BALL, assistant("Here it is.")],
        ),
    ]


def test_images_in_base64_are_read_from_their_address(tmp_path: Path) -> None:
    address = "data:image/jpeg;base64," + base64.b64encode(BALL.data).decode()
    part = {"type": "image_url", "image_url": {"url": address}}
    record = {
        "messages": [says("user", [part, {"type": "text", "text": "What?"}]), says("assistant", "A ball.")]
    }
    assert sharegpt(tmp_path, [record]).documents[0].images == (BALL,)


@pytest.mark.parametrize(
    ("record", "reason", "message"),
    [
        ({"id": 1}, "layout", "messages is missing"),
        ({**GOOD, "score": 1}, "layout", "score is unknown"),
        ({"messages": ["a"]}, "layout", "message 0: a str; expected a message"),
        ({"messages": [says("user", [{"type": "video"}])]}, "layout", "of type 'video'"),
        ({"messages": [says("tool", "a"), says("assistant", "b")]}, "role", "is from 'tool'"),
        ({"messages": [says("assistant", "a"), says("user", "b")]}, "turns", "comes first"),
        ({"messages": [says("user", "a"), says("assistant", " ")]}, "answer", "is an empty answer"),
        ({"messages": [*GOOD["messages"], says("user", "a")]}, "turns", "ends with the user's turn"),
        ({"messages": []}, "turns", "no turn of the user"),
        ({**GOOD, "images": ["ball.jpg"]}, "marks", "0 <image> marks for 1 images"),
        ({"messages": [says("user", "<image>"), says("assistant", "b")]}, "marks", "a mark without an image"),
        ({"messages": [says("user", "a"), says("assistant", "b<image>")], "image": "ball.jpg"}, "marks", "ends in an"),
        ({"messages": [says("user", "<image>a"), says("assistant", "b")], "image": "no.jpg"}, "missing", "no.jpg"),
        (
            {"messages": [says("user", "<image>a"), says("assistant", "b")], "image": "https://a/b.jpg"},
            "missing",
            "is an address, which is not fetched",
        ),
        ({"messages": [says("user", "<image>a"), says("assistant", "b")], "image": "../a"}, "path", "lies outside"),
        ({"messages": [says("user", "a"), says("assistant", "<|endofchunk|>")]}, "marks", "<|endofchunk|>"),
    ],
)  # fmt: skip
def test_a_bad_record_is_one_reject_that_names_what_is_wrong(
    tmp_path: Path, record: Any, reason: str, message: str
) -> None:
    converted = sharegpt(tmp_path, [GOOD, record, GOOD])
    assert len(converted.documents) == 2 and converted.reasons == [reason]
    assert message in converted.rejects[0][1]


def test_fields_can_be_ignored_by_name(tmp_path: Path) -> None:
    assert len(sharegpt(tmp_path, [{**GOOD, "source": "x"}], "ignore=source").documents) == 1


def test_a_file_of_another_kind_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mmc4.jsonl"
    path.write_text(json.dumps({"url": "u", "text_list": []}))
    assert "not sharegpt: mmc4.jsonl: record 0: messages is missing" in refused(
        capsys, tmp_path / "out", "sharegpt", path
    )
