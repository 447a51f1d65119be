"""Under lmms-eval itself, without a network: our tasks and our models there, as in our own runner, sample by sample."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from flamingo_lite import cli
from flamingo_lite.checkpoints.io import save
from flamingo_lite.evaluation.results import load_results, load_samples

ROOT = Path(__file__).parents[2]
QUICK = ["eval.queries=6", "eval.seeds=[0,1]", "eval.resamples=10", "eval.max_new_tokens=4"]
ASKED = [
    "eval.tasks=[operator_induction,existence]",
    "eval.splits=[test]",
    "eval.styles=[direct,spelled,ranked_per_token]",
    "eval.shots=[0,2]",
    "eval.conditions=[standard,blank_images]",
    "eval.control_styles=[direct]",
    "eval.control_shots=[2]",
    *QUICK,
]


def entry_points(folder: Path) -> Path:
    """What an installation of this checkout tells lmms-eval: its plug-ins, as pyproject.toml has them."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    information = folder / "flamingo_lite_of_this_checkout-0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: flamingo_lite_of_this_checkout\nVersion: 0\n"
    )
    lines = [
        f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in found.items())
        for group, found in declared.items()
    ]
    (information / "entry_points.txt").write_text("".join(lines))
    return folder


def run_lmms_eval(tmp_path: Path, *words: str) -> None:
    """Its own command, which may reach nothing."""
    home = tmp_path / "home"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(entry_points(tmp_path / "plugins"))]),
        "HOME": str(home),
        "HF_HOME": str(home / "hf"),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "lmms_eval", *words]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def logged(folder: Path) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """Its results by task, and its samples."""
    (results,) = folder.rglob("*_results.json")
    samples = {}
    for path in folder.rglob("*_samples_*.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        samples[path.stem.partition("_samples_")[2]] = lines
    return json.loads(results.read_text())["results"], samples


@pytest.mark.slow
def test_a_run_under_lmms_eval_gives_our_runners_answers_and_scores(
    tmp_path: Path, model: Any, processor: Any
) -> None:
    pytest.importorskip("lmms_eval")
    save(model, processor, tmp_path / "model")
    own = [f"checkpoint={tmp_path / 'model'}", f"output={tmp_path / 'own'}", "eval.batch_size=4"]
    assert cli.main(["eval", *own, *ASKED]) == 0
    assert cli.main(["eval", "lmms", "--to", str(tmp_path / "tasks"), *ASKED]) == 0
    run_lmms_eval(
        tmp_path, "--model", "flamingo_lite", "--model_args", f"pretrained={tmp_path / 'model'}", "--batch_size", "4",
        "--include_path", str(tmp_path / "tasks"), "--tasks", "flamingo_lite", "--log_samples",
        "--output_path", str(tmp_path / "theirs"),
    )  # fmt: skip
    results, samples = logged(tmp_path / "theirs")
    cells = load_results(tmp_path / "own")["cells"]
    ours = load_samples(tmp_path / "own")
    compared = 0
    for cell in cells:
        setting = ("task", "split", "style", "condition", "shots")
        name = "_".join(["flamingo_lite", *(str(cell[key]) for key in setting)])
        mine = [s for s in ours if all(s[key] == cell[key] for key in setting)]
        theirs = {(s["doc"]["seed"], s["doc"]["query_id"]): s for s in samples[name]}
        assert results[name][f"{cell['metric']},none"] == pytest.approx(cell["value"], abs=1e-6)
        assert len(theirs) == len(mine) > 0
        for sample in mine:
            other = theirs[sample["seed"], sample["query_id"]]
            assert other["doc"]["prompt_sha"] == sample["prompt_sha"]
            assert other[cell["metric"]] == sample["score"]
            if cell["style"] != "ranked_per_token":
                assert other["filtered_resps"][0].strip() == sample["raw"].strip()
            compared += 1
    assert compared == len(ours)
    assert 0 < sum(s["score"] for s in ours if s["style"] == "ranked_per_token") < len(ours)
