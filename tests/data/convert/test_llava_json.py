"""LLaVA's conversations: marks become images where they stand, roles are kept, only the assistant is trained on."""

import json
from pathlib import Path
from typing import Any

import pytest
from conversions import FIXTURES, convert, refused
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flamingo_lite.document import Document, Image, Text
from flamingo_lite.text.turns import turns_of

LLAVA = FIXTURES / "llava"
IMAGES = LLAVA / "images"
RED, BLUE = (f"coco/train2017/{i:012d}.jpg" for i in (9, 25))


def user(text: str) -> Text:
    return Text(text, loss=False, role="user")


def assistant(text: str) -> Text:
    return Text(text, role="assistant", ends_chunk=True)


def image(name: str) -> Image:
    return Image(IMAGES / name)


def turn(speaker: str, value: str) -> dict[str, str]:
    return {"from": speaker, "value": value}


def llava(tmp_path: Path, records: list[Any], *words: str) -> Any:
    path = tmp_path / "file.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    return convert(tmp_path / "out", "llava", path, "--images", IMAGES, *words)


GOOD = {"id": "good", "conversations": [turn("human", "1 + 1?"), turn("gpt", "2")]}


def test_the_fixture_comes_out_as_these_documents(tmp_path: Path) -> None:
    converted = convert(tmp_path / "out", "llava", LLAVA / "llava_instruct.json", "--images", IMAGES)
    assert converted.documents == [
        Document(
            [
                image(RED), user("What is this?"), assistant("A red ball."),
                user("Is it round?"), assistant("Yes, it is."),
            ],
            {"id": "000000000009"},
        ),
        Document(
            [user("Describe the picture."), image(BLUE), assistant("A blue box.")], {"id": "000000000025"}
        ),
        Document(
            [
                user("Compare "), image(RED), user(" with "), image(BLUE), user(", please."),
                assistant("A ball and a box."),
            ],
            {"id": "pair"},
        ),
        Document([user("How much is 2 + 2?"), assistant("4")], {"id": "wCezGTL_0", "model": "gpt4"}),
    ]  # fmt: skip
    assert converted.rejects == []


def test_a_system_turn_is_kept_and_not_trained_on(tmp_path: Path) -> None:
    record = {**GOOD, "conversations": [turn("system", "Be brief."), *GOOD["conversations"]]}
    assert llava(tmp_path, [record]).documents[0][0] == Text("Be brief.", loss=False, role="system")


def test_an_image_that_opens_an_answer_is_the_answers(tmp_path: Path) -> None:
    turns = [turn("human", "Show me one."), turn("gpt", "<image>\nHere it is.")]
    [document] = llava(tmp_path, [{"id": 1, "image": RED, "conversations": turns}]).documents
    question, answer = turns_of(document, "a document")
    assert question.segments == [user("Show me one.")]
    assert answer.segments == [Text("", role="assistant"), image(RED), assistant("Here it is.")]


pieces = st.lists(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<"), max_size=6), min_size=1
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(pieces, min_size=1, max_size=3))
def test_every_image_stands_where_its_mark_stood(tmp_path: Path, turns: list[list[str]]) -> None:
    values = ["q" + "<image>".join(pieces) for pieces in turns]
    names = [[RED, BLUE][number % 2] for number in range(sum(v.count("<image>") for v in values))]
    conversations = [t for value in values for t in (turn("human", value), turn("gpt", "a"))]
    [document] = llava(tmp_path, [{"id": 1, "image": names, "conversations": conversations}]).documents
    assert [i.data for i in document.images] == [image(name).data for name in names]
    written = "".join("<image>" if isinstance(s, Image) else s.text for s in document)
    expected = "".join(value.strip() + "a" for value in values)
    # Only newlines beside a mark, and blanks at a turn's end, may be gone.
    assert written.replace("\n", "") == expected.replace("\n", "")


@pytest.mark.parametrize(
    ("record", "reason", "message"),
    [
        ({"id": 1}, "layout", "conversations is missing"),
        ({**GOOD, "video": "a.mp4"}, "layout", "video is unknown"),
        ({**GOOD, "image": 3}, "layout", "image is a int"),
        ({**GOOD, "image": [3]}, "layout", "image: entry 0 is a int, not a str"),
        ({**GOOD, "image": RED}, "marks", "0 <image> marks for 1 images; expected one mark each"),
        ({**GOOD, "conversations": [turn("human", "a <image>")]}, "marks", "1 <image> marks for 0 images"),
        (
            {**GOOD, "conversations": [turn("robot", "a")]},
            "role",
            "turn 0: is from 'robot'; expected human",
        ),
        ({**GOOD, "conversations": [{"from": "human"}]}, "layout", "turn 0: value is missing"),
        ({**GOOD, "conversations": [turn("human", "a"), turn("gpt", " ")]}, "answer", "turn 1: is empty"),
        ({**GOOD, "conversations": [turn("gpt", "a<|endofchunk|>")]}, "marks", "<|endofchunk|>"),
        ({**GOOD, "conversations": []}, "layout", "conversations is empty"),
        (
            {**GOOD, "image": RED, "conversations": [turn("human", "a"), turn("gpt", "b <image>")]},
            "marks",
            "ends in an image",
        ),
        ({**GOOD, "image": "no.jpg", "conversations": [turn("human", "<image>")]}, "missing", "no.jpg"),
        (
            {**GOOD, "image": "../llava_instruct.json", "conversations": [turn("human", "<image>")]},
            "path",
            "lies outside",
        ),
        (
            {**GOOD, "image": "/etc/passwd", "conversations": [turn("human", "<image>")]},
            "path",
            "lies outside",
        ),
        ([GOOD], "layout", "a list; expected an object"),
    ],
)
def test_a_bad_record_is_one_reject_that_names_what_is_wrong(
    tmp_path: Path, record: Any, reason: str, message: str
) -> None:
    converted = llava(tmp_path, [GOOD, record, GOOD])
    assert len(converted.documents) == 2 and converted.reasons == [reason]
    assert message in converted.rejects[0][1]
    assert converted.rejects[0][1].startswith(("file.json: record 1", "file-00000001"))


def test_a_link_that_leads_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    (images / "link.jpg").symlink_to(IMAGES / RED)
    record = {"id": 1, "image": "link.jpg", "conversations": [turn("human", "<image>"), turn("gpt", "a")]}
    path = tmp_path / "file.json"
    path.write_text(json.dumps([GOOD, record]), encoding="utf-8")
    assert convert(tmp_path / "out", "llava", path, "--images", images).reasons == ["path"]


def test_fields_can_be_ignored_by_name(tmp_path: Path) -> None:
    converted = llava(tmp_path, [{**GOOD, "source": "x", "width": 3}], "ignore=source, width")
    assert converted.documents == [Document([user("1 + 1?"), assistant("2")], {"id": "good"})]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"meta": 1}', "is an object; expected a list"),
        ("[]", "holds no records"),
        ('[{"instruction": "a"}]', "not llava: file.json: record 0: id is missing; conversations is missing"),
        ("[1,", "no JSON at byte 3"),
        ("# LLaVA", "is neither a list nor an object; expected a list"),
    ],
)
def test_a_file_of_another_kind_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, expected: str
) -> None:
    path = tmp_path / "file.json"
    path.write_text(content, encoding="utf-8")
    assert expected in refused(capsys, tmp_path / "out", "llava", path, "--images", IMAGES)
