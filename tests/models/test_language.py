"""Loading a language model: what is none is named, and nothing that a checkpoint holds is run."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from flamingo_lite.errors import FlamingoError
from flamingo_lite.models.language import LanguageConfig, load_language


@pytest.mark.parametrize("pretrained", [True, False])
@pytest.mark.parametrize(
    ("model_type", "values", "what"),
    [
        ("bert", {}, "an encoder"),
        ("roberta", {}, "an encoder"),
        ("t5", {}, "an encoder-decoder"),
        ("bart", {}, "an encoder-decoder"),
        ("llava", {}, "a vision-language model"),
        ("gemma3", {}, "a vision-language model"),
        ("mllama", {}, "a vision-language model"),
        ("flamingo_lite", {}, "a vision-language model"),
        (
            "gemma3_text",
            {"use_bidirectional_attention": True},
            "a model whose attention runs in both directions",
        ),
        ("clip", {}, "no language model"),
    ],
)
def test_what_is_no_decoder_only_language_model_is_named(
    tmp_path: Path, model_type: str, values: dict[str, Any], what: str, pretrained: bool
) -> None:
    AutoConfig.for_model(model_type, **values).save_pretrained(tmp_path)
    with pytest.raises(FlamingoError) as error:
        load_language(LanguageConfig(str(tmp_path), pretrained=pretrained))
    assert f"{str(tmp_path)!r} holds {what} (model_type '{model_type}')" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_decoder_of_a_family_of_encoders_is_one(tmp_path: Path) -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    AutoConfig.for_model("bert", is_decoder=True, vocab_size=16, **sizes).save_pretrained(tmp_path)
    loaded = load_language(LanguageConfig(str(tmp_path), pretrained=False))
    assert type(loaded).__name__ == "BertLMHeadModel"


def test_a_directory_without_a_config_says_what_it_holds(vision_directory: Path) -> None:
    with pytest.raises(
        FlamingoError, match=r"no config.json \(found: open_clip_config.json, open_clip_model"
    ):
        load_language(LanguageConfig(str(vision_directory)))


def test_a_checkpoint_without_its_head_is_not_completed_at_random(
    tmp_path: Path, language_directory: Path
) -> None:
    config = AutoConfig.from_pretrained(language_directory)
    config.tie_word_embeddings = False
    AutoModel.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(
        FlamingoError, match=r"expected a whole LlamaForCausalLM.*1 missing \(lm_head.weight\)"
    ):
        load_language(LanguageConfig(str(tmp_path)))


class Trap:
    """Unpickled, it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_pickle_in_a_checkpoint_is_not_run(tmp_path: Path, language_directory: Path) -> None:
    directory = tmp_path / "pickled"
    directory.mkdir()
    (directory / "config.json").write_text((language_directory / "config.json").read_text())
    torch.save({"lm_head.weight": Trap(tmp_path / "sprung")}, directory / "pytorch_model.bin")
    with pytest.raises(FlamingoError, match="a pickle that holds more than tensors") as error:
        load_language(LanguageConfig(str(directory)))
    assert not (tmp_path / "sprung").exists()
    assert "\n" not in str(error.value)


def test_code_that_a_checkpoint_brings_is_not_run(tmp_path: Path) -> None:
    config = {"model_type": "their_own", "auto_map": {"AutoConfig": "their_code.TheirConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "their_code.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'sprung')!r})\n")
    with pytest.raises(FlamingoError, match="cannot load the language model"):
        load_language(LanguageConfig(str(tmp_path)))
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("values", [{}, {"tie_word_embeddings": False}])
def test_whole_checkpoints_load(tmp_path: Path, language_directory: Path, values: dict[str, Any]) -> None:
    config = AutoConfig.from_pretrained(language_directory)
    for key, value in values.items():
        setattr(config, key, value)
    saved = AutoModelForCausalLM.from_config(config)
    saved.save_pretrained(tmp_path)
    state = load_language(LanguageConfig(str(tmp_path))).state_dict()
    assert all(torch.equal(state[key], value) for key, value in saved.state_dict().items())


def test_weights_that_the_config_has_no_place_for_are_refused(
    language_directory: Path, tmp_path: Path
) -> None:
    shutil.copytree(language_directory, tmp_path / "language")
    path = tmp_path / "language" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_hidden_layers": 1}))
    with pytest.raises(FlamingoError, match=r"superfluous \(model\.layers\.1\."):
        load_language(LanguageConfig(str(tmp_path / "language")))
