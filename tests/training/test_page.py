"""The page of a training, from files alone."""

import re
from pathlib import Path

import PIL.Image
import pytest

from flamingo_lite.cli import main
from flamingo_lite.evaluation.curves import Series
from flamingo_lite.evaluation.panels import PANELS, SECTIONS, column_part
from flamingo_lite.evaluation.training_plots import line_names, section_figure
from flamingo_lite.training.page import evenly, write_page
from flamingo_lite.training.samples import Sample, SampleHistory

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that was stopped: rows that lack columns, samples, no evaluation."""
    columns = [
        "step",
        "loss",
        "loss/web",
        "loss/captions",
        "gate/0/attention",
        "skipped_steps",
        "rejects/corrupt",
    ]
    rows = [f"{step},{3 / step},{4 / step},,0.{step},0," for step in range(1, 5)] + ["5,nan,1,2,0.5,1,3"]
    (tmp_path / "metrics.csv").write_text("\n".join([",".join(columns), *rows]) + "\n")
    (tmp_path / "config.yaml").write_text(f"note: '{HOSTILE}'\n")
    (tmp_path / "samples").mkdir()
    PIL.Image.new("RGB", (8, 8), "red").save(tmp_path / "samples" / "0.png")
    SampleHistory(tmp_path).add([Sample(step, 0, "<image> =", HOSTILE, " 8") for step in (2, 4)], [])
    return tmp_path


def test_the_page_has_a_section_for_what_was_logged_and_none_for_what_was_not(run: Path) -> None:
    page = write_page(run).read_text()
    found = re.findall(r"<h2>(.*?)</h2>", page)
    assert found == ["Loss", "Images", "Data", "Samples over time"]
    assert "loss by source" in page and "spread of attention" not in page


def test_the_page_loads_nothing_and_shows_what_a_model_wrote_as_text(run: Path) -> None:
    page = write_page(run).read_text()
    assert "<script" not in page and "&lt;script&gt;alert(1)" in page
    sources = re.findall(r'src="([^"]*)"', page)
    assert sources and all(source.startswith("data:image/png;base64,") for source in sources)


def test_report_writes_it_where_nothing_was_evaluated(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out.strip() == str(run / "training.html")


def test_a_run_without_rows_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "metrics.csv").write_text("step,loss\n")
    assert main(["report", str(tmp_path)]) == 2
    assert "has no rows yet; expected those of a training" in capsys.readouterr().err


def test_lines_are_named_by_what_tells_them_apart() -> None:
    assert line_names(["gate/0/attention", "gate/11/attention"]) == ["0", "11"]
    assert line_names(["learning_rate", "learning_rate/new_rows"]) == ["all", "new rows"]
    assert line_names(
        ["few_shot/t/test/direct/standard/0_shots", "few_shot/t/test/direct/standard/4_shots"]
    ) == [
        "0 shots",
        "4 shots",
    ]


def test_forty_layers_have_forty_lines_and_two_names() -> None:
    curves = {f"gate/{layer}/attention": Series([1, 2], [0.0, 0.1]) for layer in range(40)}
    figure = section_figure(SECTIONS["Images"], curves)
    assert figure is not None
    axis = figure.axes[0]
    assert len(axis.lines) == 40
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["0", "39"]


def test_a_loss_of_zero_does_not_go_on_a_logarithmic_axis() -> None:
    figure = section_figure(SECTIONS["Loss"], {"loss": Series([1, 2], [1.0, 0.0])})
    assert figure is not None and figure.axes[0].get_yscale() == "linear"


def test_the_first_and_the_last_of_many_samples_are_shown() -> None:
    samples = [Sample(step, 0, "", "", "") for step in range(100)]
    steps = [sample.step for sample in evenly(samples, 12)]
    assert (steps[0], steps[-1], len(steps)) == (0, 99, 12)


def test_no_column_has_two_panels() -> None:
    columns = [column.replace("*", "x") for panel in PANELS for column in panel.columns]
    assert all(sum(panel.shows(column) for panel in PANELS) == 1 for column in columns)


@pytest.mark.parametrize(
    ("name", "part"), [("web pages", "web_pages"), ("*.new_rows full", "new_rows_full"), ("日本", "unnamed")]
)
def test_names_become_parts_of_columns_that_wandb_can_sort_by(name: str, part: str) -> None:
    assert column_part(name) == part
