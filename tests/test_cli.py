"""The command line: what it prints, its exit codes, and quickstart from end to end in the small."""

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import flamingo_lite
from flamingo_lite import cli
from flamingo_lite.commands import quickstart, train
from flamingo_lite.errors import FlamingoError


def fails(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a failing command prints."""
    capsys.readouterr()
    assert cli.main(words) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and "Traceback" not in captured.err
    return captured.err


def test_the_overview_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == cli.main([]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in cli.COMMANDS)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main([*name.split(), "--help"])
    assert left.value.code == 0
    assert f"usage: flamingo-lite {name}" in capsys.readouterr().out


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == cli.main(["version"]) == 0
    assert capsys.readouterr().out.split() == ["flamingo-lite", flamingo_lite.__version__] * 2


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["trian"], "unknown command 'trian'; did you mean 'train'?"),
        (["data"], "'data' needs one more word; the commands are: data make"),
        (["data", "mkae"], "did you mean 'data make'?"),
        (["quickstart", "--frsh"], "did you mean '--fresh'?"),
        (["train", "experiment=quikstart"], "did you mean 'quickstart'?"),
        (["train", "stage.stepz=1", "--cfg", "job"], "did you mean 'stage.steps'?"),
        (["eval", "checkpoint=/nowhere"], "no model directory /nowhere"),
        (["train", "data.directory=/nowhere"], "/nowhere: no shards here"),
        (["report", "/nowhere"], "/nowhere"),
        (["report", "a", "b"], "--to FOLDER"),
        (["export", "checkpoint=a", "output=b"], "export needs format="),
        (["export", "chekpoint=a"], "did you mean 'checkpoint'?"),
        (["export", "checkpoint=/nowhere", "format=idefics", "output=b"], "no model directory /nowhere"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert expected in fails(words, capsys)


def test_debug_brings_the_traceback_back() -> None:
    with pytest.raises(FlamingoError):
        cli.main(["train", "experiment=quikstart", "--debug"])


def raising(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(arguments: object) -> None:
        raise error

    monkeypatch.setattr(train, "run", run)


def test_an_interrupt_is_exit_code_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raising(KeyboardInterrupt(), monkeypatch)
    assert cli.main(["train"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "outputs/x/metrics.csv"),
        RuntimeError("Error while serializing: No space left on device (os error 28)"),
        Exception("No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_one_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raising(error, monkeypatch)
    assert "the disk is full" in fails(["train"], capsys)


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    raising(RuntimeError("shapes do not match"), monkeypatch)
    with pytest.raises(RuntimeError, match="shapes"):
        cli.main(["train"])


def test_cfg_prints_the_composed_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--cfg", "job", "stage.steps=7"]) == 0
    shown = capsys.readouterr().out
    assert "  steps: 7\n" in shown and "output: outputs/quickstart\n" in shown


@pytest.fixture
def small(language_directory: Path, vision_directory: Path) -> list[str]:
    """Overrides under which everything takes seconds."""
    return [
        f"model.language.name='{language_directory}'",
        f"model.vision.name='{vision_directory}'",
        "model.connector.depth=1",
        "model.connector.latents=2",
        "data.samples=12",
        "data.workers=1",
        "data.families={reading:0,scenes:0,naming:0,operator_induction_interleaved:0}",
        "stage.steps=3",
        "stage.batch_size=2",
        "stage.log_every=1",
        "stage.samples=2",
        "trainer.workers=0",
        "trainer.threads=1",
        "trainer.accelerator=cpu",
        "eval.queries=2",
        "eval.seeds=[0]",
        "eval.shots=[0,1]",
        "eval.control_shots=[1]",
        "eval.styles=[direct]",
        "eval.splits=[test]",
        "eval.max_new_tokens=2",
        "eval.resamples=20",
    ]


def files(output: Path) -> dict[str, int]:
    return {
        str(path.relative_to(output)): path.stat().st_mtime_ns
        for path in sorted(output.rglob("*"))
        if path.is_file() and "wandb" not in path.parts
    }


def test_quickstart_makes_everything_once_and_again_only_what_has_changed(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "a run"
    words = ["quickstart", "--output", str(output), *small]
    assert cli.main(words) == 0
    wanted = ["shards", "flamingo", "results.json", "samples.jsonl", "report.html", "plots", "wandb"]
    assert [name for name in wanted if not (output / name).exists()] == []
    shown = capsys.readouterr().out.replace("\n", "")
    assert str(output / "report.html") in shown and "Exact match over shots" in shown
    made = files(output)

    assert cli.main(words) == 0
    assert capsys.readouterr().out.count("already there") == 4
    assert files(output) == made

    assert cli.main([*words, "eval.queries=3"]) == 0
    changed = {name for name, time in files(output).items() if made.get(name) != time}
    assert {"results.json", "report.html"} <= changed
    assert not [name for name in changed if name.startswith(("flamingo/", "shards/"))]

    assert cli.main([*words, "eval.queries=3", "seed=1"]) == 0
    retrained = {name for name, time in files(output).items() if made.get(name) != time}
    assert "flamingo/model.safetensors" in retrained and "shards/shards.json" not in retrained


def test_fresh_deletes_what_quickstart_made_and_nothing_else(tmp_path: Path) -> None:
    for step in quickstart.STEPS:
        for name in step.products:
            (tmp_path / name).mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    quickstart.delete_products(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_the_commands_one_after_the_other(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*small, f"output='{tmp_path / 'run'}'", "wandb.mode=disabled"]
    assert cli.main(["data", "make", *words]) == 0
    assert "has shards already" in fails(["data", "make", *words], capsys)
    first = json.loads((tmp_path / "run" / "shards" / "shards.json").read_text())
    assert cli.main(["data", "make", "--overwrite", "data.workers=2", *words[:5], *words[6:]]) == 0
    assert json.loads((tmp_path / "run" / "shards" / "shards.json").read_text()) == first

    assert cli.main(["train", "-m", "seed=0,1", *words]) == 0
    model = tmp_path / "run" / "seed=1" / "flamingo"
    assert cli.main(["eval", f"checkpoint='{model}'", *small]) == 0
    results: dict[str, Any] = json.loads((model.parent / "results.json").read_text())
    assert results["models"]["flamingo"]["checkpoint_sha"]
    assert cli.main(["report", str(model.parent)]) == 0
    assert (model.parent / "report.html").is_file()

    damaged = tmp_path / "damaged"
    shutil.copytree(model, damaged)
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    assert "damaged" in fails(["eval", f"checkpoint='{damaged}'", *small], capsys)
