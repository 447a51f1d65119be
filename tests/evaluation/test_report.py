from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from flamingo_lite.document import Document
from flamingo_lite.errors import FlamingoError
from flamingo_lite.evaluation import plots
from flamingo_lite.evaluation.answers import Generate
from flamingo_lite.evaluation.curves import gates, read_curves
from flamingo_lite.evaluation.findings import findings
from flamingo_lite.evaluation.gallery import choose, gallery
from flamingo_lite.evaluation.grid import EvaluationConfig
from flamingo_lite.evaluation.metrics import GenerationFailure
from flamingo_lite.evaluation.report import evaluation_figures, write_report
from flamingo_lite.evaluation.results import load_results, load_samples
from flamingo_lite.evaluation.runner import evaluate

HOSTILE = "<script>alert(1)</script><img src=http://example.org/x>"


@pytest.fixture(scope="module")
def run(solve: Generate, tmp_path_factory: pytest.TempPathFactory) -> Path:
    def careless(documents: Sequence[Document], max_new_tokens: int) -> list[str | GenerationFailure]:
        return [HOSTILE, *solve(documents, max_new_tokens)[1:-1], GenerationFailure("timed out & gone")]

    directory = tmp_path_factory.mktemp("a run")
    evaluate(careless, EvaluationConfig(queries=12, shots=[0, 4, 8], resamples=100), directory, model="m<i>")
    rows = ["step,loss,learning_rate,samples_per_second,gate/0/attention,gate/0/feed_forward"]
    rows += [f"{step},{3 / step},{step / 1000},90,0.{step},-0.{step}" for step in range(1, 9)]
    (directory / "metrics.csv").write_text("\n".join(rows) + "\n")
    (directory / "config.yaml").write_text(f"note: '{HOSTILE}'\n")
    write_report(directory)
    return directory


@pytest.fixture
def files(run: Path, tmp_path: Path) -> Path:
    for name in ("results.json", "samples.jsonl"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    return tmp_path


def test_the_page_loads_nothing_and_runs_nothing(run: Path) -> None:
    page = (run / "report.html").read_text()
    sources = re.findall(
        r"""(?:src|href)\s*=\s*["']?([^"'\s>]+)""", page.replace("&lt;", "").replace("&#34;", '"')
    )
    assert all(s.startswith("data:image/") for s in sources if not s.startswith("http://example.org/x"))
    assert "<script" not in page
    assert "<img src=http" not in page
    assert "@import" not in page
    assert "url(" not in page
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page


def test_what_a_model_or_a_file_says_is_shown_and_escaped(run: Path) -> None:
    page = (run / "report.html").read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "m&lt;i&gt;" in page
    assert "timed out &amp; gone" in page


def test_every_plot_lies_beside_the_page_and_is_an_image(run: Path) -> None:
    names = {path.name for path in (run / "plots").iterdir()}
    assert names == {"accuracy_over_shots.png", "controls.png", "training.png", "gates.png"}
    for path in (run / "plots").iterdir():
        with PIL.Image.open(path) as image:
            assert image.width > 600


def test_a_report_needs_neither_a_training_log_nor_a_configuration(files: Path) -> None:
    page = write_report(files).read_text()
    assert "<h2>Training</h2>" not in page
    assert {p.name for p in (files / "plots").iterdir()} == {"accuracy_over_shots.png", "controls.png"}


def test_the_same_files_give_the_same_page(run: Path, files: Path) -> None:
    assert write_report(files).read_bytes() == write_report(files).read_bytes()


def test_the_gallery_shows_right_and_wrong_every_condition_and_the_images_that_the_model_saw(
    run: Path,
) -> None:
    samples = load_samples(run)
    shown = gallery(samples)
    standard = [s for s in shown if s.sample["condition"] == "standard"]
    assert {s.sample["condition"] for s in shown} == set(EvaluationConfig().conditions)
    assert {s.sample["split"] for s in standard} == set(EvaluationConfig().splits)
    assert {s.verdict for s in shown} == {"right", "wrong", "failed"}
    for s in shown:
        drawn = [piece for piece in s.pieces if piece.image is not None]
        assert len(drawn) == len(s.sample["image_ids"])
        assert len(s.pieces) == s.sample["shots"] + 1 or s.sample["condition"] == "text_twin"
    twin = next(s for s in shown if s.sample["condition"] == "text_twin")
    assert len(twin.pieces) == 9
    assert re.fullmatch(r"\[\d \? \d] = \d", twin.pieces[0].text)


def test_the_gallery_does_not_depend_on_the_order_of_the_samples(run: Path) -> None:
    samples = load_samples(run)
    assert choose(samples[::-1]) == choose(samples)


def test_a_prompt_that_cannot_be_drawn_again_is_not_replaced_by_a_likeness(run: Path) -> None:
    sample = {**load_samples(run)[0], "prompt_sha": "0" * 64}
    assert gallery([sample])[0].pieces == ()
    assert gallery([{**sample, "task": "foreign"}])[0].pieces == ()


def test_plots_are_figures_that_can_be_written_elsewhere(run: Path, tmp_path: Path) -> None:
    results = load_results(run)
    path = tmp_path / "curve.png"
    plots.accuracy_over_shots(results, path)
    assert path.read_bytes() == (run / "plots" / "accuracy_over_shots.png").read_bytes()
    assert set(evaluation_figures(results)) == {"accuracy_over_shots", "controls"}


def cells(standard: float, control: float, width: float = 0.02) -> list[dict[str, Any]]:
    shape = {"task": "t", "model": "m", "split": "s", "style": "direct", "shots": 8, "n_failed": 0}
    return [
        {**shape, "condition": name, "value": value, "ci95": [value - width, value + width]}
        for name, value in (("standard", standard), ("shuffled_labels", control))
    ]


def test_a_control_that_falls_speaks_for_the_model_and_one_that_stays_against_it() -> None:
    assert [f.kind for f in findings(cells(0.9, 0.4))][-1] == "yes"
    assert [f.kind for f in findings(cells(0.9, 0.89))][-1] == "no"
    assert [f.kind for f in findings(cells(0.4, 0.9))][-1] == "no"


def test_a_training_log_with_gaps_repeats_and_infinities_is_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text(
        "step,loss,gate/1/attention,gate/0/attention\n1,3.0,,0.1\n2,2.0,0.5,\n2,1.5,,\n3,nan,,0.2\n"
    )
    curves = read_curves(path)
    assert curves["loss"].steps == [1, 2]
    assert curves["loss"].values == [3.0, 1.5]
    assert list(gates(curves, "attention")) == [0, 1]
    assert gates(curves, "attention")[0].values == [0.1, 0.2]
    assert gates(curves, "feed_forward") == {}


@pytest.mark.parametrize("text", ["a,b\n1,2\n", "step,loss\n1,high\n", "step,loss\n\xff,1\n"])
def test_a_foreign_training_log_is_one_line(files: Path, text: str) -> None:
    (files / "metrics.csv").write_text(text)
    with pytest.raises(FlamingoError, match=r"metrics\.csv"):
        write_report(files)
    assert not (files / "report.html").exists()


def test_a_running_mean_looks_back_only() -> None:
    assert plots.running_mean([1.0, 3.0, 5.0, 7.0], 2).tolist() == [1.0, 2.0, 4.0, 6.0]


def damaged(change: dict[str, Any]) -> Any:
    def damage(directory: Path) -> None:
        results = json.loads((directory / "results.json").read_text())
        results.update(change)
        (directory / "results.json").write_text(json.dumps(results))

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "results.json").unlink(), "results.json does not exist"),
        (lambda d: (d / "samples.jsonl").unlink(), "samples.jsonl does not exist"),
        (lambda d: (d / "results.json").write_text("{"), "is not JSON"),
        (lambda d: (d / "results.json").write_text("[" * 100_000), "is not JSON"),
        (lambda d: (d / "results.json").write_text("[]"), "has no schema_version"),
        (lambda d: (d / "results.json").write_bytes(b"\xff\xfe"), "cannot be read"),
        (lambda d: (d / "samples.jsonl").write_text('{"task": 1}\n'), "line 1 lacks model"),
        (damaged({"schema_version": 99}), "schema_version 99; this version reads 1"),
        (damaged({"cells": None}), "needs an object 'models' and a list 'cells'"),
        (damaged({"cells": []}), "results without cells"),
        (damaged({"cells": [3]}), "cell 0 is no object"),
        (damaged({"cells": [{"task": "t"}]}), "cell 0 lacks model"),
    ],
)
def test_results_that_are_not_ours_are_one_line_and_leave_no_page(
    files: Path, damage: Any, message: str
) -> None:
    damage(files)
    with pytest.raises(FlamingoError, match=message) as caught:
        write_report(files)
    assert "\n" not in str(caught.value)
    assert not (files / "report.html").exists()


def test_a_page_that_cannot_be_written_leaves_nothing_behind(files: Path) -> None:
    (files / "report.html").mkdir()
    with pytest.raises(FlamingoError, match=r"report\.html cannot be written"):
        write_report(files)
    assert [p.name for p in files.iterdir() if p.name.startswith(".")] == []
