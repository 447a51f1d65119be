"""flamingo-lite data index: what training would measure is measured before it."""

from pathlib import Path

import pytest

from flamingo_lite import cli
from flamingo_lite.config import load_config
from flamingo_lite.data.shards import write_shards
from flamingo_lite.document import Document, Text
from flamingo_lite.errors import FlamingoError


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    documents = ((f"{i}", Document([Text("one two three" * (i + 1))])) for i in range(5))
    write_shards(documents, tmp_path / "my shards", samples_per_shard=2)
    return tmp_path / "my shards"


def test_it_says_what_the_documents_come_to_and_measures_once(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["data", "index", f"data.directory='{directory}'", "stage.max_length=16", "data.workers=1"]
    assert cli.main(words) == 0
    assert "data: 5 documents, 5 of them usable" in capsys.readouterr().out
    files = sorted((directory / "lengths").rglob("*.npy"))
    assert len(files) == 3
    times = [path.stat().st_mtime_ns for path in files]
    assert cli.main(words) == 0
    assert [path.stat().st_mtime_ns for path in files] == times
    assert cli.main([*words, "--fresh"]) == 0
    assert all(a < path.stat().st_mtime_ns for a, path in zip(times, files, strict=True))


def test_sources_are_given_by_name_and_measured_each(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = [f"data.sources.{name}.directory='{directory}'" for name in ("web", "books")]
    assert cli.main(["data", "index", *sources, "data.workers=1"]) == 0
    said = capsys.readouterr().out
    assert "web: 5 documents" in said and "books: 5 documents" in said


def test_fields_of_sources_are_typed_and_checked() -> None:
    where = "data.sources.web.directory=shards"
    config = load_config([where, "data.sources.web.weight=2", "data.sources.web.template.end=false"])
    source = config.data.sources["web"]
    assert (source.weight, source.loss_weight, source.template) == (2.0, 1.0, {"end": False})
    for override, said in (
        ("data.sources.web.wieght=2", "wieght"),
        ("data.sources.web.weight=heavy", "heavy"),
        ("data.sources.web.loss_weight=-1", "loss_weight is -1"),
        ("data.sources.books.weight=1", "data.sources.books has no directory"),
    ):
        with pytest.raises(FlamingoError, match=said):
            load_config([where, override])
