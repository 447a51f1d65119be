"""A CSV file with a column of image paths and one of texts; the images in a folder.

Where a cell names several images they stand before the text, in order. Other columns are kept in the meta.
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from flamingo_lite.data.convert.frame import Format, Options, Record, Unit, attempt, whole_files
from flamingo_lite.data.convert.sources import image_in
from flamingo_lite.data.convert.values import plain_text
from flamingo_lite.data.filters import option
from flamingo_lite.document import Document, Text
from flamingo_lite.errors import FlamingoError, SampleError, first_line

MAX_CELL = 2**20


@dataclass(frozen=True)
class CsvOptions(Options):
    image_column: str = option("image", "the heading of the image paths")
    text_column: str = option("text", "the heading of the texts")
    separator: str = option(";", "what stands between the images of a cell")
    delimiter: str = option(",", "what stands between columns; tab for a tab")

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.column_delimiter) != 1 or self.column_delimiter in '"\r\n':
            raise FlamingoError(f"delimiter is {self.delimiter!r}; expected one character, or tab")
        if not self.separator:
            raise FlamingoError(
                "separator is empty; expected what stands between the images of a cell, such as ;"
            )

    @property
    def column_delimiter(self) -> str:
        return "\t" if self.delimiter == "tab" else self.delimiter


def read(unit: Unit, options: CsvOptions) -> Iterator[Record]:
    csv.field_size_limit(MAX_CELL)
    try:
        with unit.path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, delimiter=options.column_delimiter, strict=True)
            _check_header(unit, list(rows.fieldnames or []), options)
            for number, row in enumerate(rows):
                yield attempt(unit.key(number), partial(_document, options, row, unit.where(number)))
    except (csv.Error, UnicodeDecodeError, OSError) as error:
        raise FlamingoError(f"{unit.path}: no CSV in UTF-8 ({first_line(error)})") from error


def _check_header(unit: Unit, header: list[str], options: CsvOptions) -> None:
    for setting in ("image_column", "text_column"):
        if header.count(name := getattr(options, setting)) != 1:
            found = ", ".join(map(repr, header[:8])) or "nothing"
            raise FlamingoError(
                f"{unit.path}: expected one column {name!r}; found {found}; choose with {setting}="
            )
    if len(set(header)) < len(header):
        raise FlamingoError(
            f"{unit.path}: has two columns of one name; found {', '.join(map(repr, header[:8]))}"
        )


def _document(options: CsvOptions, row: dict[str | None, str | None], where: str) -> Document:
    # DictReader puts cells without a heading under None, and None into cells that the row lacks.
    if None in row or None in row.values():
        raise SampleError(f"{where}: has more or fewer cells than there are columns", "layout")
    cells = {str(name): str(value) for name, value in row.items()}
    names = [name.strip() for name in cells.pop(options.image_column).split(options.separator)]
    text = plain_text(cells.pop(options.text_column), f"{where}: {options.text_column}")
    images = [image_in(options.images, name, where) for name in names if name]
    if not images:
        raise SampleError(f"{where}: {options.image_column} names no image", "missing")
    return Document([*images, Text(text, ends_chunk=True)], cells)


FORMAT = Format(
    "CSV with image paths and texts, images by --images", whole_files(".csv", ".tsv"), read, CsvOptions
)
