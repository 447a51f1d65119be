from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from flamingo_lite.document import Document
from flamingo_lite.errors import FlamingoError
from flamingo_lite.evaluation.answers import Generate
from flamingo_lite.evaluation.grid import EvaluationConfig, Setting, build_prompt, seeds_of, settings
from flamingo_lite.evaluation.metrics import GenerationFailure
from flamingo_lite.evaluation.results import CELL, SAMPLE, load_results, load_samples, prompt_sha
from flamingo_lite.evaluation.runner import evaluate

SMALL = EvaluationConfig(queries=30, seeds=[0, 1, 2], resamples=200)


@pytest.fixture(scope="module")
def run(
    solve: Generate, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], list[dict[str, Any]], Path]:
    directory = tmp_path_factory.mktemp("run")
    results = evaluate(solve, SMALL, directory, model="solver", checkpoint_sha="0" * 64)
    return results, load_samples(directory), directory


def cell(results: dict[str, Any], split: str, style: str, condition: str, shots: int) -> dict[str, Any]:
    wanted = {"split": split, "style": style, "condition": condition, "shots": shots}
    (found,) = [c for c in results["cells"] if wanted.items() <= c.items()]
    return found


def test_the_default_grid_is_the_one_promised() -> None:
    config = EvaluationConfig()
    cells = settings(config)
    assert len(cells) == len(set(cells)) == 4 * 2 * 5 + 6
    assert sum(len(seeds_of(c, config)) * config.queries for c in cells) == 39_600
    assert all(
        c.shots == 8 and c.split == "test" and c.style == "direct" for c in cells if c.condition != "standard"
    )


@pytest.mark.parametrize("split", ["test", "handwritten", "held_out_pairs", "held_out_rule"])
@pytest.mark.parametrize("style", ["direct", "spelled"])
def test_a_perfect_reader_rises_from_chance_to_all(run: Any, split: str, style: str) -> None:
    results = run[0]
    assert cell(results, split, style, "standard", 8)["value"] >= 0.98
    assert cell(results, split, style, "standard", 0)["value"] <= 0.6


def test_controls_bring_a_perfect_reader_down_and_words_do_not(run: Any) -> None:
    values = {name: cell(run[0], "test", "direct", name, 8)["value"] for name in SMALL.conditions}
    assert values["standard"] >= 0.98
    assert values["text_twin"] == values["standard"]
    assert values["shuffled_labels"] <= 0.6
    assert values["blank_demonstrations"] <= 0.6
    assert values["mismatched_images"] <= 0.3
    assert values["blank_images"] <= 0.3


def test_the_files_hold_what_the_contract_names(run: Any) -> None:
    results, samples, directory = run
    assert load_results(directory) == json.loads(json.dumps(results))
    assert set(results) >= {"schema_version", "git_sha", "config_sha", "environment", "models", "cells"}
    assert results["models"] == {"solver": {"checkpoint_sha": "0" * 64}}
    assert all(set(c) >= set(CELL) for c in results["cells"])
    assert all(set(sample) >= set(SAMPLE) for sample in samples)
    assert len(samples) == sum(c["n"] + c["n_failed"] for c in results["cells"])


def test_a_cell_sums_up_its_samples(run: Any) -> None:
    results, samples, _ = run
    for c in results["cells"]:
        keys = ("task", "model", "split", "style", "condition", "shots")
        mine = [s for s in samples if all(s[key] == c[key] for key in keys)]
        assert c["value"] == pytest.approx(sum(s["score"] for s in mine) / len(mine), abs=1e-6)
        assert c["ci95"][0] <= c["value"] <= c["ci95"][1]
        assert c["n"] == len(mine) == len(c["seeds"]) * SMALL.queries


def test_a_sample_can_be_built_again_and_names_its_images_in_order(run: Any) -> None:
    for sample in run[1][::97]:
        setting = Setting(*(sample[key] for key in ("task", "split", "style", "condition", "shots")))
        document = build_prompt(setting, sample["query_id"], sample["seed"]).document
        assert prompt_sha(document) == sample["prompt_sha"]
        assert [image.id for image in document.images] == sample["image_ids"]


def test_styles_and_conditions_share_their_demonstrations(run: Any) -> None:
    drawn: dict[tuple[Any, ...], set[tuple[str, ...]]] = {}
    for sample in run[1]:
        key = tuple(sample[name] for name in ("split", "query_id", "seed", "shots"))
        drawn.setdefault(key, set()).add(tuple(sample["demonstration_ids"]))
    assert all(len(sets) == 1 for sets in drawn.values())


def test_two_runs_give_the_same_bytes(run: Any, solve: Generate, tmp_path: Path) -> None:
    evaluate(solve, SMALL, tmp_path, model="solver", checkpoint_sha="0" * 64)
    for name in ("results.json", "samples.jsonl"):
        assert (tmp_path / name).read_bytes() == (run[2] / name).read_bytes()


def test_fewer_queries_are_the_first_of_more(run: Any, solve: Generate, tmp_path: Path) -> None:
    few = EvaluationConfig(
        queries=10, seeds=[0, 1], resamples=10, splits=["test"], styles=["direct"], shots=[4]
    )
    evaluate(solve, few, tmp_path, model="solver")
    known = {json.dumps(sample) for sample in run[1]}
    assert all(json.dumps(sample) in known for sample in load_samples(tmp_path))


def test_failures_are_counted_apart_and_never_scored(solve: Generate, tmp_path: Path) -> None:
    def answer(documents: Sequence[Document], max_new_tokens: int) -> list[str | GenerationFailure]:
        texts = solve(documents, max_new_tokens)
        return [GenerationFailure("timed out") if i % 3 == 0 else text for i, text in enumerate(texts)]

    config = EvaluationConfig(
        queries=30, seeds=[0, 1, 2], shots=[8], splits=["test"], styles=["direct"], conditions=["standard"]
    )
    (c,) = evaluate(answer, config, tmp_path)["cells"]
    assert (c["n"], c["n_failed"]) == (60, 30)
    assert c["value"] >= 0.98
    failed = [sample for sample in load_samples(tmp_path) if sample["status"] == "failed"]
    assert len(failed) == 30
    assert all(s["raw"] is None and s["score"] is None and s["error"] == "timed out" for s in failed)


def test_a_run_in_which_all_fail_has_no_value(tmp_path: Path) -> None:
    config = EvaluationConfig(
        queries=2, shots=[1], splits=["test"], styles=["direct"], conditions=["standard"]
    )
    (c,) = evaluate(
        lambda documents, max_new_tokens: [GenerationFailure("down")] * len(documents), config, tmp_path
    )["cells"]
    assert (c["value"], c["se"], c["ci95"], c["n"], c["n_failed"]) == (None, None, None, 0, 10)


def test_texts_that_no_encoding_has_survive_the_files(tmp_path: Path) -> None:
    odd = ["\ud800", "a\u2028b\x00", '"\\', "\r\n"]
    config = EvaluationConfig(
        queries=4, shots=[0], splits=["test"], styles=["direct"], conditions=["standard"]
    )
    evaluate(lambda documents, max_new_tokens: odd[: len(documents)], config, tmp_path)
    assert [sample["raw"] for sample in load_samples(tmp_path)] == odd


def test_a_generator_that_loses_a_text_is_refused_and_writes_no_results(tmp_path: Path) -> None:
    config = EvaluationConfig(
        queries=2, shots=[1], splits=["test"], styles=["direct"], conditions=["standard"]
    )
    with pytest.raises(FlamingoError, match="returned 3 texts for 10 documents"):
        evaluate(lambda documents, max_new_tokens: ["1"] * 3, config, tmp_path)
    # What was answered before is kept beside, for the run to go on.
    assert {path.name for path in tmp_path.iterdir()} <= {".answers"}


def test_progress_ends_at_the_total(solve: Generate, tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    config = EvaluationConfig(queries=2, shots=[1], conditions=["standard"], resamples=10)
    evaluate(solve, config, tmp_path, progress=lambda *step: seen.append(step))
    assert seen[0][:2] == (0, 80)
    assert seen[-1][:2] == (80, 80)
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"splits": ["tset"]}, "did you mean 'test'"),
        ({"styles": ["spelt"]}, "did you mean 'spelled'"),
        ({"conditions": ["shuffled_label"]}, "did you mean 'shuffled_labels'"),
        ({"tasks": ["operator"]}, "unknown task"),
        ({"queries": 0}, "queries is 0"),
        ({"shots": [-1]}, "expected 0 or more"),
        ({"seeds": []}, "seeds is empty"),
        ({"shots": [1, 1]}, "names a value twice"),
    ],
)
def test_a_wrong_configuration_is_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(FlamingoError, match=message) as caught:
        EvaluationConfig(**change)
    assert "\n" not in str(caught.value)
