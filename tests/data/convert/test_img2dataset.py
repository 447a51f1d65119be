"""img2dataset: caption pairs of tars that others made."""

import hashlib
import json
from pathlib import Path

import pytest
import webdataset

from flamingo_lite.document import Document, Image, Text
from tests.data.convert.conversions import convert, refused
from tests.data.convert.pages import img2dataset_members, picture, write_tar

PICTURE = picture(0, (24, 16))


def test_a_sample_is_an_image_and_its_caption(tmp_path: Path) -> None:
    members = img2dataset_members("000000012", PICTURE, "http://x/12", " A red ball \n", similarity=0.31)
    found = convert(tmp_path / "to", "img2dataset", write_tar(tmp_path / "00000.tar", members))
    assert found.keys == ["00000-00000000"] and found.rejects == []
    meta = {"sample": "000000012", "url": "http://x/12", "similarity": 0.31}
    assert found.documents == [Document([Image(PICTURE), Text("A red ball", ends_chunk=True)], meta)]


@pytest.mark.parametrize(
    ("suffix", "kind"), [("png", "PNG"), ("webp", "WEBP"), ("jpeg", "JPEG"), ("JPG", "JPEG")]
)
def test_all_formats_of_images_are_read(suffix: str, kind: str, tmp_path: Path) -> None:
    image = picture(1, (24, 16), kind)
    path = write_tar(tmp_path / "0.tar", {f"a.{suffix}": image, "a.txt": b"caption"})
    assert convert(tmp_path / "to", "img2dataset", path).documents[0].images == (Image(image),)


def test_the_json_has_the_caption_where_there_is_no_txt(tmp_path: Path) -> None:
    members = img2dataset_members("a", PICTURE, "http://x", "from json")
    del members["a.txt"]
    found = convert(tmp_path / "to", "img2dataset", write_tar(tmp_path / "0.tar", members))
    assert found.documents[0].texts[0].text == "from json"


def test_other_members_and_the_parquet_beside_are_ignored(tmp_path: Path) -> None:
    write_tar(tmp_path / "in" / "0.tar", {"a.jpg": PICTURE, "a.txt": b"x", "a.npy": b"1", "a.pkl": b"2"})
    (tmp_path / "in" / "0.parquet").write_bytes(b"PAR1")
    (tmp_path / "in" / "0_stats.json").write_text("{}")
    found = convert(tmp_path / "to", "img2dataset", tmp_path / "in")
    assert len(found.documents) == 1 and found.rejects == []


@pytest.mark.parametrize(
    ("members", "reason", "named"),
    [
        ({"b.jpg": PICTURE}, "layout", "no txt, and no caption in its json"),
        ({"b.txt": b"x"}, "layout", "0 images"),
        ({"b.jpg": PICTURE, "b.png": PICTURE, "b.txt": b"x"}, "layout", "2 images"),
        ({"b.jpg": PICTURE, "b.txt": b" \n"}, "text", "the caption is empty"),
        ({"b.jpg": PICTURE, "b.txt": b"\xff\xfe"}, "text", "not UTF-8"),
        ({"b.jpg": PICTURE, "b.txt": b"x", "b.json": b"{"}, "json", "cannot be parsed"),
        ({"b.jpg": PICTURE, "b.txt": b"x", "b.json": b"[]"}, "layout", "its json is a list"),
        ({"b.jpg": PICTURE[:150], "b.txt": b"x"}, "image", "not a readable image"),
        ({"b.jpg": b"<svg/>", "b.txt": b"x"}, "image", "not an image"),
        ({"b.jpg": PICTURE, "b.txt": b"an <image> here"}, "marks", "holds <image>"),
        ({"b.jpg": PICTURE, "b.txt": b"x<|endofchunk|>"}, "marks", "holds <|endofchunk|>"),
    ],
)
def test_samples_that_are_wrong_are_rejected_by_name(
    members: dict[str, bytes], reason: str, named: str, tmp_path: Path
) -> None:
    path = write_tar(tmp_path / "0.tar", {"a.jpg": PICTURE, "a.txt": b"fine", **members})
    found = convert(tmp_path / "to", "img2dataset", path)
    assert [document.texts[0].text for document in found.documents] == ["fine"]
    assert found.reasons == [reason] and named in found.rejects[0][1]


def test_pairs_under_the_wanted_similarity_are_left_out(tmp_path: Path) -> None:
    members = {}
    for key, similarity in (("a", 0.2), ("b", 0.3), ("c", 0.4)):
        members |= img2dataset_members(key, PICTURE, key, key, similarity=similarity)
    found = convert(
        tmp_path / "to", "img2dataset", write_tar(tmp_path / "0.tar", members), "min_similarity=0.3"
    )
    assert [document.texts[0].text for document in found.documents] == ["b", "c"]
    assert found.reasons == ["similarity"]


def test_a_wanted_similarity_that_the_data_lack_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_tar(tmp_path / "0.tar", img2dataset_members("a", PICTURE, "u", "c"))
    assert "has no similarity" in refused(capsys, tmp_path / "to", "img2dataset", path, "min_similarity=0.3")


def test_a_shard_as_the_program_writes_it_is_read(tmp_path: Path) -> None:
    # img2dataset 1.47, writer.py and downloader.py: webdataset's TarWriter, keys of shard and place, json indented by four
    # with the columns of the input and its own, a parquet and a json of statistics beside.
    about = {
        "url": "http://x/1", "caption": "A dog", "key": "000000001", "status": "success", "error_message": None,
        "width": 24, "height": 16, "original_width": 48, "original_height": 32, "exif": "{}",
        "sha256": hashlib.sha256(PICTURE).hexdigest(), "similarity": 0.31,
    }  # fmt: skip
    folder = tmp_path / "in"
    folder.mkdir()
    with webdataset.TarWriter(str(folder / "00000.tar")) as tar:
        for key, caption in (("000000001", "A dog"), ("000000007", "A cat")):
            found = json.dumps({**about, "key": key, "caption": caption}, indent=4)
            tar.write({"__key__": key, "jpg": PICTURE, "txt": caption, "json": found})
    (folder / "00000.parquet").write_bytes(b"PAR1")
    (folder / "00000_stats.json").write_text('{"count": 8, "successes": 2}')
    found = convert(tmp_path / "to", "img2dataset", folder)
    assert found.rejects == []
    assert [document.texts[0].text for document in found.documents] == ["A dog", "A cat"]
    assert [document.images for document in found.documents] == [(Image(PICTURE),)] * 2
    assert [document.meta["sample"] for document in found.documents] == ["000000001", "000000007"]
