"""Every prediction of an evaluation, beside the images of its prompt, in W&B's own files."""

import io
import json
from collections.abc import Sequence
from pathlib import Path

import PIL.Image

from flamingo_lite.document import Document
from flamingo_lite.evaluation.grid import EvaluationConfig
from flamingo_lite.evaluation.results import load_samples
from flamingo_lite.evaluation.runner import evaluate
from flamingo_lite.training.tracking import PREDICTION, Tracker, WandbConfig


def test_each_prediction_is_a_row_with_the_images_that_the_model_saw(tmp_path: Path) -> None:
    def always(documents: Sequence[Document], max_new_tokens: int) -> list[str]:
        return [" 7"] * len(documents)

    config = EvaluationConfig(
        splits=["test"], styles=["direct"], shots=[0, 1], control_shots=[1], seeds=[0], queries=2,
        conditions=["standard", "blank_images"], resamples=20,
    )  # fmt: skip
    evaluate(always, config, tmp_path / "run")
    samples = load_samples(tmp_path / "run")
    with Tracker(WandbConfig(), tmp_path) as tracker:
        tracker.log_predictions(samples, None, 1)
    files = list((tmp_path / "wandb").glob("offline-run-*/files/media/table/predictions/**/*.table.json"))
    assert len(files) == 2
    rows = {tuple(row[:-1]): row[-1] for path in files for row in json.loads(path.read_text())["data"]}
    assert set(rows) == {tuple(sample.get(key) for key in PREDICTION) for sample in samples}
    # W&B stages a table's pictures as files of its artifacts, each of them once.
    staged = [
        path.read_bytes() for path in (tmp_path / "wandb" / "data").rglob("staging/*") if path.is_file()
    ]
    pictures = {data for data in staged if data.startswith(b"\x89PNG")}
    prompts = {tuple(sample["image_ids"]) for sample in samples}
    assert len(pictures) == len(prompts)
    assert max(PIL.Image.open(io.BytesIO(data)).width for data in pictures) > 2 * 64
