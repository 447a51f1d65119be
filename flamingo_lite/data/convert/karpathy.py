"""Karpathy's splits of COCO (and Flickr30k, Flickr8k): `{dataset, images: [{filename, split, sentences, ...}]}`.

The layout is that of dataset_coco.json in caption_datasets.zip; `filepath` is the folder below --images, if any.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from flamingo_lite.data.convert.coco import CocoOptions, pair
from flamingo_lite.data.convert.frame import Format, Record, Reject, Unit, attempt, fields, files
from flamingo_lite.data.convert.json_records import cut, section
from flamingo_lite.data.convert.sources import image_in, parse_json
from flamingo_lite.data.filters import option
from flamingo_lite.document import Document
from flamingo_lite.errors import FlamingoError, SampleError

SPLITS = ("train", "restval", "val", "test")


@dataclass(frozen=True)
class KarpathyOptions(CocoOptions):
    split: str = option("train,restval", "of train, restval, val, test, separated by commas")

    def __post_init__(self) -> None:
        super().__post_init__()
        if unknown := [name for name in self.split.split(",") if name not in SPLITS]:
            raise FlamingoError(f"split is {unknown[0]!r}; expected {', '.join(SPLITS)}, separated by commas")


def units(inputs: Sequence[Path], options: KarpathyOptions) -> list[Unit]:
    return [part for unit in files(inputs, ".json") for part in cut(unit, section(unit.path, list, "images"))]


def read(unit: Unit, options: KarpathyOptions) -> Iterator[Record]:
    """The pairs of the images of the split; images of other splits are passed over."""
    for number, _, data in section(unit.path, list, "images").items(unit.start, unit.stop):
        key, where = unit.key(number), unit.where(number)
        try:
            record = _checked(parse_json(data, where), where)
        except SampleError as error:
            yield Reject(key, error.reason, str(error))
            continue
        if record["split"] not in options.split.split(","):
            continue
        count = 1 if options.captions == "first" else len(record["sentences"])
        for place in range(count):
            yield attempt(f"{key}-{place}", partial(_document, options, record, place, where))


def _document(options: KarpathyOptions, record: dict[str, Any], place: int, where: str) -> Document:
    folder = record.get("filepath")
    name = f"{folder}/{record['filename']}" if folder else record["filename"]
    captions = [sentence["raw"] for sentence in record["sentences"]]
    meta: dict[str, Any] = {"image_id": record.get("cocoid", record["imgid"]), "split": record["split"]}
    if options.captions == "first":
        meta["captions"] = captions
    return pair(image_in(options.images, name, where), captions[place], where, meta)


def _checked(record: Any, where: str) -> dict[str, Any]:
    required = {"filename": str, "split": str, "sentences": list, "imgid": int}
    fields(record, where, required, {"filepath": str, "cocoid": int, "sentids": list})
    for place, sentence in enumerate(record["sentences"]):
        about = {"tokens": list, "imgid": int, "sentid": int}
        fields(sentence, f"{where}: sentence {place}", {"raw": str}, about)
    if not record["sentences"]:
        raise SampleError(f"{where}: has no sentences; expected captions", "text")
    return record


FORMAT = Format("Karpathy's splits of COCO captions, images by --images", units, read, KarpathyOptions)
