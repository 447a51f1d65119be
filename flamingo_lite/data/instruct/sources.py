"""Where described images come from: synthetic scenes, lines of JSON with captions and boxes, COCO's annotations."""

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

from flamingo_lite.data.convert.frame import Reject, Unit, fields
from flamingo_lite.data.convert.json_records import Section, names, section
from flamingo_lite.data.convert.sources import image_in, json_lines, parse_json
from flamingo_lite.data.convert.values import list_of, plain_text
from flamingo_lite.data.instruct.described import Box, Corners, Described
from flamingo_lite.data.synthetic.scenes import draw_scene, in_order, scene_boxes, things
from flamingo_lite.document import Image
from flamingo_lite.errors import FlamingoError, SampleError

SCENES = "scenes"
Source = Iterator[Described | Reject]


def described_images(
    inputs: Sequence[str], images: Path | None, number: int | None = None, seed: int = 0
) -> Source:
    """The images of `inputs` (`scenes`, .jsonl files, or COCO's captions_*.json and instances_*.json) in order, the first
    `number` of them; a `Reject` stands for a record that cannot be used. `seed`: of the scenes.

    Errors: `FlamingoError` for inputs of another kind.
    """
    suffixes = {Path(given).suffix for given in inputs}
    if len({Path(given).name for given in inputs}) < len(inputs):
        raise FlamingoError(
            f"--from {' '.join(inputs)}: two files of one name would get the same keys; rename one"
        )
    if list(inputs) == [SCENES]:
        found = scenes(seed)
    elif suffixes == {".jsonl"}:
        found = (each for path in _files(inputs) for each in json_images(path, images))
    elif suffixes == {".json"}:
        found = coco_images(_files(inputs), images)
    else:
        raise FlamingoError(
            f"--from {' '.join(inputs) or '(nothing)'}: expected '{SCENES}', .jsonl files with captions and boxes, "
            "or COCO's captions_*.json and instances_*.json"
        )
    if number is None and list(inputs) == [SCENES]:
        raise FlamingoError("--from scenes has no end; expected number=N")
    return islice(found, number)


def count_images(inputs: Sequence[str], number: int | None) -> int:
    """How many records `described_images` reads. Errors: `FlamingoError` for a file that is not there."""
    if list(inputs) == [SCENES]:
        return number or 0
    paths = _files(inputs)
    if all(path.suffix == ".jsonl" for path in paths):
        found = sum(1 for path in paths for _ in json_lines(path))
    else:
        found = sum(len(section(path, list, "images")) for path in paths if "categories" not in names(path))
    return found if number is None else min(found, number)


def _files(inputs: Sequence[str]) -> list[Path]:
    paths = [Path(given) for given in inputs]
    for path in paths:
        if not path.is_file():
            raise FlamingoError(f"{path}: no such file; expected captions and boxes, or COCO's annotations")
    return paths


def scenes(seed: int) -> Iterator[Described]:
    """Scenes without end, each a function of the seed and its number; held-out ones are never drawn."""
    for number in count():
        generator = random.Random(f"{seed}/described/{number}")
        content = sorted(things(generator))
        drawing = generator.getrandbits(64)
        boxes = zip(content, scene_boxes(content, random.Random(drawing)), strict=True)
        words = in_order(content)
        yield Described(
            f"scene-{seed}-{number:08d}",
            Image(draw_scene(content, random.Random(drawing)), words=words),
            (words,),
            tuple(Box(" ".join(thing), _clipped(corners)) for thing, corners in boxes),
        )


def json_images(path: Path, images: Path | None) -> Source:
    """Lines `{"image": "a.jpg", "captions": ["..."], "boxes": [{"label": "dog", "box": [0.1, 0.2, 0.5, 0.9]}]}`; the boxes
    may be missing. Errors: `FlamingoError` for a file whose first line is something else."""
    unit = Unit(path, path.name)
    for number, line in json_lines(path):
        key, where = unit.key(number), f"{path.name}: line {number + 1}"
        try:
            record = fields(parse_json(line, where), where, {"image": str, "captions": list}, {"boxes": list})
            captions = list_of(str, record["captions"], f"{where}: captions")
            boxes = [_box(box, f"{where}: box {i}") for i, box in enumerate(record.get("boxes", ()))]
            image = image_in(images, record["image"], where)
            yield _described(key, image, captions, boxes, where)
        except SampleError as error:
            if number == 0 and error.reason in ("layout", "json"):
                raise FlamingoError(f"not captions and boxes: {error}") from error
            yield Reject(key, error.reason, str(error))


def _described(key: str, image: Image, captions: list[str], boxes: list[Box], where: str) -> Described:
    if not captions:
        raise SampleError(f"{where}: has no caption; expected one or more", "text")
    image.pil()  # before anything is paid for it
    plain = tuple(plain_text(caption, f"{where}: caption") for caption in captions)
    return Described(key, image, plain, tuple(boxes))


def _box(value: Any, where: str) -> Box:
    record = fields(value, where, {"label": str, "box": list})
    corners = record["box"]
    if len(corners) != 4 or not all(type(corner) in (int, float) for corner in corners):
        raise SampleError(f"{where}: expected four numbers, [left, top, right, bottom]", "layout")
    left, top, right, bottom = map(float, corners)
    if not (0 <= left <= right <= 1 and 0 <= top <= bottom <= 1):
        raise SampleError(
            f"{where}: {corners} is no box; expected left <= right and top <= bottom, in 0 to 1", "layout"
        )
    return Box(plain_text(record["label"], f"{where}: label"), (left, top, right, bottom))


@dataclass(frozen=True)
class _Annotations:
    """COCO's, by the id of the image."""

    captions: dict[int, list[tuple[int, str]]]
    boxes: dict[int, list[tuple[str, list[float]]]]


def coco_images(paths: Sequence[Path], images: Path | None) -> Source:
    """The images of COCO's captions file, each with the boxes that an instances file beside it gives.

    Errors: `FlamingoError` for files of another layout, or without captions.
    """
    listed: Section | None = None
    found = _Annotations(defaultdict(list), defaultdict(list))
    for path in paths:
        if "categories" in names(path):
            _read_instances(path, found)
        else:
            listed = section(path, list, "images")
            _read_captions(path, found)
    if listed is None:
        raise FlamingoError(f"{paths[0]}: holds boxes, but no captions; give captions_*.json beside it")
    unit = Unit(listed.path, listed.path.name)
    for number, _, data in listed.items():
        where = unit.where(number)
        try:
            yield _coco_image(unit.key(number), parse_json(data, where), found, images, where)
        except SampleError as error:
            yield Reject(unit.key(number), error.reason, str(error))


def _coco_image(key: str, record: Any, found: _Annotations, images: Path | None, where: str) -> Described:
    fields(record, where, {"id": int, "file_name": str, "width": int, "height": int}, open=True)
    width, height = record["width"], record["height"]
    if width < 1 or height < 1:
        raise SampleError(f"{where}: is {width} x {height} pixels; expected an image's size", "layout")
    boxes = []
    for label, (left, top, wide, high) in found.boxes.get(record["id"], ()):
        corners = (left / width, top / height, (left + wide) / width, (top + high) / height)
        boxes.append(Box(label, _clipped(corners)))
    captions = [caption for _, caption in sorted(found.captions.get(record["id"], ()))]
    return _described(key, image_in(images, record["file_name"], where), captions, boxes, where)


def _read_captions(path: Path, found: _Annotations) -> None:
    for number, _, data in section(path, list, "annotations").items():
        where = f"{path}: annotation {number}"
        record = _annotation(data, where, {"id": int, "image_id": int, "caption": str})
        found.captions[record["image_id"]].append((record["id"], record["caption"]))


def _read_instances(path: Path, found: _Annotations) -> None:
    """Crowds have one box around many things, which would be counted as one: they are left out."""
    labels = {}
    for number, _, data in section(path, list, "categories").items():
        record = _annotation(data, f"{path}: category {number}", {"id": int, "name": str})
        labels[record["id"]] = record["name"]
    for number, _, data in section(path, list, "annotations").items():
        where = f"{path}: annotation {number}"
        record = _annotation(data, where, {"image_id": int, "category_id": int, "bbox": list})
        box = record["bbox"]
        if len(box) != 4 or not all(type(side) in (int, float) for side in box):
            raise FlamingoError(f"{where}: bbox is {box}; expected [left, top, width, height] in pixels")
        if record["category_id"] not in labels:
            raise FlamingoError(f"{where}: category {record['category_id']} is not among the categories")
        if not record.get("iscrowd"):
            found.boxes[record["image_id"]].append((labels[record["category_id"]], box))


def _annotation(data: bytes, where: str, required: dict[str, type]) -> dict[str, Any]:
    """Errors: `FlamingoError`: annotations are the file's, and no image's alone."""
    try:
        return fields(parse_json(data, where), where, required, open=True)
    except SampleError as error:
        raise FlamingoError(str(error)) from error


def _clipped(corners: Corners) -> Corners:
    """Outlines and rounded pixels may lead out of the picture by a hair."""
    left, top, right, bottom = (min(1.0, max(0.0, corner)) for corner in corners)
    return left, top, right, bottom
