"""COCO captions and Karpathy's splits come out as pairs; what does not fit is named."""

import json
from pathlib import Path
from typing import Any

import pytest
from conversions import FIXTURES, convert, refused

from flamingo_lite.document import Document, Image, Text

COCO = FIXTURES / "coco"
KARPATHY = FIXTURES / "karpathy"
RED = Image(COCO / "val2017" / "000000000009.jpg")
BLUE = Image(COCO / "val2017" / "000000000025.jpg")


def pair(image: Image, caption: str, **meta: Any) -> Document:
    return Document([image, Text(caption, ends_chunk=True)], meta)


def spoiled(tmp_path: Path, source: Path, **changes: Any) -> Path:
    """The source with some of its members replaced."""
    path = tmp_path / source.name
    path.write_text(json.dumps({**json.loads(source.read_bytes()), **changes}), encoding="utf-8")
    return path


def coco(target: Path, path: Path = COCO / "captions_val2017.json", *words: str) -> Any:
    return convert(target, "coco", path, "--images", COCO / "val2017", *words)


def test_every_caption_becomes_a_pair(tmp_path: Path) -> None:
    assert coco(tmp_path / "out").documents == [
        pair(BLUE, "A blue box on a white table.", image_id=25, caption_id=101),
        pair(RED, "A red ball.", image_id=9, caption_id=102),
        pair(RED, "A round red thing lies there.", image_id=9, caption_id=103),
    ]


def test_an_image_that_is_not_there_is_counted(tmp_path: Path) -> None:
    assert coco(tmp_path / "out").reasons == ["missing"]


def test_with_the_first_caption_an_image_becomes_one_pair_that_knows_them_all(tmp_path: Path) -> None:
    path = COCO / "captions_val2017.json"
    texts = ["A red ball.", "A round red thing lies there. "]
    assert coco(tmp_path / "out", path, "captions=first").documents == [
        pair(RED, "A red ball.", image_id=9, captions=texts),
        pair(BLUE, "A blue box on a white table.", image_id=25, captions=["A blue box on a white table."]),
    ]


def test_a_caption_of_an_unknown_image_is_counted(tmp_path: Path) -> None:
    annotations = [{"id": 1, "image_id": 9, "caption": "red"}, {"id": 2, "image_id": 77, "caption": "lost"}]
    path = spoiled(tmp_path, COCO / "captions_val2017.json", annotations=annotations)
    converted = coco(tmp_path / "out", path)
    assert len(converted.documents) == 1
    assert converted.rejects == [
        ("reference", "captions_val2017.json: record 1: image_id 77 is not among the images")
    ]


@pytest.mark.parametrize(
    ("annotation", "reason", "message"),
    [
        ({"id": 2, "image_id": 9}, "layout", "caption is missing"),
        ({"id": 2, "image_id": 9, "caption": "a", "area": 3}, "layout", "area is unknown"),
        ({"id": 2, "image_id": "9", "caption": "a"}, "layout", "image_id is a str, not a int"),
        ({"id": 2, "image_id": 9, "caption": " "}, "text", "caption: is empty"),
        ({"id": 2, "image_id": 9, "caption": "an <image>"}, "marks", "holds <image>"),
        ({"id": 2, "image_id": 9, "caption": "a\ud800"}, "text", "surrogate"),
    ],
)
def test_a_bad_annotation_is_one_reject_that_names_what_is_wrong(
    tmp_path: Path, annotation: dict[str, Any], reason: str, message: str
) -> None:
    good = {"id": 1, "image_id": 9, "caption": "red"}
    path = spoiled(tmp_path, COCO / "captions_val2017.json", annotations=[good, annotation])
    converted = coco(tmp_path / "out", path)
    assert len(converted.documents) == 1 and converted.reasons == [reason]
    assert message in converted.rejects[0][1]


def test_a_file_name_that_leads_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    images = json.loads((COCO / "captions_val2017.json").read_bytes())["images"]
    images[0]["file_name"] = "../captions_val2017.json"
    path = spoiled(tmp_path, COCO / "captions_val2017.json", images=images)
    assert coco(tmp_path / "out", path).reasons == ["path", "path", "missing"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ([], "is a list; expected an object with 'annotations'"),
        ({"images": []}, "has no 'annotations'; found 'images'"),
        ({"images": [], "annotations": []}, "holds no records"),
        ({"images": [], "annotations": {}}, "'annotations' is an object; expected a list"),
        ({"images": [], "annotations": [{"bbox": [1]}]}, "caption is missing"),
    ],
)
def test_a_file_of_another_kind_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: Any, expected: str
) -> None:
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    shown = refused(capsys, tmp_path / "out", "coco", path, "--images", COCO / "val2017")
    assert expected in shown and "instances.json" in shown


def test_without_images_it_says_how_to_name_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = refused(capsys, tmp_path / "out", "coco", COCO / "captions_val2017.json")
    assert "--images FOLDER" in shown


def karpathy(target: Path, *words: str) -> Any:
    return convert(
        target, "karpathy", KARPATHY / "dataset_coco.json", "--images", KARPATHY / "images", *words
    )


def test_train_and_restval_are_karpathys_training_split(tmp_path: Path) -> None:
    assert karpathy(tmp_path / "out").documents == [
        pair(BLUE, "A blue box.", image_id=25, split="restval"),
        pair(BLUE, "A blue thing.", image_id=26, split="train"),
    ]


def test_the_test_split_comes_caption_by_caption_or_image_by_image(tmp_path: Path) -> None:
    texts = ["A red ball.", "Something red and round."]
    assert karpathy(tmp_path / "each", "split=test").documents == [
        pair(RED, text, image_id=9, split="test") for text in texts
    ]
    assert karpathy(tmp_path / "first", "split=test", "captions=first").documents == [
        pair(RED, texts[0], image_id=9, split="test", captions=texts)
    ]


def test_an_unknown_split_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = refused(capsys, tmp_path, "karpathy", KARPATHY / "dataset_coco.json", "split=train,dev")
    assert "split is 'dev'; expected train, restval, val, test" in shown
