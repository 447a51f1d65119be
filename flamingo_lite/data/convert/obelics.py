"""OBELICS: parquet files of web pages as parallel lists of images (addresses) and texts, one of them set per slot.

The images are looked up by their address in tars that img2dataset made (`--images FOLDER`); nothing is fetched.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flamingo_lite.data.convert.frame import Format, Options, Record, Reject, Unit, fields, files
from flamingo_lite.data.convert.image_index import ImageIndex
from flamingo_lite.data.convert.sources import parse_json
from flamingo_lite.data.filters import option
from flamingo_lite.document import Document, Image, Text
from flamingo_lite.errors import FlamingoError, SampleError, first_line

COLUMNS = {"images": list, "texts": list, "metadata": str, "general_metadata": str}


@dataclass(frozen=True)
class ObelicsOptions(Options):
    """Its own filters ran before it was published, so only documents go that have nothing to learn from."""

    min_text: int = option(1, "characters of a document, at least")
    min_images: int = option(1, "images of a document, at least")


SIZE = 5000
"""Rows of a unit, about: whole row groups."""


def units(inputs: Sequence[Path], options: Options) -> list[Unit]:
    """Row groups of each file, together until they have `SIZE` rows. The index of images is made here, once."""
    if options.images is None:
        raise FlamingoError(
            "obelics has addresses for images; give the folder of img2dataset's tars with --images"
        )
    ImageIndex.make(options.images)
    found = []
    for unit in files(inputs, ".parquet"):
        start = row = 0
        parquet = _open(unit.path)
        for group in range(parquet.num_row_groups):
            row += parquet.metadata.row_group(group).num_rows
            if row - start >= SIZE or group + 1 == parquet.num_row_groups:
                found.append(Unit(unit.path, unit.name, start, row))
                start = row
    return found


def read(unit: Unit, options: Options) -> Iterator[Record]:
    """A document per row, before it the rejects of its images."""
    parquet = _open(unit.path)
    assert options.images is not None
    index = ImageIndex(options.images)
    start = 0
    for group in range(parquet.num_row_groups):
        rows = parquet.metadata.row_group(group).num_rows
        if unit.start <= start and start + rows <= (unit.stop or start + rows):
            for number, row in enumerate(_rows(parquet, group, unit.path), start):
                yield from page(unit, number, row, index)
        start += rows


def page(unit: Unit, number: int, row: dict[str, Any], index: ImageIndex) -> Iterator[Record]:
    """One row as a document, and the images that it has to do without."""
    key, where = unit.key(number), unit.where(number)
    try:
        fields(row, where, COLUMNS)
        images, texts = row["images"], row["texts"]
        about = parse_json(row["metadata"], f"{where}, metadata")
        general = parse_json(row["general_metadata"], f"{where}, general_metadata")
        if not all(entry is None or isinstance(entry, str) for entry in (*images, *texts)):
            raise SampleError(f"{where}: images or texts hold something else than text", "layout")
        if not isinstance(about, list) or not len(images) == len(texts) == len(about):
            raise SampleError(f"{where}: images, texts and metadata are not lists of one length", "layout")
        segments, kept = [], []
        for slot, (address, text) in enumerate(zip(images, texts, strict=True)):
            if (address is None) == (text is None):
                raise SampleError(f"{where}: slot {slot} has both an image and a text, or neither", "layout")
            if text is not None:
                segments.append(Text(text))
                continue
            if (data := index.find(address)) is None:
                yield Reject(key, "missing", f"{where}: {address} is in no tar of --images", image=True)
                continue
            segments.append(Image(data, name=f"{where}, image {slot}"))
            kept.append({"url": address, "alt_text": _entry(about[slot], "alt_text")})
        yield key, Document(segments, {"url": _entry(general, "url"), "images": kept}, where)
    except SampleError as error:
        yield Reject(key, error.reason, str(error))


def _entry(about: Any, name: str) -> str | None:
    """A text among what OBELICS notes about a page or an image; its notes have changed between releases."""
    value = about.get(name) if isinstance(about, dict) else None
    return value if isinstance(value, str) else None


def _rows(parquet: Any, group: int, path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a row group. Errors: `FlamingoError` naming a file whose bytes are damaged."""
    import pyarrow

    try:
        for batch in parquet.iter_batches(batch_size=128, row_groups=[group], columns=list(COLUMNS)):
            yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise FlamingoError(f"{path}: cannot be read ({first_line(error)}); get the file again") from error


def _open(path: Path) -> Any:
    """The parquet file, with the columns of OBELICS. Errors: `FlamingoError` naming what is missing or unknown."""
    import pyarrow
    import pyarrow.parquet

    try:
        parquet = pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise FlamingoError(f"{path}: not a parquet file ({first_line(error)})") from error
    names = set(parquet.schema_arrow.names)
    if names != set(COLUMNS):
        missing, unknown = sorted(set(COLUMNS) - names), sorted(names - set(COLUMNS))
        found = "; ".join(
            f"{word} {', '.join(which)}"
            for word, which in (("lacks", missing), ("has unknown", unknown))
            if which
        )
        raise FlamingoError(f"{path}: not OBELICS, {found}; expected the columns {', '.join(COLUMNS)}")
    return parquet


FORMAT = Format(
    "pages of OBELICS (.parquet); --images: the folder of img2dataset's tars of their images",
    units,
    read,
    ObelicsOptions,
    interleaved=True,
    joint="\n\n",
)
