"""Described images from lines of JSON and from COCO's annotations: what is read, and what is refused and how."""

import json
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from flamingo_lite.data.convert.frame import Reject
from flamingo_lite.data.instruct.described import Box, Described
from flamingo_lite.data.instruct.sources import count_images, described_images
from flamingo_lite.errors import FlamingoError

LINE: dict[str, Any] = {
    "image": "a.png",
    "captions": [" a dog "],
    "boxes": [{"label": "dog", "box": [0, 0.25, 1, 1]}],
}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for name, colour in (("a.png", "red"), ("b.png", "blue")):
        PIL.Image.new("RGB", (40, 20), colour).save(folder / name)
    (folder / "half.png").write_bytes((folder / "a.png").read_bytes()[:60])
    return folder


def lines(path: Path, *records: Any) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def read(inputs: list[str], images: Path, number: int | None = None) -> list[Described | Reject]:
    return list(described_images(inputs, images, number))


def test_lines_of_json_are_read(tmp_path: Path, images: Path) -> None:
    path = lines(tmp_path / "in.jsonl", LINE, {"image": "b.png", "captions": ["two", "words"]})
    first, second = read([path], images)
    assert isinstance(first, Described) and isinstance(second, Described)
    assert first.boxes == (Box("dog", (0, 0.25, 1, 1)),) and first.captions == ("a dog",)
    assert second.boxes == () and first.key != second.key
    assert first.image.data == (images / "a.png").read_bytes()
    assert len(read([path], images, 1)) == 1 == count_images([path], 1) and count_images([path], None) == 2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"image": "c.png"}, "missing"),
        ({"image": "half.png"}, "image"),
        ({"image": "../in.jsonl"}, "path"),
        ({"captions": []}, "text"),
        ({"captions": [" "]}, "text"),
        ({"captions": [3]}, "layout"),
        ({"boxes": [{"label": "dog", "box": [0, 0, 1]}]}, "layout"),
        ({"boxes": [{"label": "dog", "box": [0, 0, 1, 1.5]}]}, "layout"),
        ({"boxes": [{"label": "dog", "box": [0.5, 0, 0.4, 1]}]}, "layout"),
        ({"boxes": [{"label": "dog", "box": [0, 0, True, 1]}]}, "layout"),
        ({"colour": "red"}, "layout"),
    ],
)
def test_a_line_that_cannot_be_used_costs_itself_alone(
    change: dict[str, Any], reason: str, tmp_path: Path, images: Path
) -> None:
    found = read([lines(tmp_path / "in.jsonl", LINE, {**LINE, **change}, LINE)], images)
    assert [each.reason if isinstance(each, Reject) else "" for each in found] == ["", reason, ""]


def test_a_file_of_another_kind_is_refused_whole(tmp_path: Path, images: Path) -> None:
    with pytest.raises(FlamingoError, match="not captions and boxes: in.jsonl: line 1"):
        read([lines(tmp_path / "in.jsonl", {"question": "?"})], images)


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        (["scenes"], "--from scenes has no end; expected number=N"),
        (["scenes", "x.jsonl"], "expected 'scenes', .jsonl files"),
        (["x.csv"], "expected 'scenes', .jsonl files"),
        (["a/x.jsonl", "b/x.jsonl"], "two files of one name"),
        (["nowhere.jsonl"], "nowhere.jsonl: no such file"),
    ],
)
def test_inputs_of_another_kind_are_one_line(inputs: list[str], expected: str, images: Path) -> None:
    with pytest.raises(FlamingoError, match=expected):
        read(inputs, images)


def coco(folder: Path, boxes: list[dict[str, Any]] | None = None) -> list[str]:
    about = [
        {"id": 1, "file_name": "a.png", "width": 40, "height": 20, "license": 3},
        {"id": 2, "file_name": "b.png", "width": 40, "height": 20},
        {"id": 3, "file_name": "c.png", "width": 40, "height": 20},
    ]
    captions = [
        {"id": 9, "image_id": 1, "caption": "second"},
        {"id": 4, "image_id": 1, "caption": "first\n"},
        {"id": 5, "image_id": 2, "caption": "blue"},
        {"id": 6, "image_id": 3, "caption": "gone"},
    ]
    instances = [
        {"image_id": 1, "category_id": 18, "bbox": [10, 5, 20, 10], "iscrowd": 0, "area": 1.5},
        {"image_id": 1, "category_id": 18, "bbox": [0, 0, 40, 20], "iscrowd": 1},
        {"image_id": 2, "category_id": 7, "bbox": [30.0, 0, 10.02, 20]},
    ]
    (folder / "captions.json").write_text(json.dumps({"images": about, "annotations": captions}))
    (folder / "instances.json").write_text(
        json.dumps(
            {
                "images": about,
                "annotations": instances if boxes is None else boxes,
                "categories": [{"id": 18, "name": "dog"}, {"id": 7, "name": "train"}],
            }
        )
    )
    return [str(folder / "captions.json"), str(folder / "instances.json")]


def test_coco_gives_each_image_its_captions_by_id_and_its_boxes_in_shares(
    tmp_path: Path, images: Path
) -> None:
    inputs = coco(tmp_path)
    first, second, third = read(inputs[::-1], images)
    assert isinstance(first, Described) and isinstance(second, Described)
    assert first.captions == ("first", "second")
    assert first.boxes == (Box("dog", (0.25, 0.25, 0.75, 0.75)),), "the crowd is no dog"
    assert second.boxes == (Box("train", (0.75, 0, 1, 1)),), "rounded pixels are cut at the edge"
    assert isinstance(third, Reject) and third.reason == "missing"
    assert count_images(inputs, None) == 3
    assert [each.boxes for each in read(inputs[:1], images)[:2] if isinstance(each, Described)] == [(), ()]


@pytest.mark.parametrize(
    ("boxes", "expected"),
    [
        ([{"image_id": 1, "category_id": 5, "bbox": [0, 0, 1, 1]}], "category 5 is not among the categories"),
        ([{"image_id": 1, "category_id": 18, "bbox": [0, 0, 1]}], "expected \\[left, top, width, height\\]"),
    ],
)
def test_annotations_that_are_wrong_are_named(
    boxes: list[dict[str, Any]], expected: str, tmp_path: Path, images: Path
) -> None:
    with pytest.raises(FlamingoError, match=expected):
        read(coco(tmp_path, boxes), images)


def test_boxes_without_captions_are_refused(tmp_path: Path, images: Path) -> None:
    with pytest.raises(FlamingoError, match="holds boxes, but no captions; give captions_"):
        read(coco(tmp_path)[1:], images)
