"""An evaluation by one process or several, in batches of any size, ended in the middle: the same bytes."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from flamingo_lite.checkpoints.io import load
from flamingo_lite.document import Document
from flamingo_lite.errors import FlamingoError
from flamingo_lite.evaluation import journal
from flamingo_lite.evaluation.answering import ModelAnswers
from flamingo_lite.evaluation.answers import Generate, Written
from flamingo_lite.evaluation.grid import EvaluationConfig
from flamingo_lite.evaluation.metrics import GenerationFailure
from flamingo_lite.evaluation.results import failure_warning, load_samples
from flamingo_lite.evaluation.runner import Subject, evaluate, evaluate_all
from flamingo_lite.training.ranks import join, started_ranks
from flamingo_lite.training.settings import TrainerConfig
from tests.training import ranks_helper

SHA = "0" * 64


def asked(**changes: Any) -> EvaluationConfig:
    settings: dict[str, Any] = {
        "queries": 6, "shots": [0, 1, 3], "seeds": [0, 1], "control_shots": [3], "splits": ["test"],
        "styles": ["direct", "spelled"], "conditions": ["standard", "mismatched_images"], "max_new_tokens": 3,
        "resamples": 10, "batch_size": 4,
    }  # fmt: skip
    return EvaluationConfig(**{**settings, **changes})


def subject(checkpoint: Path, batch_size: int = 4) -> Subject:
    def answering() -> Any:
        answers = ModelAnswers(*load(checkpoint), batch_size=batch_size)
        return answers.generate, answers.rank

    return Subject("flamingo", answering, SHA)


def evaluate_on_ranks(checkpoint: Path, output: Path, batch_size: int, queries: int) -> None:
    """What one process does."""
    config = TrainerConfig(accelerator="cpu")
    ranks = started_ranks(config)
    assert ranks is not None
    join(ranks, config)
    chosen = asked(batch_size=batch_size, queries=queries)
    evaluate_all([subject(checkpoint, batch_size)], chosen, output, ranks=ranks, resume=True)


@pytest.fixture(scope="module")
def reference(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("reference")
    evaluate_all([subject(checkpoint)], asked(), directory)
    return directory


def samples(directory: Path) -> bytes:
    return (directory / "samples.jsonl").read_bytes()


@pytest.mark.parametrize("processes", [2, 4])
def test_several_processes_write_the_same_bytes(
    checkpoint: Path, reference: Path, tmp_path: Path, processes: int
) -> None:
    ranks_helper.run(processes, evaluate_on_ranks, checkpoint, tmp_path, 4, 6)
    assert samples(tmp_path) == samples(reference)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.json", "samples.jsonl"]


@pytest.mark.parametrize("batch_size", [1, 16])
def test_batches_of_any_size_write_the_same_bytes(
    checkpoint: Path, reference: Path, tmp_path: Path, batch_size: int
) -> None:
    evaluate_all([subject(checkpoint, batch_size)], asked(batch_size=batch_size), tmp_path)
    assert samples(tmp_path) == samples(reference)


def test_every_image_is_encoded_once_over_the_whole_evaluation(checkpoint: Path) -> None:
    answers = ModelAnswers(*load(checkpoint), batch_size=4)
    encoded = 0

    def count(module: Any, inputs: Any) -> None:
        nonlocal encoded
        encoded += len(inputs[0])

    answers.model.vision.register_forward_pre_hook(count)
    shown: set[str] = set()

    def generate(documents: Sequence[Document], max_new_tokens: int) -> Any:
        shown.update(image.id for document in documents for image in document.images)
        # Ties would be asked again with everything computed anew.
        return [
            each.text if isinstance(each, Written) else each
            for each in answers.generate(documents, max_new_tokens)
        ]

    evaluate(generate, asked(), None)
    assert encoded == len(shown) > 20


def test_a_killed_evaluation_goes_on_to_the_same_bytes(checkpoint: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    evaluate_all([subject(checkpoint, 1)], asked(batch_size=1, queries=6), whole)
    (process,) = ranks_helper.start(1, evaluate_on_ranks, checkpoint, killed, 1, 6)
    answers = killed / journal.FOLDER / "0000.jsonl"
    until = time.monotonic() + 60
    while not (answers.exists() and answers.read_bytes().count(b"\n") > 12):
        assert time.monotonic() < until and process.is_alive()
        time.sleep(0.005)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not (killed / "samples.jsonl").exists()
    before = journal.read(killed)
    assert 0 < len(before) < 6 * 18
    evaluate_all([subject(checkpoint, 1)], asked(batch_size=1, queries=6), killed, resume=True)
    assert samples(killed) == samples(whole)


# ---- with a rule for a model


def counting(solve: Generate, stop_at: int | None = None) -> tuple[Generate, list[int]]:
    """`solve`, and how many documents each call had; it is interrupted once `stop_at` have been answered."""
    calls: list[int] = []

    def generate(documents: Sequence[Document], max_new_tokens: int) -> Any:
        if stop_at is not None and sum(calls) >= stop_at:
            raise KeyboardInterrupt
        calls.append(len(documents))
        return solve(documents, max_new_tokens)

    return generate, calls


def rule(generate: Generate, name: str = "rule", sha: str | None = SHA) -> Subject:
    return Subject(name, lambda: (generate, None), sha)


def interrupted(solve: Generate, directory: Path, config: EvaluationConfig, at: int) -> int:
    """How many predictions were made before the interruption."""
    generate, calls = counting(solve, at)
    with pytest.raises(KeyboardInterrupt):
        evaluate_all([rule(generate)], config, directory, resume=True)
    return sum(calls)


def test_what_was_answered_is_not_asked_again(solve: Generate, tmp_path: Path) -> None:
    made = interrupted(solve, tmp_path / "a", asked(), 40)
    generate, calls = counting(solve)
    evaluate_all([rule(generate)], asked(), tmp_path / "a", resume=True)
    evaluate_all([rule(solve)], asked(), tmp_path / "b", resume=True)
    assert made + sum(calls) == len(load_samples(tmp_path / "b"))
    assert samples(tmp_path / "a") == samples(tmp_path / "b")


def test_a_line_cut_off_in_the_middle_is_asked_again(solve: Generate, tmp_path: Path) -> None:
    interrupted(solve, tmp_path / "a", asked(), 40)
    answers = tmp_path / "a" / journal.FOLDER / "0000.jsonl"
    answers.write_bytes(answers.read_bytes()[:-20])
    known = len(journal.read(tmp_path / "a"))
    made = interrupted(solve, tmp_path / "a", asked(), 16)
    assert len(journal.read(tmp_path / "a")) == known + made
    evaluate_all([rule(solve)], asked(), tmp_path / "a", resume=True)
    evaluate_all([rule(solve)], asked(), tmp_path / "b")
    assert samples(tmp_path / "a") == samples(tmp_path / "b")


def test_an_answer_to_another_prompt_is_not_taken(solve: Generate, tmp_path: Path) -> None:
    interrupted(solve, tmp_path, asked(), 40)
    answers = tmp_path / journal.FOLDER / "0000.jsonl"
    lines = [json.loads(line) for line in answers.read_text().splitlines() if line]
    lines[0] |= {"prompt_sha": "1" * 64, "raw": "of another prompt"}
    answers.write_text("".join(json.dumps(line) + "\n" for line in lines))
    evaluate_all([rule(solve)], asked(), tmp_path, resume=True)
    assert "of another prompt" not in {sample["raw"] for sample in load_samples(tmp_path)}


def test_a_finished_evaluation_is_not_done_again(solve: Generate, tmp_path: Path) -> None:
    first = evaluate_all([rule(solve)], asked(), tmp_path, resume=True)
    generate, calls = counting(solve)
    again = evaluate_all([rule(generate)], asked(batch_size=7), tmp_path, resume=True)
    assert calls == [] and again["cells"] == json.loads(json.dumps(first["cells"]))


@pytest.mark.parametrize(
    ("change", "sha", "message"),
    [
        ({"shots": [0]}, SHA, r"eval\.shots was \[0, 1, 3\] there and is \[0\] now"),
        ({}, "1" * 64, r"models\.rule was "),
    ],
)
@pytest.mark.parametrize("is_finished", [True, False])
def test_a_folder_of_another_evaluation_is_refused(
    solve: Generate, tmp_path: Path, change: dict[str, Any], sha: str, message: str, is_finished: bool
) -> None:
    if is_finished:
        evaluate_all([rule(solve)], asked(), tmp_path, resume=True)
    else:
        interrupted(solve, tmp_path, asked(), 10)
    with pytest.raises(FlamingoError, match=message) as caught:
        evaluate_all([rule(solve, sha=sha)], asked(**change), tmp_path, resume=True)
    assert "\n" not in str(caught.value) and "choose another output=" in str(caught.value)


def test_without_resume_a_folder_is_begun_anew(solve: Generate, tmp_path: Path) -> None:
    interrupted(solve, tmp_path, asked(), 10)
    evaluate(solve, asked(shots=[0]), tmp_path)
    assert {sample["shots"] for sample in load_samples(tmp_path)} == {0, 3}


def test_failures_are_tried_again(solve: Generate, tmp_path: Path) -> None:
    config = asked()
    calls = 0

    def down_then_interrupted(documents: Sequence[Document], max_new_tokens: int) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return [GenerationFailure("down")] * len(documents)

    with pytest.raises(KeyboardInterrupt):
        evaluate_all([rule(down_then_interrupted)], config, tmp_path, resume=True)
    results = evaluate_all([rule(solve)], config, tmp_path, resume=True)
    assert results["failures"]["n_failed"] == 0


@pytest.mark.parametrize(("share", "is_said"), [(0.005, False), (0.05, True)])
def test_a_run_says_in_its_headline_that_many_have_failed(
    solve: Generate, share: float, is_said: bool
) -> None:
    made = 0

    def generate(documents: Sequence[Document], max_new_tokens: int) -> Any:
        nonlocal made
        texts = list(solve(documents, max_new_tokens))
        for i in range(len(texts)):
            made += 1
            if made % round(1 / share) == 0:
                texts[i] = GenerationFailure("timed out")
        return texts

    results = evaluate(generate, asked(queries=20), None)
    warning = failure_warning(results)
    assert (warning is not None) == is_said
    if warning is not None:
        assert warning.startswith("12 of 240 predictions failed (5.0%), most often: timed out")


def test_several_models_stand_in_one_file(solve: Generate, tmp_path: Path) -> None:
    def wrong(documents: Sequence[Document], max_new_tokens: int) -> list[str]:
        return [" -1"] * len(documents)

    results = evaluate_all([rule(solve, "a"), rule(wrong, "b", "1" * 64)], asked(), tmp_path)
    assert results["models"] == {"a": {"checkpoint_sha": SHA}, "b": {"checkpoint_sha": "1" * 64}}
    values = {(c["model"], c["shots"]): c["value"] for c in results["cells"] if c["condition"] == "standard"}
    assert values["b", 3] == 0 < values["a", 3]
    alone = evaluate(solve, asked(), None, model="a", checkpoint_sha=SHA)
    assert [c for c in results["cells"] if c["model"] == "a"] == alone["cells"]


def test_a_model_is_loaded_only_if_something_is_left_to_ask(solve: Generate, tmp_path: Path) -> None:
    loaded: list[str] = []

    def subject_of(name: str, generate: Generate) -> Subject:
        def answering() -> Any:
            loaded.append(name)
            return generate, None

        return Subject(name, answering, SHA)

    breaking, _ = counting(solve, 10)
    with pytest.raises(KeyboardInterrupt):
        evaluate_all([subject_of("a", solve), subject_of("b", breaking)], asked(), tmp_path, resume=True)
    loaded.clear()
    evaluate_all([subject_of("a", solve), subject_of("b", solve)], asked(), tmp_path, resume=True)
    assert loaded == ["b"]


def test_progress_runs_over_all_models(solve: Generate) -> None:
    seen: list[tuple[int, int, str]] = []
    evaluate_all(
        [rule(solve, "a"), rule(solve, "b")], asked(), None, progress=lambda *step: seen.append(step)
    )
    total = 2 * 6 * (2 * (1 + 2 + 2) + 2)
    assert seen[0][:2] == (0, total) and seen[-1][:2] == (total, total)
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)


def test_two_models_of_one_name_are_refused(solve: Generate) -> None:
    with pytest.raises(FlamingoError, match="named twice"):
        evaluate_all([rule(solve), rule(solve)], asked(), None)


def close(margins: Callable[[int], float]) -> tuple[Generate, list[int]]:
    """A generator whose margin depends on how many documents it is given; texts differ between alone and together."""
    calls: list[int] = []

    def generate(documents: Sequence[Document], max_new_tokens: int) -> list[Written]:
        calls.append(len(documents))
        text = "alone" if len(documents) == 1 else "together"
        return [Written(text, margins(len(documents))) for _ in documents]

    return generate, calls


@pytest.mark.parametrize(
    ("together", "alone", "text", "is_marked"),
    [(1.5, 1.5, "together", False), (0.9, 0.9, "alone", False), (0.1, 0.1, "alone", True)],
)
def test_a_choice_that_rounding_could_turn_is_asked_again_alone(
    tmp_path: Path, together: float, alone: float, text: str, is_marked: bool
) -> None:
    generate, _ = close(lambda documents: alone if documents == 1 else together)
    config = asked(styles=["direct"], conditions=["standard"], batch_size=4)
    results = evaluate(generate, config, tmp_path)
    found = load_samples(tmp_path)
    assert {sample["raw"] for sample in found} == {text}
    assert {sample["near_tie"] for sample in found} == {is_marked}
    assert sum(cell["n_near_ties"] for cell in results["cells"]) == is_marked * len(found)
