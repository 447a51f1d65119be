"""Several runs on one page: what is pooled, what is refused, and that tables say what the cells say."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flamingo_lite.document import Document
from flamingo_lite.errors import FlamingoError
from flamingo_lite.evaluation.comparison_report import comparison_findings, write_comparison
from flamingo_lite.evaluation.grid import EvaluationConfig
from flamingo_lite.evaluation.runner import Generate, evaluate
from flamingo_lite.evaluation.side_by_side import side_by_side, worst_mistakes
from flamingo_lite.evaluation.systems import System, paired, read_runs, read_system
from flamingo_lite.evaluation.tables import Table, accuracy_table, differences_table, escape_latex

SMALL = EvaluationConfig(
    splits=["test"],
    styles=["direct"],
    shots=[0, 2],
    control_shots=[2],
    conditions=["standard", "blank_images"],
    seeds=[0, 1],
    queries=10,
    resamples=50,
)


@pytest.fixture(scope="module")
def runs(solve: Generate, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reader that knows the answers, and one that is wrong on all but every third prompt; two training seeds each."""

    def careless(documents: Sequence[Document], max_new_tokens: int) -> list[str]:
        right = solve(documents, max_new_tokens)
        return [str(text) if i % 3 == 0 else " 99" for i, text in enumerate(right)]

    directory = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        evaluate(solve, SMALL, directory / f"good_{seed}", model="good")
        evaluate(careless, SMALL, directory / f"poor_{seed}", model="poor<i>")
    return directory


@pytest.fixture(scope="module")
def systems(runs: Path) -> list[System]:
    return [
        read_system(name, [runs / f"{name}_{seed}" for seed in (0, 1)], (0, 1), {"parameters": 1234567})
        for name in ("good", "poor")
    ]


def test_runs_under_several_training_seeds_are_one_system(systems: list[System]) -> None:
    good = systems[0]
    cell = next(c for c in good.cells if c["condition"] == "standard" and c["shots"] == 2)
    assert cell["n"] == 2 * 2 * SMALL.queries
    assert cell["clustered_by"] == "query and training seed"
    assert (
        good.by_training_seed[("operator_induction", "test", "direct", "standard", 2)] == [cell["value"]] * 2
    )


def test_the_better_of_two_is_found_and_said(systems: list[System]) -> None:
    found = comparison_findings(paired(systems, 100))
    assert [f.kind for f in found] == ["yes"]
    assert "good is better than poor (+" in found[0].text
    table = differences_table(paired(systems, 100))
    assert table is not None
    assert any(cell.startswith("−") and cell.endswith("*") for row in table.rows for cell in row)


def test_the_page_names_everyone_loads_nothing_and_comes_with_its_tables(
    systems: list[System], runs: Path, tmp_path: Path
) -> None:
    hostile = [read_system("a<script>", [runs / "good_0", runs / "good_1"], (0, 1)), systems[1]]
    page = write_comparison(hostile, tmp_path, resamples=50).read_text()
    assert "a&lt;script&gt;" in page and "<script" not in page
    assert set(re.findall(r'src="(\S{11})', page)) == {"data:image/"}
    names = ("accuracy", "controls", "differences", "systems")
    assert {p.name for p in (tmp_path / "tables").iterdir()} == {
        f"{n}.{e}" for n in names for e in ("md", "tex")
    }
    assert {p.name for p in (tmp_path / "plots").iterdir()} == {
        "scores_over_shots-operator_induction.png",
        "controls-operator_induction.png",
    }


def test_runs_of_one_model_name_go_by_their_folders(runs: Path) -> None:
    assert [s.name for s in read_runs([runs / "good_0", runs / "good_1"])] == ["good_0", "good_1"]
    assert [s.name for s in read_runs([runs / "good_0", runs / "poor_1"])] == ["good", "poor<i>"]


def test_runs_whose_prompts_differ_are_refused(runs: Path, tmp_path: Path) -> None:
    lines = (runs / "good_1" / "samples.jsonl").read_text()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "results.json").write_bytes((runs / "good_1" / "results.json").read_bytes())
    (tmp_path / "other" / "samples.jsonl").write_text(re.sub('"prompt_sha":"..', '"prompt_sha":"zz', lines))
    with pytest.raises(FlamingoError, match="prompts differ between the runs"):
        write_comparison(read_runs([runs / "good_0", tmp_path / "other"]), tmp_path)


def test_a_run_given_twice_is_refused(runs: Path) -> None:
    with pytest.raises(FlamingoError, match="given twice"):
        read_runs([runs / "good_0", runs / "good_0" / ".." / "good_0"])


def test_answers_side_by_side_are_of_one_prompt_and_of_each_kind(systems: list[System]) -> None:
    shown = side_by_side(systems)
    assert [one.kind for one in shown] == ["all are right", "only good is right"]
    for one in shown:
        assert len({answer["prompt_sha"] for _, _, answer in one.answers}) == 1
        assert len([piece for piece in one.pieces if piece.image]) == len(one.sample["image_ids"])


def test_the_worst_mistakes_are_wrong_and_ordered_by_how_often(systems: list[System]) -> None:
    found = worst_mistakes(systems[1].samples, most=4)
    assert len(found) == 4
    assert all(one.sample["score"] == 0.0 and one.sample["shots"] == 2 for one in found)
    times = [int(one.kind.split()[1]) for one in found]
    assert times == sorted(times, reverse=True)
    assert worst_mistakes(s for s in systems[0].samples if s["score"] == 1.0) == []


def test_the_table_of_scores_has_a_row_for_each_system(systems: list[System]) -> None:
    table = accuracy_table(systems)
    assert [row[4] for row in table.rows] == ["good", "poor"]
    assert table.header[table.texts :] == ["0", "2"]
    best = next(c for c in systems[0].cells if c["condition"] == "standard" and c["shots"] == 2)
    assert table.rows[0][-1].startswith(f"{100 * best['value']:g}% [")


@settings(deadline=None)
@given(st.lists(st.lists(st.text(max_size=6), min_size=2, max_size=2), max_size=3))
def test_a_latex_table_has_its_cells_whatever_they_hold(rows: list[list[str]]) -> None:
    cleaned = [["".join(cell.split()) for cell in row] for row in rows]
    written = Table("t", "title", ["a", "b"], cleaned, 1).latex()
    body = written.split("\\midrule\n")[1].split("\\bottomrule")[0].splitlines()
    assert len(body) == len(cleaned)
    for line in body:
        assert len(re.findall(r"(?<!\\)&", line)) == 1
        assert not re.findall(
            r"(?<!\\)[%$#_]", line.replace("$\\pm$", "").replace("$\\times$", "").replace("$-$", "")
        )


def test_latex_escapes_are_those_of_the_manual() -> None:
    assert escape_latex(r"5% of a_b & {c}\~^") == (
        r"5\% of a\_b \& \{c\}\textbackslash{}\textasciitilde{}\textasciicircum{}"
    )
