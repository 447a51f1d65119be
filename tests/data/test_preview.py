"""The preview: what documents say, escaped, on a page that loads nothing and runs nothing."""

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flamingo_lite.cli import main
from flamingo_lite.data.pages import page
from flamingo_lite.data.preview import CHARACTERS, SIDE, shown
from flamingo_lite.data.shards import write_shards
from flamingo_lite.document import Document, Image, Text
from flamingo_lite.errors import SampleError

EVIL = "<script>alert(1)</script>'\"><img src=x onerror=alert(1)>&amp;{{ 7 * 7 }}"


class Page(HTMLParser):
    """Its tags with their attributes, and all text outside of <style>."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._style = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._style = tag == "style"

    def handle_data(self, data: str) -> None:
        if not self._style:
            self.words.append(data)

    @property
    def text(self) -> str:
        return "".join(self.words)


def picture(size: tuple[int, int] = (8, 6), kind: str = "PNG", **options: object) -> Image:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", size, (200, 10, 10)).save(buffer, kind, **options)
    return Image(buffer.getvalue(), words=EVIL)


def drawn(*documents: Document | SampleError) -> Page:
    pieces = [shown(document, f"{EVIL}/{i}") for i, document in enumerate(documents)]
    return Page(page("preview.html.jinja", directory=EVIL, documents=pieces, total=9, seed=None).decode())


def assert_harmless(found: Page) -> None:
    assert {tag for tag, _ in found.tags} <= {
        "html", "head", "meta", "title", "style", "body", "main", "header", "p", "h1", "span", "q", "article", "b",
        "div", "figure", "figcaption", "img", "details", "summary", "pre",
    }  # fmt: skip
    for tag, attributes in found.tags:
        assert not [name for name in attributes if name.startswith("on") or name in ("href", "style")]
        if tag == "img":
            assert str(attributes["src"]).startswith("data:image/jpeg;base64,")
    policies = [attributes["content"] for _, attributes in found.tags if "http-equiv" in attributes]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_everything_that_documents_say_is_escaped() -> None:
    document = Document([picture(), Text(EVIL, role=EVIL), Text(EVIL, loss=False)], {EVIL: EVIL}, name=EVIL)
    found = drawn(document, SampleError(EVIL, EVIL))
    assert_harmless(found)
    assert found.text.count(EVIL) >= 7


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60), st.text(max_size=20) | st.none())
def test_any_text_and_role_stand_on_the_page_as_they_are(text: str, role: str | None) -> None:
    found = drawn(Document([Text(text, role=role)]))
    assert_harmless(found)
    # A reader of HTML makes one kind of line end of all, and another character of NUL.
    told = [re.sub(r"\r\n?", "\n", part).replace("\0", "\ufffd") for part in (text, role or "")]
    assert all(part in re.sub(r"\r\n?", "\n", found.text).replace("\0", "\ufffd") for part in told)


def test_a_turn_begins_where_the_role_changes() -> None:
    roles = ["user", "user", None, "assistant", "user"]
    pieces = shown(Document([Text("a", role=role) for role in roles]), "k").pieces
    assert [piece.turn for piece in pieces] == ["user", None, None, "assistant", "user"]


def test_text_that_is_not_trained_on_and_ends_of_chunks_are_marked() -> None:
    found = drawn(Document([Text("free", loss=False), Text("learnt", ends_chunk=True), Text("last")]))
    body = found.text.partition("where the data says it")[2]
    assert re.sub(r"\s+", " ", body).strip().endswith("free learntend of chunk last")
    assert [attributes.get("class") for tag, attributes in found.tags if tag == "span"].count("free") == 2


def test_an_image_is_shrunk_and_nothing_but_its_pixels_is_kept() -> None:
    image = picture((1200, 600), "JPEG", comment=b"<script>", quality=100)
    (piece,) = shown(Document([image]), "k").pieces
    assert piece.image is not None and piece.note == "1200 x 600"
    data = base64.b64decode(piece.image.partition(",")[2])
    assert PIL.Image.open(io.BytesIO(data)).size == (SIDE, SIDE // 2)
    assert b"script" not in data and b"script" in image.data


def test_an_image_that_cannot_be_shown_says_why() -> None:
    (piece,) = shown(Document([Image(picture().data[:50], name="k.0.png")]), "k").pieces
    assert piece.picture and piece.image is None and "k.0.png" in piece.note


def test_long_texts_are_cut_and_the_rest_is_told() -> None:
    assert f"{1234:,} more characters" in drawn(Document(["x" * (CHARACTERS + 1234)])).text


def test_the_command_writes_one_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    documents = [(f"{i:02d}", Document([picture(), f"text number {i}."])) for i in range(30)]
    write_shards(documents, tmp_path / "shards", samples_per_shard=7)
    path = tmp_path / "page.html"
    for more, first in (([], "number 0."), (["--seed", "1"], "number ")):
        assert (
            main(["data", "preview", str(tmp_path / "shards"), "-n", "3", "--output", str(path), *more]) == 0
        )
        found = Page(path.read_text())
        assert_harmless(found)
        assert found.text.count("text number ") == 3 and first in found.text
    assert "3 documents in" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["nowhere"], [".", "-n", "0"], []])
def test_what_cannot_be_shown_is_one_line(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["data", "preview", *words]) == 2
    assert capsys.readouterr().err.count("\n") == 1
