"""IDEFICS directories: out again as they came in, and everything that can be wrong with one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import IdeficsForVisionText2Text, IdeficsProcessor

import flamingo_lite as fl
from flamingo_lite import cli
from flamingo_lite.document import Document, Image
from flamingo_lite.errors import FlamingoError
from tests.conftest import byte_tokenizer
from tests.parity.idefics_reference import WORDS, Case, reference

STOCK = Case(depth=2, qk_norm=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A directory that nothing changes, and the model in it."""
    directory = tmp_path_factory.mktemp("idefics")
    return directory, reference(STOCK, directory)


@pytest.fixture
def directory(made: tuple[Path, Any], tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    for path in made[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


@pytest.fixture(scope="module")
def documents(image_of: Callable[[int], Image]) -> list[Document]:
    return [Document(["a", image_of(0), "b", image_of(1), image_of(2), "c"]), Document(["text alone"])]


@torch.no_grad()
def logits(directory: Path, documents: list[Document]) -> Tensor:
    model, processor = fl.load(directory)
    return model(**processor(documents)).logits


def change_config(directory: Path, **values: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def change_state(directory: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    state = load_file(directory / "model.safetensors")
    change(state)
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    "changes",
    [{}, {"gate": "vector", "every": 2, "is_tied": True}, {"has_resampler": False, "is_instructed": True}],
)
def test_their_class_loads_an_export_and_every_tensor_is_what_it_was(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    before = reference(replace(STOCK, **changes), tmp_path)
    model, processor = fl.load(tmp_path)
    out = fl.export(model, processor, tmp_path / "out", format="idefics")
    after, info = IdeficsForVisionText2Text.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    states = before.state_dict(), after.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_their_processor_of_an_export_writes_the_same_prompt(made: tuple[Path, Any], tmp_path: Path) -> None:
    model, processor = fl.load(made[0])
    out = fl.export(model, processor, tmp_path / "out", format="idefics")
    prompt = ["User:", "what is this"]
    before, after = (IdeficsProcessor.from_pretrained(path)(text=prompt) for path in (made[0], out))
    assert torch.equal(before["input_ids"], after["input_ids"])


def test_an_export_of_a_saved_import_is_the_same_file(made: tuple[Path, Any], tmp_path: Path) -> None:
    model, processor = fl.load(made[0])
    saved = fl.load(fl.save(model, processor, tmp_path / "saved"))
    out = fl.export(*saved, tmp_path / "out", format="idefics")
    before, after = load_file(made[0] / "model.safetensors"), load_file(out / "model.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


def test_without_its_source_an_export_has_zeros_where_nothing_reads(
    directory: Path, documents: list[Document], tmp_path_factory: pytest.TempPathFactory
) -> None:
    model, processor = fl.load(directory)
    before = logits(directory, documents)
    (directory / "model.safetensors").unlink()
    out = fl.export(model, processor, tmp_path_factory.mktemp("out") / "idefics", format="idefics")
    state = load_file(out / "model.safetensors")
    assert not state["model.vision_model.post_layernorm.weight"].any()
    assert torch.equal(logits(out, documents), before)


@pytest.mark.parametrize("whole", [True, False])
def test_an_imported_model_is_saved_and_loaded_as_any_other(
    made: tuple[Path, Any], documents: list[Document], tmp_path: Path, whole: bool
) -> None:
    saved = fl.save(*fl.load(made[0]), tmp_path / "saved", whole=whole)
    assert torch.equal(logits(saved, documents), logits(made[0], documents))


def test_sharded_weights_are_read(made: tuple[Path, Any], documents: list[Document], tmp_path: Path) -> None:
    for path in made[0].iterdir():
        if path.suffix == ".json":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    made[1].save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert torch.equal(logits(tmp_path, documents), logits(made[0], documents))


def test_weights_of_pytorch_are_read_with_the_tables_of_older_releases(
    made: tuple[Path, Any], directory: Path, documents: list[Document]
) -> None:
    state = load_file(directory / "model.safetensors")
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)
    state["model.vision_model.embeddings.position_ids"] = torch.arange(5)[None]
    torch.save(state, directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()
    assert torch.equal(logits(directory, documents), logits(made[0], documents))


def test_the_command_exports(
    made: tuple[Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", f"checkpoint={made[0]}", "format=idefics", f"output={tmp_path / 'out'}"]
    assert cli.main(words) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").is_file()


def save_tokenizer(directory: Path, *tokens: str) -> None:
    (directory / "tokenizer.json").unlink()
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(tokens)})
    tokenizer.save_pretrained(directory)


class Anything:
    """What a pickle must not make."""


def pickle_weights(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    torch.save({"weight": Anything()}, directory / "pytorch_model.bin")


GATED = "model.gated_cross_attn_layers"
DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "dropout": (lambda d: change_config(d, dropout=0.1), r"dropout in .*config.json is 0.1; expected 0"),
    "another activation": (
        lambda d: change_config(d, hidden_act="gelu"),
        r"hidden_act in .* is 'gelu'; expected 'silu'",
    ),
    "an unknown gate": (
        lambda d: change_config(d, alpha_type="matrix"),
        r"alpha_type in .* is 'matrix'; expected float or",
    ),
    "an unknown start": (
        lambda d: change_config(d, alpha_initializer="twos"),
        r"alpha_initializer in .* is 'twos'",
    ),
    "an interval that does not divide": (
        lambda d: change_config(d, cross_layer_interval=3),
        r"cross_layer_interval in .* is 3, which does not divide num_hidden_layers, 2",
    ),
    "no json": (lambda d: (d / "config.json").write_text("{"), r"cannot read .*config.json"),
    "a value of another type": (
        lambda d: change_config(d, hidden_size="x"),
        r"cannot read .*config.json: .*'hidden_size'",
    ),
    "another width": (
        lambda d: change_config(d, intermediate_size=48),
        r"of another shape: .*\(expected \(48, 32\)\)",
    ),
    "a missing group": (
        lambda d: change_state(d, lambda s: [s.pop(k) for k in list(s) if k.startswith(GATED)]),
        rf"26 missing: {GATED}.0.input_layernorm.weight, .* and 23 more; expected exactly those",
    ),
    "a superfluous key": (
        lambda d: change_state(d, lambda s: s.update({f"{GATED}.2.alpha_dense": torch.zeros(1)})),
        rf"1 superfluous: {GATED}.2.alpha_dense",
    ),
    "gates of another type": (
        lambda d: change_config(d, alpha_type="vector"),
        r"4 of another shape: .*alpha_cross_attn \(1,\) \(expected \(1, 1, 32\)\)",
    ),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), r"holds no weights \(found: config.json"),
    "weights cut short": (
        lambda d: (d / "model.safetensors").write_bytes((d / "model.safetensors").read_bytes()[:-100]),
        r"cannot read .*model.safetensors: .*; expected a whole file of tensors",
    ),
    "a pickle": (
        pickle_weights,
        r"pytorch_model.bin holds a pickle of more than tensors, which is never run",
    ),
    "no image token": (
        lambda d: save_tokenizer(d, "<fake_token_around_image>"),
        r"the tokenizer in .* lacks the token <image>",
    ),
    "no token around images": (
        lambda d: save_tokenizer(d, "<image>"),
        r"the tokenizer in .* lacks the token <fake_token_around_image>",
    ),
    "a larger tokenizer": (
        lambda d: save_tokenizer(d, "<image>", "<fake_token_around_image>", "<more>"),
        rf"has {WORDS + 3} tokens, but vocab_size in config.json is {WORDS + 2}",
    ),
    "no tokenizer": (
        lambda d: [(d / name).unlink() for name in ("tokenizer.json", "tokenizer_config.json")],
        r"the tokenizer in .* lacks the token <image>",
    ),
    "no image processor": (
        lambda d: (d / "processor_config.json").unlink(),
        r"cannot tell how images are prepared .* expected its preprocessor_config.json",
    ),
    "another project's model": (
        lambda d: change_config(d, model_type="idefics2"),
        r"is of a model of type 'idefics2', expected 'flamingo_lite', or one of the formats openflamingo, idefics",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_one_clear_line(kind: str, directory: Path) -> None:
    damage, expected = DAMAGE[kind]
    damage(directory)
    with pytest.raises(FlamingoError, match=expected) as error:
        fl.load(directory)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("vision_tower", "layer", -2),
        ("vision_tower", "class_token", False),
        ("vision_tower", "final_norm", True),
        ("connector", "activation", "gelu"),
        ("text_config", "attention_bias", True),
        ("text_config", "num_key_value_heads", 1),
        ("text_config", "hidden_act", "gelu"),
        ("fusion", "place", "end"),
        ("fusion", "sees", "all_previous"),
        ("fusion", "norm", "layer"),
        ("fusion", "feed_forward", "gelu"),
        ("fusion", "feed_forward_width", 7),
        ("fusion", "dim_head", 8),
    ],
)
def test_what_their_class_cannot_express_is_named(
    made: tuple[Path, Any], tmp_path: Path, part: str, name: str, value: Any
) -> None:
    model = fl.load_model(made[0])
    owner = model.fusion if part == "fusion" else getattr(model.config, part)
    if isinstance(owner, dict):
        owner[name] = value
    else:
        setattr(owner, name, value)
    with pytest.raises(FlamingoError, match=f"cannot export as idefics: {part}.{name} is {value!r}"):
        fl.export(model, None, tmp_path / "out", format="idefics")
    assert list(tmp_path.iterdir()) == []


def test_an_open_clip_model_is_told_that_its_encoder_is_in_the_way(
    model: fl.VisionLanguageModel, tmp_path: Path
) -> None:
    with pytest.raises(
        FlamingoError, match="vision_tower.transformers.model_type is 'an encoder of open_clip'"
    ):
        fl.export(model, None, tmp_path / "out", format="idefics")


def test_another_way_to_prepare_images_is_named(made: tuple[Path, Any], tmp_path: Path) -> None:
    model, processor = fl.load(made[0])
    processor.image_transform = replace(processor.image_transform, interpolation="bilinear")
    with pytest.raises(FlamingoError, match="cannot export as idefics: .* interpolation 'bilinear'"):
        fl.export(model, processor, tmp_path / "out", format="idefics")
