"""W&B offline: a run that can be read back, and added to later; and what happens when a server does not answer."""

import json
import re
import shutil
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch
import wandb

from flamingo_lite.data.make import DataConfig
from flamingo_lite.data.mixing import SourceConfig
from flamingo_lite.evaluation.grid import EvaluationConfig
from flamingo_lite.evaluation.panels import IMAGES, PANELS, SAMPLES
from flamingo_lite.evaluation.results import load_samples
from flamingo_lite.training.callbacks import read_metrics
from flamingo_lite.training.checkpointing import sha256_of
from flamingo_lite.training.dashboard import specification
from flamingo_lite.training.samples import read_samples
from flamingo_lite.training.stages import run_stage
from flamingo_lite.training.tracking import Tracker, WandbConfig, code_version, continue_run
from tests.training.conftest import Recipe


def records(directory: Path) -> list[Any]:
    """All records of a run's offline files, oldest file first, once W&B's process has written the end of each."""
    deadline = time.monotonic() + 60
    while True:
        found = parse(directory)
        files = len(list((directory / "wandb").glob("offline-run-*/run-*.wandb")))
        if sum(record.HasField("exit") for record in found) == files:
            return found
        assert time.monotonic() < deadline, "W&B has not finished writing the run"
        time.sleep(0.2)


def parse(directory: Path) -> list[Any]:
    """What is in the files by now, parsed by W&B's own protocol."""
    from wandb.proto import wandb_internal_pb2

    found = []
    for path in sorted((directory / "wandb").glob("offline-run-*/run-*.wandb")):
        for chunk in chunks(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(chunk)
            found.append(record)
    return found


def values(record: Any) -> dict[str, str]:
    """The JSON of what was logged at one step, by name."""
    return {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}


def chunks(data: bytes) -> list[bytes]:
    """The payloads of a file in LevelDB's log format, after W&B's header of seven bytes."""
    block, at, open_parts, whole = 32768, 7, b"", []
    while at < len(data):
        if block - at % block < 7:
            at += block - at % block
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        open_parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if at > len(data):  # still being written
            break
        if kind in (1, 4):  # a full record, or the last part of one
            whole.append(open_parts)
            open_parts = b""
    return whole


@dataclass
class Tracked:
    """A run with all that can be switched on, and what W&B wrote of it."""

    output: Path
    found: list[Any]

    @property
    def history(self) -> list[dict[str, str]]:
        return [values(record) for record in self.found if record.HasField("history")]

    @property
    def artifacts(self) -> list[Any]:
        return [record.request.log_artifact.artifact for record in self.found if is_logged(record)] + [
            record.artifact for record in self.found if record.HasField("artifact")
        ]


def is_logged(record: Any) -> bool:
    return record.HasField("request") and record.request.HasField("log_artifact")


def damaged(shards: Path, directory: Path) -> Path:
    """The shards without the pixels of one image."""
    shutil.copytree(shards, directory)
    path = directory / "shard-000000.tar"
    data = bytearray(path.read_bytes())
    start = data.find(b"\x89PNG")
    data[start + 8 : start + 60] = bytes(52)
    path.write_bytes(data)
    return directory


@pytest.fixture(scope="module")
def tracked(model_config: dict[str, Any], shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Tracked:
    folder = tmp_path_factory.mktemp("tracked")
    output = folder / "run"
    config = Recipe(model_config, shards)(
        output,
        wandb="offline",
        steps=6,
        batch_size=8,
        log_every=2,
        checkpoint_every=4,
        samples_every=3,
        evaluate_every=4,
        evaluation=EvaluationConfig(
            splits=["test"], styles=["direct"], shots=[0, 1], seeds=[0], conditions=["standard"], queries=2
        ),
        peak_flops=1e12,
    )
    broken = damaged(shards, folder / "broken")
    config.data = DataConfig(
        sources={
            "web pages": SourceConfig(str(shards), weight=1.0),
            "captions": SourceConfig(str(broken), weight=1.0),
        }
    )
    run_stage(config)
    return Tracked(output, records(output))


def test_an_offline_run_holds_every_column_of_the_metrics_file(tracked: Tracked) -> None:
    logged = {name for row in tracked.history for name in row if not name.startswith("_")}
    columns = {name for row in read_metrics(tracked.output / "metrics.csv") for name in row}
    assert columns - {"step"} <= logged


def test_every_column_has_a_panel_and_every_panel_a_column(tracked: Tracked) -> None:
    columns = {name for row in read_metrics(tracked.output / "metrics.csv") for name in row} - {"step"}
    assert {c for c in columns if not any(panel.shows(c) for panel in PANELS)} == set()
    assert {p.title for p in PANELS if not p.found(columns) and p.needs not in ELSEWHERE} == set()


def test_every_metric_that_the_dashboard_names_is_logged(tracked: Tracked) -> None:
    logged = {name for row in tracked.history for name in row}
    elsewhere = {panel.title for panel in PANELS if panel.needs in ELSEWHERE}
    plots = [panel for panel in dashboard_panels() if panel["config"].get("chartTitle") not in elsewhere]
    assert [panel["config"] for panel in plots if not shown(panel, logged)] == []
    assert {SAMPLES + "/path", IMAGES + "/filenames"} <= logged


ELSEWHERE = (
    "fusion.sees=all_previous", "prefix fusion", "a CUDA device", "trainer.precision=16-mixed",
)  # fmt: skip
"""What the run of these tests has not, by how panels say that they need it."""


def dashboard_panels() -> list[dict[str, Any]]:
    """The panels of the workspace that show lines."""
    found = json.loads(specification("", "project"))["workspace"]["spec"]["section"]["panelBankConfig"]
    panels = [panel for section in found["sections"] for panel in section["panels"]]
    return [panel for panel in panels if panel["viewType"] == "Run History Line Plot"]


def shown(panel: dict[str, Any], logged: set[str]) -> bool:
    config = panel["config"]
    if config.get("useMetricRegex"):
        return any(re.search(config["metricRegex"], name) for name in logged)
    return set(config["metrics"]) <= logged


def test_losses_and_rates_are_told_by_source_and_by_group(tracked: Tracked) -> None:
    row = read_metrics(tracked.output / "metrics.csv")[0]
    assert row["loss/web_pages"] > 0 and row["loss/captions"] > 0
    assert {name for name in row if name.startswith("learning_rate/")} == {
        f"learning_rate/{group}" for group in ("matrices", "vectors", "gates")
    }


def test_figures_at_one_step_are_one_row(tracked: Tracked) -> None:
    steps = [int(row["_step"]) for row in tracked.history]
    assert steps == [2, 3, 4, 6]
    assert [row["step"] for row in read_metrics(tracked.output / "metrics.csv")] == steps


def test_few_shot_curves_are_told_during_training_and_their_files_stay(tracked: Tracked) -> None:
    column = "few_shot/operator_induction/test/direct/standard/1_shots"
    rows = read_metrics(tracked.output / "metrics.csv")
    assert [row["step"] for row in rows if column in row] == [4, 6]
    assert len(load_samples(tracked.output / "few_shot" / "step-00000004")) == 4


def test_the_table_of_samples_shows_images_and_grows_with_time(tracked: Tracked) -> None:
    assert [int(row["_step"]) for row in tracked.history if "samples/path" in row] == [3, 6]
    tables = [json.loads(path.read_text()) for path in (tracked.output / "wandb").rglob("*.table.json")]
    largest = max(tables, key=lambda table: len(table["data"]))
    assert largest["columns"] == ["step", "prompt", "image", "generated", "target", "correct"]
    assert [row[0] for row in largest["data"]] == [3, 6, 3, 6]
    tables = [artifact for artifact in tracked.artifacts if artifact.type == "run_table"]
    for table in tables:
        pictures = [entry.path for entry in table.manifest.contents if entry.path.endswith(".png")]
        assert len(pictures) == 2
    assert len(read_samples(tracked.output / "generations.jsonl")) == 4


def test_the_run_knows_its_settings_code_and_experiment(tracked: Tracked) -> None:
    run = next(record.run for record in tracked.found if record.HasField("run"))
    settings = {update.key: json.loads(update.value_json) for update in run.config.update}
    assert settings["stage"]["steps"] == 6
    assert settings["code"] == code_version()
    assert (run.run_group, run.job_type) == ("test", "train")


def test_shards_go_in_and_checkpoints_and_a_model_come_out(tracked: Tracked) -> None:
    found = {(a.type, a.name, a.use_after_commit) for a in tracked.artifacts}
    run_id = (tracked.output / "wandb" / "run_id").read_text()
    # The table of samples is an artifact too, made by W&B itself.
    assert {artifact for artifact in found if artifact[0] != "run_table"} == {
        ("dataset", "data-web_pages", True),
        ("dataset", "data-captions", True),
        ("checkpoint", f"checkpoint-{run_id}", False),
        ("model", f"model-{run_id}", False),
    }


def test_a_checkpoints_artifact_is_what_its_record_says_and_not_the_file(tracked: Tracked) -> None:
    checkpoints = [a for a in tracked.artifacts if a.type == "checkpoint"]
    told = [json.loads(a.metadata) for a in checkpoints]
    assert [about["step"] for about in told] == [4, 6]
    assert told[-1]["sha256"] == sha256_of(Path(told[-1]["location"]))
    sizes = [entry.size for a in checkpoints for entry in a.manifest.contents]
    assert max(sizes) < 10_000 < told[-1]["bytes"]


def test_a_report_adds_its_plots_to_the_run_of_the_training(recipe: Recipe, tmp_path: Path) -> None:
    output = tmp_path / "run"
    run_stage(recipe(output, wandb="offline", steps=1, samples=0))
    PIL.Image.new("RGB", (8, 8)).save(output / "curve.png")
    # W&B names the folder of an offline run by the second; a report in the same one would fall into it.
    time.sleep(1.1)
    tracker, step = continue_run(output)
    with tracker:
        tracker.log_plots([output / "curve.png"], step)
    found = records(output)
    assert any("plots/curve/path" in values(record) for record in found if record.HasField("history"))
    assert len({r.run.run_id for r in found if r.HasField("run")}) == 1


def test_a_report_comes_after_the_last_step_of_a_run_that_is_counted_in_epochs(
    recipe: Recipe, tmp_path: Path
) -> None:
    run_stage(recipe(tmp_path / "run", wandb="offline", steps=1, epochs=1, samples=0))
    tracker, step = continue_run(tmp_path / "run")
    tracker.close()
    assert step == 6 + 1  # 23 documents in batches of 4


@pytest.fixture
def unread_environment() -> Iterator[None]:
    """W&B reads the environment once in a process: here anew, and anew afterwards."""
    wandb.teardown()
    yield
    wandb.teardown()


def test_a_server_that_does_not_answer_leaves_an_offline_run_and_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unread_environment: None
) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        said: list[str] = []
        config = WandbConfig(mode="online", timeout_seconds=1.0)
        with Tracker(config, tmp_path, {"seed": 0}, say=said.append) as tracker:
            tracker.log({"step": 1, "loss": 2.0})
    assert len(said) == 1 and said[0].startswith("W&B does not answer (") and "\n" not in said[0]
    assert [values(r)["loss"] for r in records(tmp_path) if r.HasField("history")] == ["2"]


def test_a_disabled_tracker_writes_nothing(recipe: Recipe, tmp_path: Path) -> None:
    run_stage(recipe(tmp_path / "run", wandb="disabled", steps=1))
    assert not (tmp_path / "run" / "wandb").exists()


def test_a_resumed_run_goes_on_with_the_wandb_run_of_its_checkpoint(recipe: Recipe, tmp_path: Path) -> None:
    run_stage(recipe(tmp_path / "run", wandb="offline", samples=1))
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "step-00000006.ckpt", weights_only=True)
    path = tmp_path / "run" / "wandb" / "run_id"
    assert checkpoint["wandb_run"] == path.read_text()
    path.unlink()
    summary = tmp_path / "run" / "training.json"
    summary.write_text(summary.read_text().replace('"finished": true', '"finished": false'))
    run_stage(recipe(tmp_path / "run", wandb="offline", samples=1))
    assert path.read_text() == checkpoint["wandb_run"]
