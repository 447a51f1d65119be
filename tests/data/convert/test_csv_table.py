"""CSV: a row becomes its images and its text; columns are chosen by their headings."""

from pathlib import Path
from typing import Any

import pytest
from conversions import FIXTURES, convert, refused

from flamingo_lite.document import Document, Image, Text

CSV = FIXTURES / "csv"
IMAGES = CSV / "images"
RED, BLUE = Image(IMAGES / "red.jpg"), Image(IMAGES / "sub" / "blue.jpg")


def row(images: list[Image], text: str, **meta: str) -> Document:
    return Document([*images, Text(text, ends_chunk=True)], meta)


def table(tmp_path: Path, text: str, *words: str) -> Any:
    (tmp_path / "table.csv").write_text(text, encoding="utf-8", newline="")
    return convert(tmp_path / "out", "csv", tmp_path / "table.csv", "--images", IMAGES, *words)


def test_the_fixture_comes_out_as_these_documents(tmp_path: Path) -> None:
    converted = convert(tmp_path, "csv", CSV / "pictures.csv", "--images", IMAGES)
    assert converted.documents == [
        row([RED], "A red ball.", source="ours"),
        row([RED, BLUE], "A ball,\nthen a box.", source="ours"),
    ]
    assert converted.rejects == []


def test_columns_separator_and_delimiter_can_be_chosen(tmp_path: Path) -> None:
    words = ("image_column=file", "text_column=says", "separator=|", "delimiter=tab")
    content = "\ufeffsays\tfile\r\ntwo, of them\tred.jpg | sub/blue.jpg\r\n"
    assert table(tmp_path, content, *words).documents == [row([RED, BLUE], "two, of them")]


@pytest.mark.parametrize(
    ("line", "reason", "message"),
    [
        ("red.jpg", "layout", "has more or fewer cells"),
        ("red.jpg,a,b", "layout", "has more or fewer cells"),
        ("red.jpg,", "text", "text: is empty"),
        (",a", "missing", "image names no image"),
        ("no.jpg,a", "missing", "no.jpg"),
        ("../pictures.csv,a", "path", "lies outside"),
        ("red.jpg,an <image>", "marks", "holds <image>"),
    ],
)
def test_a_bad_row_is_one_reject_that_names_what_is_wrong(
    tmp_path: Path, line: str, reason: str, message: str
) -> None:
    converted = table(tmp_path, f"image,text\nred.jpg,a\n{line}\nsub/blue.jpg,b\n")
    assert converted.documents == [row([RED], "a"), row([BLUE], "b")] and converted.reasons == [reason]
    assert message in converted.rejects[0][1]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "expected one column 'image'; found nothing"),
        (
            b"url,caption\na,b\n",
            "expected one column 'image'; found 'url', 'caption'; choose with image_column=",
        ),
        (b"image,text,a,a\nred.jpg,b,c,d\n", "has two columns of one name"),
        (b"image,text\nred.jpg,\xff\n", "no CSV in UTF-8"),
        (b'image,text\nred.jpg,"a" b\n', "no CSV in UTF-8"),
    ],
)
def test_a_file_of_another_kind_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, expected: str
) -> None:
    (tmp_path / "table.csv").write_bytes(content)
    words = (tmp_path / "table.csv", "--images", IMAGES)
    assert expected in refused(capsys, tmp_path / "out", "csv", *words)


@pytest.mark.parametrize(
    ("word", "expected"),
    [("delimiter=,,", "expected one character, or tab"), ("separator=", "separator is empty")],
)
def test_a_bad_option_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], word: str, expected: str
) -> None:
    assert expected in refused(capsys, tmp_path, "csv", CSV / "pictures.csv", word)
