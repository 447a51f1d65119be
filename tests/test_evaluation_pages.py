"""Every command line in the pages on evaluation is one that the real parser and the real configuration take."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from flamingo_lite.commands import ensemble
from flamingo_lite.config import load_config
from flamingo_lite.evaluation.exclusion import CONTAMINATION, VERSION
from flamingo_lite.evaluation.others.choice import model_choice
from tests.command_lines import parsed, shell_lines

DOCS = Path(__file__).parents[1] / "docs"
PAGES = ("evaluation.md", "tasks_from_files.md")


def command_lines() -> Iterator[tuple[str, str]]:
    """(page, line) of every `flamingo-lite ...` in a block of shell commands, its continuation joined."""
    for page in PAGES:
        for line in shell_lines(DOCS / page):
            if line.startswith("flamingo-lite "):
                yield page, line


LINES = list(command_lines())


def test_the_pages_have_command_lines() -> None:
    assert {page for page, _ in LINES} == set(PAGES) and len(LINES) >= 12


@pytest.mark.parametrize(("page", "line"), LINES)
def test_a_command_line_of_a_page_is_one(
    page: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A list to leave out is read with the configuration that names it.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs/eval").mkdir(parents=True)
    nothing = {"schema_version": VERSION, "found": [], "tasks": []}
    (tmp_path / "outputs/eval" / CONTAMINATION).write_text(json.dumps(nothing))
    name, arguments = parsed(line)
    if name == "eval ensemble":
        chosen, _ = ensemble.settings(arguments.overrides, arguments.by == "judge")
        assert set(chosen) == set(ensemble.MODELS)
    elif name.startswith("eval"):
        config = load_config(arguments.overrides)
        assert config.eval.tasks and all(model_choice(*model) for model in config.models.items())
