"""W&B offline: a run that can be read back, and added to later."""

import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch
import yaml
from rich.console import Console

from flamingo_lite.document import Document, Image, Text
from flamingo_lite.training import tracking
from flamingo_lite.training.samples import split_last_answer, written
from flamingo_lite.training.stages import run_stage
from flamingo_lite.training.tracking import continue_run
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


def test_an_offline_run_holds_losses_gates_samples_plots_and_the_configuration(
    recipe: Recipe, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    run_stage(recipe(output, wandb="offline", steps=3))
    PIL.Image.new("RGB", (8, 8)).save(output / "curve.png")
    # W&B names the folder of an offline run by the second; a report in the same one would fall into it.
    time.sleep(1.1)
    tracker, step = continue_run(output)
    with tracker:
        tracker.log_plots([output / "curve.png"], step)

    found = records(output)
    history = [values(record) for record in found if record.HasField("history")]
    losses = [float(json.loads(row["loss"])) for row in history if "loss" in row]
    assert len(losses) == 3 and all(loss > 0 for loss in losses)
    assert any("gate/0/attention" in row and "samples_per_second" in row for row in history)
    assert any("samples/path" in row for row in history) and any("plots/curve/path" in row for row in history)
    settings = {u.key: u.value_json for r in found if r.HasField("run") for u in r.run.config.update}
    assert json.loads(settings["stage"])["steps"] == 3
    assert len({r.run.run_id for r in found if r.HasField("run")}) == 1
    table = next((output / "wandb").rglob("*.table.json"))
    assert json.loads(table.read_text())["columns"][:3] == ["prompt", "image", "generated"]
    assert list((output / "wandb").rglob("media/images/samples/*.png"))
    assert yaml.safe_load((output / "config.yaml").read_text())["wandb"]["mode"] == "offline"


def test_a_disabled_tracker_writes_nothing(recipe: Recipe, tmp_path: Path) -> None:
    run_stage(recipe(tmp_path / "run", wandb="disabled", steps=1))
    assert not (tmp_path / "run" / "wandb").exists()


def test_the_last_trained_text_is_what_the_model_is_asked_for(image_of: Callable[[int], Image]) -> None:
    document = Document([image_of(0), Text(" =", loss=False), Text(" 8"), Text("!", loss=False)])
    found = split_last_answer(document)
    assert found is not None
    prompt, target = found
    assert (written(prompt), target) == ("<image> =", " 8")
    assert split_last_answer(Document([Text("a", loss=False)])) is None
    assert split_last_answer(Document([Text("a")])) is None


def test_a_server_that_does_not_answer_leaves_the_run_offline_and_it_goes_on(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(tracking, "ANSWER", 1.0)
    said = io.StringIO()
    run_stage(recipe(tmp_path / "run", wandb="online", samples=1), Console(file=said, width=200))
    assert "W&B does not answer" in said.getvalue() and "wandb sync sends it later" in said.getvalue()
    assert len(list((tmp_path / "run" / "wandb").glob("offline-run-*"))) == 1


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
