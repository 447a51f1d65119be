"""The dashboard as a file, where there is no login."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from flamingo_lite.cli import main
from flamingo_lite.evaluation.panels import PANELS, SECTIONS
from flamingo_lite.training.dashboard import metric_regex


@pytest.fixture
def written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], str]:
    path = tmp_path / "dashboard.json"
    assert main(["dashboard", "--project", "birds", "--entity", "lab", "--output", str(path)]) == 0
    return json.loads(path.read_text()), capsys.readouterr().out


def test_one_line_says_how_to_push_it(written: tuple[dict[str, Any], str]) -> None:
    said = written[1].splitlines()
    assert len(said) == 1
    assert "wandb login, then flamingo-lite dashboard --project birds --entity lab" in said[0]


def test_the_workspace_has_every_panel_in_its_section(written: tuple[dict[str, Any], str]) -> None:
    workspace = written[0]["workspace"]
    assert (workspace["entity"], workspace["project"]) == ("lab", "birds")
    sections = workspace["spec"]["section"]["panelBankConfig"]["sections"]
    titles = {s["name"]: [panel["config"].get("chartTitle") for panel in s["panels"]] for s in sections}
    expected = {name: [panel.title for panel in panels] for name, panels in SECTIONS.items()}
    assert titles | expected == titles
    assert [panel["viewType"] for panel in sections[-1]["panels"]] == ["Weave", "Media Browser"]


def test_the_report_says_what_each_figure_is(written: tuple[dict[str, Any], str]) -> None:
    text = json.dumps(written[0]["report"])
    assert all(panel.about in text for panel in PANELS)


def test_a_pattern_matches_its_columns_and_no_others() -> None:
    pattern = re.compile(metric_regex(["learning_rate", "learning_rate/*"]))
    assert pattern.search("learning_rate") and pattern.search("learning_rate/gates")
    assert not pattern.search("my_learning_rate") and not pattern.search("learning_rates")


def test_what_it_does_not_take_is_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dashboard", "extra"]) == 2
    assert "dashboard takes --project, --entity and --output, got also extra" in capsys.readouterr().err
