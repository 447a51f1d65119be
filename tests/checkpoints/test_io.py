"""Saving and loading: whole directories, training checkpoints, and everything that can be wrong with them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import flamingo_lite as fl
from flamingo_lite.document import Document, Image
from flamingo_lite.errors import FlamingoError
from flamingo_lite.models.build import build
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.processing import VisionLanguageProcessor


@pytest.fixture
def documents(image_of: Callable[[int], Image]) -> list[Document]:
    return [Document([image_of(0), " 3 = 4", image_of(1), " 5 ="])]


@pytest.mark.parametrize("whole", [True, False])
def test_what_is_loaded_is_bit_identical(
    model: VisionLanguageModel,
    processor: VisionLanguageProcessor,
    documents: list[Document],
    tmp_path: Path,
    whole: bool,
) -> None:
    path = tmp_path / "a name with spaces" / "model"
    fl.save(model, processor, path, whole=whole, notes={"step": 3})
    loaded, loaded_processor = fl.load(path)
    with torch.no_grad():
        ours, theirs = model(**processor(documents)).logits, loaded(**loaded_processor(documents)).logits
    assert torch.equal(ours, theirs)
    assert not loaded.training
    own, other = dict(model.named_parameters()), dict(loaded.named_parameters())
    assert own.keys() == other.keys()
    assert all(torch.equal(own[name], other[name]) for name in own)
    assert [p.requires_grad for p in own.values()] == [p.requires_grad for p in other.values()]
    assert [p.name for p in path.parent.iterdir()] == ["model"]


def test_a_training_checkpoint_holds_the_trained_parameters_alone(
    model: VisionLanguageModel, processor: VisionLanguageProcessor, tmp_path: Path, language_directory: Path
) -> None:
    path = fl.save(model, processor, tmp_path / "step", whole=False, notes={"step": 3})
    assert set(load_file(path / "trained.safetensors")) == {
        n for n, p in model.named_parameters() if p.requires_grad
    }
    manifest = json.loads((path / "training_checkpoint.json").read_text())
    assert manifest["frozen"]["language"]["name"] == str(language_directory)
    assert manifest["frozen"]["language"].keys() >= {"revision", "sha256"}
    assert manifest["notes"] == {"step": 3}


def test_saving_again_replaces(
    model: VisionLanguageModel, processor: VisionLanguageProcessor, tmp_path: Path
) -> None:
    path = tmp_path / "model"
    fl.save(model, processor, path)
    fl.save(model, processor, path, whole=False)
    assert not (path / "model.safetensors").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_changed_backbone_is_noticed(
    model_config: dict[str, Any], processor: VisionLanguageProcessor, tmp_path: Path, language_directory: Path
) -> None:
    copied = tmp_path / "language"
    shutil.copytree(language_directory, copied)
    model = build({**model_config, "language": {"name": str(copied)}})
    path = fl.save(model, processor, tmp_path / "step", whole=False)
    changed = fl.build(model_config).language
    with torch.no_grad():
        changed.get_input_embeddings().weight[0, 0] += 1
    clean = {
        k: v for k, v in changed.state_dict().items() if "cross_attention" not in k and "new_rows" not in k
    }
    changed.save_pretrained(copied, state_dict=clean)
    with pytest.raises(FlamingoError, match="the frozen language .* is not the one"):
        fl.load_model(path)


def test_a_frozen_part_without_a_source_must_be_saved_whole(
    model_config: dict[str, Any], processor: VisionLanguageProcessor, tmp_path: Path
) -> None:
    model = build({**model_config, "language": {**model_config["language"], "pretrained": False}})
    with pytest.raises(FlamingoError, match="language is frozen, but its weights have no source"):
        fl.save(model, processor, tmp_path / "step", whole=False)
    assert list(tmp_path.iterdir()) == []
    fl.save(model, processor, tmp_path / "whole")


def test_a_full_disk_leaves_nothing_behind(
    model: VisionLanguageModel,
    processor: VisionLanguageProcessor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = fl.save(model, processor, tmp_path / "model")
    before = {p.name: p.read_bytes() for p in path.iterdir()}

    def full(directory: Any, **options: Any) -> None:
        (Path(directory) / "half").write_bytes(b"x")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(processor, "save_pretrained", full)
    with pytest.raises(FlamingoError, match="No space left"):
        fl.save(model, processor, path)
    assert {p.name: p.read_bytes() for p in path.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def damage_nothing_there(path: Path) -> None:
    shutil.rmtree(path)


def damage_truncate(path: Path) -> None:
    weights = next(path.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-100])


def damage_config(path: Path) -> None:
    config = path / "training_checkpoint.json"
    (config if config.exists() else path / "config.json").write_text("{")


def damage_empty(path: Path) -> None:
    for file in path.iterdir():
        file.unlink()


def damage_lose_a_weight(path: Path) -> None:
    from safetensors.torch import save_file

    weights = next(path.glob("*.safetensors"))
    state = load_file(weights)
    state.pop("connector.latents")
    save_file(state, weights, metadata={"format": "pt"})


def damage_foreign(path: Path) -> None:
    damage_empty(path)
    (path / "config.json").write_text(json.dumps({"model_type": "llama"}))


@pytest.mark.parametrize(
    "damage",
    [
        damage_nothing_there,
        damage_truncate,
        damage_config,
        damage_empty,
        damage_lose_a_weight,
        damage_foreign,
    ],
)
@pytest.mark.parametrize("whole", [True, False])
def test_damage_is_one_clear_line(
    model: VisionLanguageModel,
    processor: VisionLanguageProcessor,
    tmp_path: Path,
    damage: Callable[[Path], None],
    whole: bool,
) -> None:
    path = fl.save(model, processor, tmp_path / "model", whole=whole)
    damage(path)
    with pytest.raises(FlamingoError, match="model") as error:
        fl.load(path)
    assert "\n" not in str(error.value)


def changed(directory: Path, part: str, field: str, value: Any) -> Path:
    path = directory / "config.json"
    config = json.loads(path.read_text())
    config[part][field] = value
    path.write_text(json.dumps(config))
    return directory


def test_a_config_for_fewer_weights_is_refused(model: VisionLanguageModel, tmp_path: Path) -> None:
    fl.save(model, None, tmp_path / "model")
    with pytest.raises(FlamingoError, match=r"superfluous \(language\.model\.layers\.1\."):
        fl.load_model(changed(tmp_path / "model", "text_config", "num_hidden_layers", 1))


def test_a_weight_of_another_shape_is_named_with_both(model: VisionLanguageModel, tmp_path: Path) -> None:
    fl.save(model, None, tmp_path / "model")
    expected = r"1 misshapen \(connector\.latents \(3, 24\) where \(5, 24\) is expected\)"
    with pytest.raises(FlamingoError, match=expected):
        fl.load_model(changed(tmp_path / "model", "connector", "latents", 5))


def test_weights_in_a_pickle_are_not_read(model: VisionLanguageModel, tmp_path: Path) -> None:
    fl.save(model, None, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(FlamingoError, match="model.safetensors"):
        fl.load_model(tmp_path / "model")


@pytest.mark.parametrize("kept", ["thesis.txt", "model/config.json"])
def test_what_is_no_models_directory_is_never_replaced(
    model: VisionLanguageModel, tmp_path: Path, kept: str
) -> None:
    home = tmp_path / "home"
    (home / kept).parent.mkdir(parents=True)
    (home / kept).write_text("{}")
    with pytest.raises(FlamingoError, match="choose a free name"):
        fl.save(model, None, home)
    assert (home / kept).read_text() == "{}"
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
