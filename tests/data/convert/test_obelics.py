"""OBELICS: pages whose images are found by their address in img2dataset's tars."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from flamingo_lite.data.convert.frame import Reject
from flamingo_lite.data.convert.obelics import FORMAT, ObelicsOptions
from flamingo_lite.document import Document, Image, Text
from tests.data.convert.conversions import convert, refused
from tests.data.convert.pages import img2dataset_members, obelics_row, picture, write_obelics, write_tar

PICTURES = [picture(i, (24, 16)) for i in range(4)]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two tars with the images http://x/0 to http://x/3; the last one is broken."""
    for tar in range(2):
        members: dict[str, bytes] = {}
        for i in (2 * tar, 2 * tar + 1):
            data = PICTURES[i] if i < 3 else PICTURES[i][:300]
            members |= img2dataset_members(f"{i:09d}", data, f"http://x/{i}", "")
        write_tar(tmp_path / "images" / f"{tar:05d}.tar", members)
    return tmp_path / "images"


def test_a_page_is_its_texts_and_images_in_order(images: Path, tmp_path: Path) -> None:
    row = obelics_row(["http://x/2", "Para one.\n\nPara two.", "http://x/0", "Para three."])
    path = write_obelics(tmp_path / "train-00000-of-00001.parquet", [row])
    found = convert(tmp_path / "to", "obelics", path, "--images", images)
    assert found.keys == ["train-00000-of-00001-00000000"] and found.rejects == []
    assert found.documents == [
        Document(
            [
                Image(PICTURES[2]),
                Text("Para one.\n\nPara two.", ends_chunk=True),
                Image(PICTURES[0]),
                Text("Para three.", ends_chunk=True),
            ],
            {
                "url": "http://example.org/page",
                "images": [
                    {"url": "http://x/2", "alt_text": "alt of http://x/2"},
                    {"url": "http://x/0", "alt_text": "alt of http://x/0"},
                ],
            },
        )
    ]


def test_missing_and_broken_images_are_left_out_counted_and_the_texts_joined(
    images: Path, tmp_path: Path
) -> None:
    row = obelics_row(["A.", "http://x/9", "B.", "http://x/1", "C.", "http://x/3", "D."])
    path = write_obelics(tmp_path / "a.parquet", [row])
    [document] = (found := convert(tmp_path / "to", "obelics", path, "--images", images)).documents
    assert list(document) == [Text("A.\n\nB."), Image(PICTURES[1]), Text("C.\n\nD.", ends_chunk=True)]
    assert [about["url"] for about in document.meta["images"]] == ["http://x/1"]
    assert found.reasons == ["missing", "image"] and "http://x/9 is in no tar" in found.rejects[0][1]


def test_long_files_are_shared_out_by_row_groups(images: Path, tmp_path: Path) -> None:
    rows = [obelics_row([f"http://x/{i % 3}", f"Text {i}."]) for i in range(11_000)]
    path = write_obelics(tmp_path / "a.parquet", rows, row_group=2000)
    options = ObelicsOptions(images=images)
    parts = FORMAT.units([path], options)
    assert [(part.start, part.stop) for part in parts] == [(0, 6000), (6000, 11_000)]
    records = [record for part in parts for record in FORMAT.read(part, options)]
    assert not any(isinstance(record, Reject) for record in records)
    assert [key for key, _ in records] == [f"a-{i:08d}" for i in range(11_000)]
    assert [document[1].text for _, document in records] == [f"Text {i}." for i in range(11_000)]


def test_a_new_tar_of_images_is_found(images: Path, tmp_path: Path) -> None:
    path = write_obelics(tmp_path / "a.parquet", [obelics_row(["http://x/0", "A.", "http://x/7", "B."])])
    assert convert(tmp_path / "to", "obelics", path, "--images", images).reasons == ["missing"]
    write_tar(images / "00002.tar", img2dataset_members("7", picture(7, (24, 16)), "http://x/7", ""))
    assert convert(tmp_path / "to", "obelics", path, "--images", images).reasons == []


def test_a_damaged_tar_of_images_serves_what_is_whole(images: Path, tmp_path: Path) -> None:
    with (images / "00000.tar").open("r+b") as file:
        file.truncate(4 * 512 + 512 * -(-len(PICTURES[0]) // 512) + 1500)
    path = write_obelics(tmp_path / "a.parquet", [obelics_row(["http://x/0", "A.", "http://x/1", "B."])])
    found = convert(tmp_path / "to", "obelics", path, "--images", images)
    assert found.reasons == ["missing"] and found.documents[0].images == (Image(PICTURES[0]),)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"texts": [None, "A.", "B."]}, "not lists of one length"),
        ({"texts": ["both", "A."]}, "slot 0 has both"),
        ({"metadata": "[null]"}, "not lists of one length"),
        (
            {"metadata": '["text", 3]', "images": [None, None]},
            "slot 0 has both an image and a text, or neither",
        ),
        ({"images": None}, "images is a NoneType, not a list"),
        ({"metadata": "{"}, "metadata: the json cannot be parsed"),
    ],
)
def test_rows_that_are_wrong_are_rejected_by_name(
    change: dict[str, Any], named: str, images: Path, tmp_path: Path
) -> None:
    rows = [obelics_row(["http://x/0", "A."]), {**obelics_row(["http://x/1", "B."]), **change}]
    found = convert(
        tmp_path / "to", "obelics", write_obelics(tmp_path / "a.parquet", rows), "--images", images
    )
    assert len(found.documents) == len(found.rejects) == 1
    assert named in found.rejects[0][1]


@pytest.mark.parametrize("change", [{"images": [5, None]}, {"texts": [None, 5]}])
def test_columns_of_numbers_are_refused_by_name(
    change: dict[str, Any], images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {**obelics_row(["http://x/0", "A."]), **change}
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), path)
    shown = refused(capsys, tmp_path / "to", "obelics", path, "--images", images)
    assert "a.parquet: record 0: images or texts hold something else than text" in shown


def test_a_damaged_file_is_named(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_obelics(tmp_path / "a.parquet", [obelics_row(["http://x/0", "A."])])
    with path.open("r+b") as file:
        file.seek(20)
        file.write(b"\xff" * 40)
    shown = refused(capsys, tmp_path / "to", "obelics", path, "--images", images)
    assert "a.parquet: cannot be read" in shown


def test_notes_of_another_form_are_left_out(images: Path, tmp_path: Path) -> None:
    row = {**obelics_row(["http://x/0", "A."]), "metadata": '["?", null]', "general_metadata": "[]"}
    found = convert(
        tmp_path / "to", "obelics", write_obelics(tmp_path / "a.parquet", [row]), "--images", images
    )
    assert found.documents[0].meta == {"url": None, "images": [{"url": "http://x/0", "alt_text": None}]}


def test_files_of_another_kind_are_refused_whole(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pyarrow.table({"URL": ["x"], "texts": [["a"]]})
    pyarrow.parquet.write_table(table, tmp_path / "laion.parquet")
    words = ["--images", images]
    shown = refused(capsys, tmp_path / "to", "obelics", tmp_path / "laion.parquet", *words)
    assert "lacks general_metadata, images, metadata; has unknown URL" in shown
    (tmp_path / "text.parquet").write_text(json.dumps({}))
    assert "not a parquet file" in refused(
        capsys, tmp_path / "to", "obelics", tmp_path / "text.parquet", *words
    )


def test_without_tars_of_images_it_says_what_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_obelics(tmp_path / "a.parquet", [obelics_row(["http://x/0", "A."])])
    assert "img2dataset's tars with --images" in refused(capsys, tmp_path / "to", "obelics", path)
    (tmp_path / "none").mkdir()
    assert "no tars here" in refused(capsys, tmp_path / "to", "obelics", path, "--images", tmp_path / "none")
    write_tar(tmp_path / "none" / "a.tar", {"a.jpg": PICTURES[0]})
    assert "a json with a url" in refused(
        capsys, tmp_path / "to", "obelics", path, "--images", tmp_path / "none"
    )
