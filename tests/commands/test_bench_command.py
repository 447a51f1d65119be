"""flamingo-lite bench: the profile it prints and writes, and what it says where it cannot compare."""

import json
from pathlib import Path

import pytest

import flamingo_lite
from flamingo_lite import cli


def test_a_profile_is_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "--profile", "model=llava_tiny", "stage.batch_size=1", "--output", str(tmp_path)]
    assert cli.main(words) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("vision encoder", "head and loss", "optimizer", "all but data"))
    found = json.loads((tmp_path / "profile.json").read_text())
    assert found["settings"] == "model=llava_tiny stage.batch_size=1" and found["rows"] == 1
    assert "cross-attention" not in found["parts"], "prefix fusion has none"
    assert "default-src 'none'" in (tmp_path / "profile.html").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["atention"], "unknown comparison 'atention'; did you mean 'attention'?"),
        (["model=flamingo_tiny"], "add --profile"),
        (["--profile", "--rounds", "3"], "belong to comparisons"),
    ],
)
def test_a_wrong_word_is_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", *words]) == 2
    line = capsys.readouterr().err
    assert said in line and line.count("\n") == 1


def test_an_installed_package_says_where_comparisons_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(flamingo_lite, "__path__", [str(tmp_path / "flamingo_lite")])
    assert cli.main(["bench", "attention"]) == 2
    line = capsys.readouterr().err
    assert "clone the repository" in line and line.count("\n") == 1


def test_a_comparison_that_fails_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "prefix.py").write_text("raise SystemExit('outputs differ')")
    monkeypatch.setattr(flamingo_lite, "__path__", [str(tmp_path / "flamingo_lite")])
    assert cli.main(["bench", "prefix", "--output", str(tmp_path)]) == 2
    assert "'prefix' has no figures" in capsys.readouterr().err
