"""img2dataset and LAION: tars in which a sample is `key.jpg` (or jpeg, png, webp), `key.txt` and `key.json`.

The layout is img2dataset's `webdataset` output. The json is whatever columns its user kept; a parquet beside the
tar holds the same and is ignored.
"""

from collections.abc import Iterator
from typing import Any

from flamingo_lite.data.convert.frame import Format, Options, Record, Reject, Unit, attempt, whole_files
from flamingo_lite.data.convert.sources import parse_json
from flamingo_lite.data.convert.tars import tar_samples
from flamingo_lite.data.filters import check_similarity
from flamingo_lite.data.images import IMAGE_SUFFIXES
from flamingo_lite.document import Document, Image, Text
from flamingo_lite.errors import SampleError


def read(unit: Unit, options: Options) -> Iterator[Record]:
    """A caption pair per sample."""
    number = 0
    try:
        for name, members in tar_samples(unit.path, {*IMAGE_SUFFIXES, "txt", "json"}):
            where = f"{unit.name}: sample {name}"
            yield attempt(unit.key(number), lambda n=name, m=members, w=where: pair(n, m, w, options))
            number += 1
    except SampleError as error:
        yield Reject(unit.key(number), error.reason, str(error))


def pair(name: str, members: dict[str, bytes], where: str, options: Options) -> Document:
    """An image, then its caption, as OpenFlamingo reads LAION."""
    found = sorted(IMAGE_SUFFIXES & members.keys())
    if len(found) != 1:
        raise SampleError(f"{where}: {len(found)} images (jpg, jpeg, png, webp); expected one", "layout")
    about = parse_json(members["json"], where) if "json" in members else {}
    if not isinstance(about, dict):
        raise SampleError(f"{where}: its json is a {type(about).__name__}; expected an object", "layout")
    meta = {
        "sample": name,
        **{key: about[key] for key in ("url", "similarity") if about.get(key) is not None},
    }
    check_similarity(similarity(about, where), where, options)
    image = Image(members[found[0]], name=f"{where}.{found[0]}")
    return Document([image, Text(caption(members, about, where), ends_chunk=True)], meta)


def caption(members: dict[str, bytes], about: dict[str, Any], where: str) -> str:
    """What stands in txt, or under "caption" in json. Errors: `SampleError` without either, or an empty one."""
    if "txt" not in members and not isinstance(about.get("caption"), str):
        raise SampleError(f"{where}: no txt, and no caption in its json; expected one of them", "layout")
    try:
        text = members["txt"].decode() if "txt" in members else about["caption"]
    except UnicodeDecodeError as error:
        raise SampleError(f"{where}: its txt is not UTF-8", "text") from error
    if not text.strip():
        raise SampleError(f"{where}: the caption is empty", "text")
    return text.strip()


def similarity(about: dict[str, Any], where: str) -> float | None:
    """LAION's similarity of image and caption, if the columns have it."""
    value = about.get("similarity")
    if value is not None and not isinstance(value, int | float):
        raise SampleError(f"{where}: similarity is a {type(value).__name__}; expected a number", "layout")
    return value


FORMAT = Format("tars of img2dataset (LAION, CC3M, ...): jpg, txt, json", whole_files(".tar"), read)
