"""Images by their address: where in img2dataset's tars the image of a URL lies.

A small database beside the tars, made once: a row per image, so that hundreds of millions need no memory. It is made
anew when a tar comes, goes or changes.
"""

import hashlib
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import IO

from flamingo_lite.data.convert.sources import parse_json
from flamingo_lite.data.convert.tars import members_by_key, read_at
from flamingo_lite.data.images import IMAGE_SUFFIXES
from flamingo_lite.data.shard_writer import temporary
from flamingo_lite.data.tar import split
from flamingo_lite.document import MAX_BYTES
from flamingo_lite.errors import FlamingoError, SampleError

NAME = "images.sqlite"
MAX_JSON = 2**20
Row = tuple[bytes, int, int, int]


class ImageIndex:
    """`index.find(url)` is the image's bytes, or None. Errors: `FlamingoError` when the tars have changed since."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._database = sqlite3.connect(f"file:{folder / NAME}?mode=ro&immutable=1", uri=True)
        self._names = dict(self._database.execute("select number, name from tars"))
        self._open: tuple[int, IO[bytes]] | None = None

    def find(self, url: str) -> bytes | None:
        """The first image of this address."""
        row = self._database.execute(
            "select tar, start, size from images where url = ?", [_mark(url)]
        ).fetchone()
        if row is None:
            return None
        number, start, size = row
        if self._open is None or self._open[0] != number:
            if self._open is not None:
                self._open[1].close()
            self._open = (number, (self._folder / self._names[number]).open("rb"))
        file = self._open[1]
        file.seek(start)
        return file.read(size)

    @classmethod
    def make(cls, folder: Path) -> None:
        """Makes the database unless it fits the tars. Errors: `FlamingoError` for a folder without tars of img2dataset,
        or one that cannot be written."""
        paths = sorted(folder.rglob("*.tar"))
        if not paths:
            raise FlamingoError(
                f"{folder}: no tars here; --images is the folder in which img2dataset wrote tars"
            )
        tars = [
            (i, p.relative_to(folder).as_posix(), p.stat().st_size, p.stat().st_mtime_ns)
            for i, p in enumerate(paths)
        ]
        if _tars_of(folder / NAME) == tars:
            return
        partial = temporary(folder / NAME)
        try:
            partial.unlink(missing_ok=True)
            with closing(sqlite3.connect(partial)) as database:
                database.execute(
                    "create table tars (number integer, name text, size integer, modified integer)"
                )
                database.execute(
                    "create table images (url blob primary key, tar integer, start integer, size integer) without rowid"
                )
                database.executemany("insert into tars values (?, ?, ?, ?)", tars)
                for number, path in enumerate(paths):
                    database.executemany(
                        "insert or ignore into images values (?, ?, ?, ?)", _rows(path, number)
                    )
                count = database.execute("select count(*) from images").fetchone()[0]
                database.commit()
            if not count:
                raise FlamingoError(f"{folder}: no sample of these tars has an image and a json with a url")
            os.replace(partial, folder / NAME)
        except (sqlite3.Error, OSError) as error:
            raise FlamingoError(f"{folder}: the index of images cannot be written there ({error})") from error
        finally:
            partial.unlink(missing_ok=True)


def _tars_of(path: Path) -> list[tuple[int, str, int, int]] | None:
    """The tars of an index, None without one that can be read."""
    if not path.is_file():
        return None
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)) as database:
            return database.execute(
                "select number, name, size, modified from tars order by number"
            ).fetchall()
    except sqlite3.Error:
        return None


def _rows(path: Path, number: int) -> Iterator[Row]:
    """Of each sample with one image and a url, up to where the tar is damaged: behind that, images are missing."""
    with path.open("rb") as file:
        try:
            for _, members in members_by_key(file, path):
                by_suffix = {split(member.name)[1]: member for member in members}
                images = [by_suffix[suffix] for suffix in IMAGE_SUFFIXES & by_suffix.keys()]
                about = by_suffix.get("json")
                if len(images) != 1 or about is None or about.size > MAX_JSON or images[0].size > MAX_BYTES:
                    continue
                if (url := _url(read_at(file, about.data, about.size))) is not None:
                    yield _mark(url), number, images[0].data, images[0].size
        except SampleError:
            return


def _url(data: bytes) -> str | None:
    try:
        about = parse_json(data, "")
    except SampleError:
        return None
    url = about.get("url") if isinstance(about, dict) else None
    return url if isinstance(url, str) else None


def _mark(url: str) -> bytes:
    return hashlib.sha256(url.encode("utf-8", "surrogatepass")).digest()[:16]
