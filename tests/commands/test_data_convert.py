"""flamingo-lite data convert: what it shows, and what it says of words that it cannot use."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from flamingo_lite import cli
from flamingo_lite.data.convert.choices import make_options, shown
from flamingo_lite.data.convert.formats import FORMATS
from flamingo_lite.data.convert.frame import Options
from flamingo_lite.errors import FlamingoError
from tests.data.convert.conversion_runs import write_inputs


def shows(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert cli.main(["data", "convert", *words]) == 0
    return capsys.readouterr().out


def says(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert cli.main(["data", "convert", *words]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "Traceback" not in said
    return said


def test_it_says_what_was_written_and_what_was_not_and_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = [str(path) for path in sorted(write_inputs(tmp_path / "in").iterdir())]
    words = ["--from", "img2dataset", *inputs, "--to", str(tmp_path / "to"), "--workers", "1"]
    shown = shows(words, capsys)
    assert "converting img2dataset 3/3  18 documents" in shown
    assert "18 documents with 18 images in 3 shards" in shown
    assert "image" in shown and "14.3%" in shown and "rejects.jsonl" in shown
    assert "3 of 3 inputs were done already" in shows(words, capsys)


def test_formats_and_their_options_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    listed = shows(["--formats"], capsys)
    assert all(name in listed for name in FORMATS)
    options = shows(["--from", "mmc4", "--options"], capsys)
    assert all(word in options for word in ("min_similarity", "0.24", "10999", "single_images"))


@pytest.mark.parametrize("name", FORMATS)
def test_every_option_says_what_it_means(name: str) -> None:
    assert all(meaning for *_, meaning in shown(FORMATS[name].options))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "--from is missing; expected one of"),
        (["--from", "mmc5"], "did you mean 'mmc4'?"),
        (["--from", "mmc4"], "no input was given"),
        (["--from", "mmc4", "x.jsonl"], "--to is missing"),
        (["--from", "mmc4", "x.jsonl", "--to", "y", "min_image=2"], "did you mean 'min_images'?"),
        (
            ["--from", "mmc4", "x.jsonl", "--to", "y", "min_images=two"],
            "min_images=two: expected a whole number",
        ),
        (["--from", "mmc4", "x.jsonl", "--to", "y", "--worker", "2"], "did you mean '--workers'?"),
        (
            ["--from", "mmc4", "x.jsonl", "--to", "y", "--workers", "two"],
            "--workers: invalid int value: 'two'",
        ),
        (["--from", "mmc4", "x.jsonl", "--to", "y"], "x.jsonl: no such file"),
    ],
)
def test_words_that_are_wrong_are_one_line(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert expected in says(words, capsys)


def test_a_file_with_an_equals_sign_is_an_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_inputs(tmp_path, 1).joinpath("00000.tar").rename(tmp_path / "part=0.tar")
    monkeypatch.chdir(tmp_path)
    assert (
        cli.main(["data", "convert", "--from", "img2dataset", "part=0.tar", "--to", "to", "--workers", "1"])
        == 0
    )
    assert (tmp_path / "to" / "shards.json").is_file()


@dataclass(frozen=True)
class Choices(Options):
    flag: bool = False
    size: float | None = 1.5
    kind: Literal["one", "two"] = "one"


def test_options_are_read_by_their_types() -> None:
    words = {"flag": "yes", "size": "none", "kind": "two", "images": "a b", "min_text": "3"}
    assert make_options(Choices, words, "x") == Choices(
        flag=True, size=None, kind="two", images=Path("a b"), min_text=3
    )


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ({"flag": "maybe"}, "flag=maybe: expected true or false"),
        ({"size": "big"}, "size=big: expected a number"),
        ({"kind": "twoo"}, "did you mean 'two'"),
        ({"min_text": "none"}, "min_text=none: expected a whole number"),
        ({"sise": "1"}, "did you mean 'size'"),
    ],
)
def test_options_of_another_type_are_named(words: dict[str, str], named: str) -> None:
    with pytest.raises(FlamingoError, match=named):
        make_options(Choices, words, "x")
