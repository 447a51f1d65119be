"""`flamingo-lite eval` with demonstrations by similarity: by the model's own encoder, a named one, and for two models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import flamingo_lite as fl
from flamingo_lite import cli
from flamingo_lite.evaluation.results import load_samples
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.processing import VisionLanguageProcessor


@pytest.fixture
def words(tmp_path: Path, model: VisionLanguageModel, processor: VisionLanguageProcessor) -> list[str]:
    fl.save(model, processor, tmp_path / "model")
    chosen = {
        "tasks": "[existence]", "splits": "[test]", "styles": "[direct]", "shots": "[2]", "queries": 4,
        "conditions": "[standard]", "resamples": 10, "max_new_tokens": 2,
        "order": "similar_last",
    }  # fmt: skip
    return ["eval", *(f"eval.{name}={value}" for name, value in chosen.items())]


def test_the_models_own_encoder_chooses_beside_that_of_texts_and_what_both_give_is_kept(
    tmp_path: Path, words: list[str]
) -> None:
    output, features = tmp_path / "out", tmp_path / "features"
    named = [f"checkpoint={tmp_path / 'model'}", f"output={output}", f"eval.features={features}"]
    assert cli.main([*words, "eval.selector=rices_both", *named]) == 0
    samples = load_samples(output)
    assert {(sample["selector"], sample["order"]) for sample in samples} == {("rices_both", "similar_last")}
    assert len(samples) == 4 and {len(sample["demonstration_ids"]) for sample in samples} == {2}
    assert len({path.parents[1] for path in (features / "similarity").rglob("*.safetensors")}) == 2


def test_two_models_want_one_encoder_for_both(
    tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    models = f"models={{a: {tmp_path / 'model'}, b: {tmp_path / 'model'}}}"
    both = [*words, models, f"output={tmp_path / 'both'}", "eval.selector=rices_image"]
    assert cli.main(both) == 2
    assert "name one with eval.image_encoder" in capsys.readouterr().err
    assert cli.main([*both, "eval.image_encoder=tiny"]) == 0
    shown = {(s["model"], s["query_id"]): s["prompt_sha"] for s in load_samples(tmp_path / "both")}
    assert all(shown["a", number] == shown["b", number] for number in range(4))


def test_our_model_on_the_hub_chooses_by_its_own_encoder(
    tmp_path: Path, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    revision, cache = "0" * 40, tmp_path / "hub"
    snapshot = cache / "models--someone--ours" / "snapshots" / revision
    shutil.copytree(tmp_path / "model", snapshot)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    hub = f"models={{model: {{hub: someone/ours, revision: '{revision}'}}}}"
    similar = [*words, "eval.selector=rices_image"]
    assert cli.main([*similar, hub, f"output={tmp_path / 'far'}"]) == 0
    assert cli.main([*similar, f"checkpoint={tmp_path / 'model'}", f"output={tmp_path / 'near'}"]) == 0
    assert load_samples(tmp_path / "far") == load_samples(tmp_path / "near")


def test_a_model_behind_an_endpoint_has_no_encoder_to_choose_by(
    tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [
        *words,
        "models={far: {endpoint: gpt}}",
        f"output={tmp_path / 'far'}",
        "eval.selector=rices_image",
    ]
    assert cli.main(asked) == 2
    assert "models.far has no vision encoder" in capsys.readouterr().err


def test_tasks_for_lmms_eval_have_the_same_demonstrations(
    tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [*words, "eval.selector=rices_image"]
    tasks = [asked[0], "lmms", "--to", str(tmp_path / "tasks"), *asked[1:]]
    assert cli.main(tasks) == 2
    assert "name one with eval.image_encoder" in capsys.readouterr().err
    assert not (tmp_path / "tasks").exists()
    assert cli.main([*tasks, "eval.image_encoder=tiny"]) == 0
    own = [f"checkpoint={tmp_path / 'model'}", f"output={tmp_path / 'out'}"]
    assert cli.main([*asked, *own, "eval.image_encoder=tiny"]) == 0
    (path,) = (tmp_path / "tasks").glob("*.jsonl")
    written = {row["query_id"]: row["prompt_sha"] for row in map(json.loads, path.read_text().splitlines())}
    assert written == {s["query_id"]: s["prompt_sha"] for s in load_samples(tmp_path / "out")}
