"""Configs to models: what is typed, what is refused, what trains."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from rich.console import Console
from transformers import AutoModel, AutoModelForCausalLM

from flamingo_lite.errors import FlamingoError
from flamingo_lite.models.build import ModelConfig, build, model_config_from
from flamingo_lite.models.language import LanguageConfig, decoder_layers, load_language
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.models.policy import apply_policy, policy_table


def test_a_dict_a_dataclass_and_hydras_config_mean_the_same(model_config: dict[str, Any]) -> None:
    typed = model_config_from(model_config)
    assert model_config_from(typed) is typed
    assert model_config_from(OmegaConf.create(model_config)) == typed
    assert OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ModelConfig), model_config)) == typed


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"visoin": {}}, "unknown field of model 'visoin'; did you mean 'vision'"),
        ({"fusion": {"evry": 2}}, "did you mean 'every'"),
        ({"fusion": {"every": 0}}, "fusion.every is 0"),
        ({"fusion": {"sees": "all"}}, "must be 'immediate' or 'all_previous'"),
        ({"connector": {"latents": 0}}, "connector.latents is 0"),
        ({"connector": {"name": "percever"}}, "did you mean 'perceiver'"),
        ({"language": "tiny"}, "model.language is 'tiny'; expected a mapping"),
    ],
)
def test_bad_configs_end_in_one_line(config: dict[str, Any], message: str) -> None:
    with pytest.raises(FlamingoError, match=message):
        model_config_from(config)


def test_a_language_model_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    with pytest.raises(FlamingoError, match=f"cannot load the language model '{tmp_path}'") as error:
        load_language(LanguageConfig(str(tmp_path)))
    assert "\n" not in str(error.value)


def test_random_parts_are_built_from_the_config_alone(model_config: dict[str, Any]) -> None:
    changed = {**model_config, "language": {**model_config["language"], "pretrained": False}}
    ours, loaded = build(changed).language.state_dict(), build(model_config).language.state_dict()
    assert ours.keys() == loaded.keys()
    assert not torch.equal(ours["model.embed_tokens.weight"], loaded["model.embed_tokens.weight"])


def test_blocks_stand_before_every_nth_layer(model_config: dict[str, Any]) -> None:
    model = build({**model_config, "fusion": {**model_config["fusion"], "every": 2}})
    assert list(model.blocks) == [1]
    assert [hasattr(layer, "cross_attention") for layer in decoder_layers(model.language)] == [False, True]


def test_gates_start_at_zero(model_config: dict[str, Any]) -> None:
    assert build(model_config).gate_values() == {0: (0.0, 0.0), 1: (0.0, 0.0)}


def test_only_the_missing_token_gets_a_row(model: VisionLanguageModel) -> None:
    config = model.config
    assert (config.first_new_token, config.new_tokens, config.image_token_id) == (259, 1, 259)
    assert config.text_config.vocab_size == 260 and config.base_vocab_size == 259
    assert model.get_input_embeddings().new_rows.shape == (1, 32)


def test_by_default_the_join_trains_and_nothing_else(model: VisionLanguageModel) -> None:
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {
        name
        for name, _ in model.named_parameters()
        if name.startswith("connector.") or ".cross_attention." in name or name.endswith(".new_rows")
    }


def test_later_policy_entries_win_and_the_table_counts_everything_once(model: VisionLanguageModel) -> None:
    rows = apply_policy(model, {"vision.*": "full", "connector.*": "frozen"})
    assert all(p.requires_grad for p in model.vision.parameters())
    assert not any(p.requires_grad for p in model.connector.parameters())
    assert sum(row.numbers for row in rows) == sum(p.numel() for p in model.parameters())
    console = Console(file=io.StringIO(), width=120)
    console.print(policy_table(rows))
    assert "vision.*" in console.file.getvalue()  # type: ignore[attr-defined]  # a StringIO, typed as IO


@pytest.mark.parametrize(
    ("policy", "message"),
    [({"visual.*": "full"}, "matches no parameter"), ({"vision.*": "fulll"}, "did you mean 'full'")],
)
def test_policies_that_say_nothing_are_refused(
    model: VisionLanguageModel, policy: dict[str, str], message: str
) -> None:
    with pytest.raises(FlamingoError, match=message):
        apply_policy(model, policy)


def test_a_vision_encoder_that_trains_gets_gradients(model_config: dict[str, Any]) -> None:
    model = build({**model_config, "policy": {"vision.*": "full"}}).train()
    assert model.vision.training
    index = torch.tensor([[-1, 0, 0]])
    ids = torch.tensor([[4, 259, 7]])
    with torch.no_grad():
        for block in model.blocks.values():
            block.attention_gate.fill_(0.5)
    model(ids, labels=ids, media_index=index, pixel_values=torch.randn(1, 3, 16, 16)).loss.backward()
    assert [n for n, p in model.vision.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_the_auto_classes_know_the_model(model: VisionLanguageModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    for auto in (AutoModel, AutoModelForCausalLM):
        assert isinstance(auto.from_pretrained(tmp_path), VisionLanguageModel)
