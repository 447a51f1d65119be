"""`flamingo-lite eval` on tasks from files, with a model of random weights: generated, ranked, and what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

import flamingo_lite as fl
from flamingo_lite import cli
from flamingo_lite.evaluation.results import load_results, load_samples
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.processing import VisionLanguageProcessor
from tests.evaluation.file_tasks import make_files


@pytest.fixture
def checkpoint(tmp_path: Path, model: VisionLanguageModel, processor: VisionLanguageProcessor) -> Path:
    fl.save(model, processor, tmp_path / "model")
    return tmp_path / "model"


def overrides(task: str, root: Path) -> list[str]:
    named = [f"eval.files.{task}.{name}={path}" for name, path in make_files(task, root).items()]
    quick = [
        "eval.shots=[1]",
        "eval.seeds=[0]",
        "eval.control_shots=[1]",
        "eval.resamples=10",
        "eval.max_new_tokens=3",
    ]
    return [f"eval.tasks=[{task}]", "eval.splits=[test]", *named, *quick]


@pytest.mark.parametrize(
    ("task", "style", "figure"),
    [("pope", "openflamingo", "f1"), ("hateful_memes", "openflamingo", "roc_auc")],
)
def test_a_task_is_evaluated_from_its_files(
    tmp_path: Path, checkpoint: Path, task: str, style: str, figure: str
) -> None:
    chosen = [
        f"eval.styles=[{style}]",
        f"eval.control_styles=[{style}]",
        "eval.conditions=[standard,blank_images]",
    ]
    words = [
        "eval",
        f"checkpoint={checkpoint}",
        f"output={tmp_path / 'out'}",
        *overrides(task, tmp_path),
        *chosen,
    ]
    assert cli.main(words) == 0
    cells = load_results(tmp_path / "out")["cells"]
    assert [(cell["condition"], cell["metric"]) for cell in cells] == [
        ("standard", "accuracy"),
        ("blank_images", "accuracy"),
    ]
    assert all(figure in cell["figures"] for cell in cells)
    assert all(cell["n"] == cell["n_queries"] > 0 and cell["n_failed"] == 0 for cell in cells)
    assert {sample["task"] for sample in load_samples(tmp_path / "out")} == {task}


def test_files_that_are_not_there_are_one_line(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word.replace("questions.json", "nowhere.json") for word in overrides("pope", tmp_path)]
    chosen = ["eval.styles=[openflamingo]", "eval.control_styles=[openflamingo]"]
    assert cli.main(["eval", f"checkpoint={checkpoint}", *words, *chosen]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "eval.files.pope.questions is " in line and "nowhere.json, which does not exist" in line
