"""Statistics count what is there; the command prints them and writes a page that loads nothing."""

import io
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flamingo_lite.cli import main
from flamingo_lite.data.shards import write_shards
from flamingo_lite.data.stats import Stats, chosen, left_out, similarities
from flamingo_lite.data.stats_figures import figures
from flamingo_lite.document import Document, Image, Text
from flamingo_lite.errors import SampleError


def picture(width: int, height: int, kind: str = "PNG", **options: object) -> Image:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (width, height)).save(buffer, kind, **options)
    return Image(buffer.getvalue())


def counted(*documents: Document | SampleError) -> Stats:
    stats = Stats(total=len(documents))
    for document in documents:
        stats.take(document)
    return stats


def test_images_texts_sizes_and_roles_are_counted() -> None:
    chat = [Text("abc", loss=False, role="user"), Text("de", role="assistant")]
    stats = counted(
        Document([picture(8, 6), "abcd", picture(4, 4, "JPEG")]),
        Document(chat, {"similarity": 0.3}),
        Document([]),
    )
    assert (list(stats.images), list(stats.lengths)) == ([2, 0, 0], [4, 5, 0])
    assert (list(stats.widths), list(stats.heights)) == ([8, 4], [6, 4])
    assert stats.formats == {"png": 1, "jpg": 1}
    assert stats.roles == {"user": 1, "assistant": 1}
    assert (stats.documents, stats.texts, stats.trained) == (3, 3, 2)
    assert list(stats.similarities) == [0.3]


def test_a_size_is_that_of_the_upright_image() -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    stats = counted(Document([picture(8, 6, "JPEG", exif=exif)]))
    assert (stats.widths[0], stats.heights[0]) == (6, 8)


def test_a_document_that_cannot_be_used_is_counted_by_reason_alone() -> None:
    stats = counted(Document([picture(8, 6), Image(b"GIF")]), SampleError("broken", "json"), Document(["a"]))
    assert (stats.documents, len(stats.widths), stats.texts) == (1, 0, 1)
    assert stats.rejects == {"image": 1, "json": 1}


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 300), st.integers(1, 400), st.integers(0, 3))
def test_a_sample_is_distinct_numbers_in_order_and_a_function_of_the_seed(
    total: int, count: int, seed: int
) -> None:
    numbers = list(chosen(total, count, seed))
    assert numbers == sorted(set(numbers)) == list(chosen(total, count, seed))
    assert len(numbers) == min(total, count) and set(numbers) <= set(range(total))


def test_similarity_is_found_wherever_meta_keeps_it() -> None:
    meta = {"similarity": [0.1, None, "x", True, 10**400], "images": [{"similarity": 0.25}, {"url": "u"}]}
    assert sorted(similarities(meta)) == [0.1, 0.25]
    assert list(similarities({"a": {"b": {"c": {"d": {"similarity": 1.0}}}}})) == []


@pytest.mark.parametrize("info", [{}, {"rejects": 3}, {"rejects": {"small": "x", "large": -1}}])
def test_rejects_of_a_foreign_manifest_are_none(info: dict) -> None:
    assert not left_out(info)


def test_there_is_a_figure_for_what_documents_have_and_none_for_the_rest() -> None:
    assert figures(Stats()) == {}
    assert set(figures(counted(Document(["a"])))) == {"images_per_document", "lengths"}
    documents = [
        Document([picture(8 + i, 6), Text("a" * i, role="$x$")], {"similarity": i / 9}) for i in range(20)
    ]
    assert set(figures(counted(*documents, SampleError("", "json")))) == {
        "images_per_document", "lengths", "image_sizes", "aspect_ratios", "similarity", "roles", "rejects",
    }  # fmt: skip


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    documents = [
        (f"{i:02d}", Document([picture(30 + i, 20), Text(f"some text {i}", role="<b>user</b>")]))
        for i in range(12)
    ]
    write_shards(documents, tmp_path / "shards", 5, info={"rejects": {"similarity": 7}})
    return tmp_path / "shards"


def test_the_command_prints_tables_and_writes_a_page(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["data", "stats", str(directory), "--tokenizer", "tiny", "--output", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "12 documents" in shown and "tokens" in shown and "<b>user</b>" in shown and "similarity" in shown
    assert {path.name for path in out.iterdir()} >= {"stats.html", "images_per_document.png", "rejects.png"}
    html = (out / "stats.html").read_text()
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in html
    assert "<script" not in html and "<b>user" not in html and "http" not in html.replace("http-equiv", "")


def test_characters_are_counted_without_a_tokenizer_and_a_sample_is_named(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "stats", str(directory), "--sample", "4"]) == 0
    shown = capsys.readouterr().out
    assert "4 of 12 documents" in shown and "characters" in shown


@pytest.mark.parametrize(
    "words, named",
    [
        (["nowhere"], "shards.json is missing"),
        (["{}", "--sample", "0"], "1 or more"),
        (["{}", "--tokenizer", "./none"], "none"),
        (["{}", "--sampel", "3"], "--sample"),
    ],
)
def test_what_cannot_be_counted_is_one_line(
    words: list[str], named: str, directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "stats", *(word.replace("{}", str(directory)) for word in words)]) == 2
    error = capsys.readouterr().err
    assert named in error and error.count("\n") == 1


def test_counting_is_exact_on_many_documents() -> None:
    generator = np.random.default_rng(0)
    sizes = generator.integers(2, 60, (40, 2))
    stats = counted(*(Document([picture(int(w), int(h))]) for w, h in sizes))
    assert np.array_equal(np.stack([stats.widths, stats.heights], 1), sizes)
