"""The presets of tasks from files: they name every file, and need no more than the folder that holds the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import flamingo_lite as fl
from flamingo_lite import cli
from flamingo_lite.config import load_config
from flamingo_lite.evaluation.results import load_results
from flamingo_lite.evaluation.tasks import TASKS
from tests.evaluation.file_tasks import make_files


@pytest.mark.parametrize("preset", ["vqa", "vl_icl"])
def test_a_preset_names_every_file_of_its_tasks_in_one_folder(preset: str) -> None:
    chosen = load_config([f"eval={preset}", "eval.data=/somewhere"]).eval
    assert set(chosen.files) == set(chosen.tasks)
    for task, named in chosen.files.items():
        assert set(named) == set(TASKS[task].files)
        assert all(path.startswith("/somewhere/") for path in named.values())


def test_a_preset_runs_on_its_folder(tmp_path: Path, model: Any, processor: Any) -> None:
    fl.save(model, processor, tmp_path / "model")
    make_files("vl_icl_clevr", tmp_path / "data")
    quick = ["eval.tasks=[vl_icl_clevr]", "eval.shots=[1]", "eval.seeds=[0]", "eval.resamples=10"]
    quick += ["eval.conditions=[standard]", "eval.max_new_tokens=2"]
    words = ["eval", f"checkpoint={tmp_path / 'model'}", f"output={tmp_path / 'out'}", "eval=vl_icl"]
    assert cli.main([*words, f"eval.data={tmp_path / 'data'}", *quick]) == 0
    (cell,) = load_results(tmp_path / "out")["cells"]
    assert (cell["task"], cell["style"], cell["n_failed"]) == ("vl_icl_clevr", "official", 0)


def test_a_folder_without_the_data_is_one_line(
    tmp_path: Path, capsys: Any, model: Any, processor: Any
) -> None:
    fl.save(model, processor, tmp_path / "model")
    words = ["eval", f"checkpoint={tmp_path / 'model'}", f"output={tmp_path / 'out'}", "eval=vqa"]
    assert cli.main([*words, f"eval.data={tmp_path}", "eval.tasks=[gqa]"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("flamingo-lite:")]
    assert f"eval.files.gqa.images is {tmp_path}/gqa/images, which does not exist" in line
