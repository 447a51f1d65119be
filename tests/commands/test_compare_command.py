"""The words of `flamingo-lite compare`, and a comparison from end to end in the small."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flamingo_lite import cli
from flamingo_lite.commands.compare import compose, renderings_of, sorted_words
from flamingo_lite.errors import FlamingoError
from flamingo_lite.evaluation.results import load_results
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.processing import VisionLanguageProcessor
from flamingo_lite.text.conversations import CONVERSATIONS
from flamingo_lite.training import comparison
from flamingo_lite.training.utilization import StepFlops, step_flops


def test_words_are_systems_overrides_of_all_and_overrides_of_one() -> None:
    words = ["flamingo_tiny", "b:llava_tiny", "seed=3", "b/model.fusion.name=prefix", "data.directory=a/b"]
    assert sorted_words(words) == (
        {"flamingo_tiny": "flamingo_tiny", "b": "llava_tiny"},
        ["seed=3", "data.directory=a/b"],
        {"b": ["model.fusion.name=prefix"]},
    )


def test_without_systems_the_preset_s_are_compared_with_as_many_media_tokens() -> None:
    base, systems = compose([])
    assert list(systems) == ["flamingo_tiny", "llava_tiny"]
    assert systems["flamingo_tiny"].model.connector.latents == 32
    assert all(config.data == base.data and config.eval == base.eval for config in systems.values())
    assert {config.name for config in systems.values()} == set(systems)


def test_an_override_of_one_system_leaves_the_others_alone() -> None:
    _, systems = compose(["a:flamingo_tiny", "b:flamingo_tiny", "b/stage.optimizer.learning_rate=0.5"])
    assert systems["b"].stage.optimizer.learning_rate == 0.5
    assert systems["a"].stage.optimizer.learning_rate != 0.5
    # Overrides of the preset's own systems are theirs by name, and not of what goes by another.
    assert systems["a"].model.connector.latents == 16


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["flamingo_tiny"], "needs two systems, got flamingo_tiny"),
        (["flamingo_tiny", "llava_tine"], "did you mean 'llava_tiny'?"),
        (["flamingo_tiny", "flamingo_tiny"], "flamingo_tiny is named twice"),
        (
            ["flamingo_tiny", "llava_tiny", "llava/seed=1"],
            "unknown system 'llava'; did you mean 'llava_tiny'?",
        ),
        (["flamingo_tiny", "llava_tiny", "compare.sample=1"], "did you mean 'compare.samples'?"),
        (["flamingo_tiny", "llava_tiny", "llava_tiny/sead=1"], "unknown option 'sead'; did you mean 'seed'?"),
        (["flamingo_tiny", "l!:llava_tiny"], "no name of a system"),
    ],
)
def test_wrong_words_are_one_line(words: list[str], expected: str) -> None:
    with pytest.raises(FlamingoError) as raised:
        compose(words)
    assert expected in str(raised.value)


@pytest.fixture(scope="module")
def words(
    language_directory: Path, vision_directory: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[str]:
    output = tmp_path_factory.mktemp("comparison") / "all of it"
    return [
        f"output='{output}'",
        f"model.language.name='{language_directory}'",
        f"model.vision.name='{vision_directory}'",
        *["flamingo_tiny/model.connector.depth=1", "flamingo_tiny/model.connector.latents=4"],
        *["data.families={operator_induction:1}", "data.workers=1"],
        *["compare.samples=12", "compare.documents=6", "compare.seeds=[0]", "compare.jobs=1"],
        *["stage.batch_size=2", "trainer.workers=0", "trainer.threads=1", "trainer.accelerator=cpu"],
        *["eval.queries=2", "eval.seeds=[0]", "eval.shots=[0,1]", "eval.control_shots=[1]"],
        *["eval.conditions=[standard]", "eval.max_new_tokens=2", "eval.resamples=20", "wandb.mode=disabled"],
    ]


@pytest.fixture
def arithmetic_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both calls compare the same models, whose steps take the same each time."""
    known: dict[tuple[str, str], StepFlops | None] = {}

    def remembered(model: VisionLanguageModel, precision: str) -> StepFlops | None:
        key = (model.config.to_json_string(), precision)
        if key not in known:
            known[key] = step_flops(model, precision)
        return known[key]

    monkeypatch.setattr(comparison, "step_flops", remembered)


def files(output: Path) -> dict[str, int]:
    found = (path for path in output.rglob("*") if path.is_file())
    return {str(path.relative_to(output)): path.stat().st_mtime_ns for path in found}


def test_a_comparison_from_end_to_end_once_and_again_only_what_has_changed(
    words: list[str], capsys: pytest.CaptureFixture[str], arithmetic_is_counted_once: None
) -> None:
    output = Path(words[0].removeprefix("output=").strip("'"))
    # The second one is tuned on conversations, so each prompt is shown it as turns and as one turn.
    renderings = {"flamingo_tiny": ["interleaved"], "llava_tiny": ["turns", "one_turn"]}
    systems = [*renderings, "llava_tiny/stage.template={conversation:{name:v1,system:''}}"]
    assert cli.main(["compare", *systems, *words]) == 0
    described: dict[str, Any] = json.loads((output / "systems.json").read_text())
    assert described["systems"]["llava_tiny"]["runs"] == ["llava_tiny/seed_0"]
    assert {facts["media_tokens"] for facts in described["systems"].values()} == {4}
    for system, shown in renderings.items():
        assert described["systems"][system]["renderings"] == shown
        for rendering in shown:
            cells = load_results(output / system / "seed_0" / rendering)["cells"]
            assert {cell["rendering"] for cell in cells} == {rendering}
    as_turns, interleaved = (
        described["systems"][name]["cost_of"]["prompts"] for name in ("llava_tiny", "flamingo_tiny")
    )
    assert not set(as_turns) & set(interleaved)
    page = (output / "report.html").read_text()
    assert "llava_tiny, turns" in page and "llava_tiny, one turn" in page
    assert "12 documents for each of 2 systems, under 1 training seed" in page
    made = files(output)

    assert cli.main(["compare", *systems, *words, "eval.queries=3"]) == 0
    changed = {name for name, time in files(output).items() if made.get(name) != time}
    again = json.loads((output / "systems.json").read_text())["systems"]
    assert again["llava_tiny"]["cost"] == described["systems"]["llava_tiny"]["cost"]
    assert "flamingo_tiny/seed_0/interleaved/samples.jsonl" in changed and "report.html" in changed
    assert not [name for name in changed if "/flamingo/" in name or name.startswith("shards/")]

    capsys.readouterr()
    assert cli.main(["report", str(output)]) == 0
    assert capsys.readouterr().out.strip() == str(output / "report.html")
    assert cli.main(["compare", *systems, *words, "compare.samples=13"]) == 2
    assert "holds documents of another recipe (samples differ)" in capsys.readouterr().err


def test_a_model_tuned_on_conversations_is_shown_turns_and_one_turn(
    processor: VisionLanguageProcessor,
) -> None:
    assert renderings_of(processor) == ["interleaved"]
    tuned = copy(processor)
    tuned.template = replace(processor.template, conversation=CONVERSATIONS["v1"])
    assert renderings_of(tuned) == ["turns", "one_turn"]


POOL = """
import multiprocessing, os, time
from concurrent.futures import ProcessPoolExecutor
from flamingo_lite.training.launch import end_with_parent
if __name__ == "__main__":
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), end_with_parent)
    print(pool.submit(os.getpid).result(), flush=True)
    work = pool.submit(time.sleep, 100 if {is_busy} else 0)
    time.sleep(100)
"""


@pytest.mark.parametrize("is_busy", [False, True])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_comparison_that_is_ended_takes_its_runs_with_it(
    is_busy: bool, number: signal.Signals, tmp_path: Path
) -> None:
    script = tmp_path / "pool.py"
    script.write_text(POOL.format(is_busy=is_busy))
    parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None and int(parent.stdout.readline()) != parent.pid
    parent.send_signal(number)
    # All that it started writes into the same pipe, which ends with the last of them.
    assert parent.communicate(timeout=30) == ("", None)
