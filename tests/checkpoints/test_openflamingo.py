"""OpenFlamingo checkpoints: out again as they came in, and everything that can be wrong with a directory."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import flamingo_lite as fl
from flamingo_lite.document import Document, Image
from flamingo_lite.errors import FlamingoError
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.processing import VisionLanguageProcessor
from tests.parity.open_flamingo_reference import (
    WORDS,
    Case,
    make_parts,
    published,
    reference,
    their_inputs,
)

STOCK = Case()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A directory that nothing changes, and their model on its parts."""
    directory = tmp_path_factory.mktemp("openflamingo")
    make_parts(STOCK, directory)
    model = reference(STOCK, directory)
    torch.save(published(model), directory / "checkpoint.pt")
    return directory, model


@pytest.fixture
def directory(made: tuple[Path, Any], tmp_path: Path) -> Path:
    """The same directory, to be changed: its parts are links, its two files copies."""
    for name in ("clip", "language"):
        os.symlink(made[0] / name, tmp_path / name)
    for name in ("checkpoint.pt", "openflamingo.json"):
        (tmp_path / name).write_bytes((made[0] / name).read_bytes())
    return tmp_path


@pytest.fixture(scope="module")
def documents(image_of: Callable[[int], Image]) -> list[Document]:
    return [Document(["a", image_of(0), "b", image_of(1), "c"]), Document(["text alone"])]


def change_state(directory: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    state = torch.load(directory / "checkpoint.pt", weights_only=True)
    change(state)
    torch.save(state, directory / "checkpoint.pt")


def change_parts(directory: Path, **values: Any) -> None:
    path = directory / "openflamingo.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@torch.no_grad()
def logits(
    model: VisionLanguageModel, processor: VisionLanguageProcessor, documents: list[Document]
) -> Tensor:
    return model(**processor(documents)).logits


@pytest.mark.parametrize("family", ["llama", "opt", "gpt_neox"])
def test_their_class_loads_an_export_and_every_tensor_is_what_it_was(family: str, tmp_path: Path) -> None:
    case = Case(family=family, every=2, depth=3, seed=5)
    make_parts(case, tmp_path)
    first = reference(case, tmp_path)
    torch.save(published(first), tmp_path / "checkpoint.pt")
    model, processor = fl.load(tmp_path)
    out = fl.export(model, processor, tmp_path / "out", format="openflamingo")
    state = torch.load(out / "checkpoint.pt", weights_only=True)
    second = reference(case, tmp_path, randomised=False)
    result = second.load_state_dict(state, strict=False)
    # All that is missing is there under another name: theirs keeps every layer and block in two places.
    repeated = ("lang_encoder.old_decoder_blocks.", "lang_encoder.gated_cross_attn_layers.")
    tied = () if family == "gpt_neox" or family == "llama" else ("lang_encoder.lm_head.weight",)
    assert all(key.startswith(repeated) or key in tied for key in result.missing_keys)
    assert all(key.startswith("vision_encoder.") for key in result.unexpected_keys)
    before, after = first.state_dict(), second.state_dict()
    untold = {"lang_encoder.lm_head.weight"} if family == "llama" else set()
    assert all(torch.equal(before[key], after[key]) for key in before.keys() - untold)


def test_an_export_that_is_read_again_gives_the_same_logits(
    made: tuple[Path, Any], documents: list[Document], tmp_path: Path
) -> None:
    model, processor = fl.load(made[0])
    again = fl.load(fl.export(model, processor, tmp_path / "out", format="openflamingo"))
    assert torch.equal(logits(model, processor, documents), logits(*again, documents))


@pytest.mark.parametrize("whole", [True, False])
def test_an_imported_model_is_saved_and_loaded_as_any_other(
    made: tuple[Path, Any], documents: list[Document], tmp_path: Path, whole: bool
) -> None:
    model, processor = fl.load(made[0])
    again = fl.load(fl.save(model, processor, tmp_path / "saved", whole=whole))
    assert torch.equal(logits(model, processor, documents), logits(*again, documents))


def test_repeated_keys_of_the_first_release_are_the_same_tensors_once_more(
    made: tuple[Path, Any], directory: Path, documents: list[Document]
) -> None:
    def repeat(state: dict[str, Tensor]) -> None:
        state |= {
            key.replace("model.layers.", "gated_cross_attn_layers.").replace(
                "gated_cross_attn_layer.", ""
            ): value
            for key, value in state.items()
            if "gated_cross_attn_layer." in key
        }

    change_state(directory, repeat)
    assert torch.equal(logits(*fl.load(directory), documents), logits(*fl.load(made[0]), documents))


def test_a_fine_tuned_vision_encoder_in_the_checkpoint_is_read(
    made: tuple[Path, Any], directory: Path, documents: list[Document]
) -> None:
    theirs = made[1]
    tuned = {
        f"vision_encoder.{key}": value + 0.1
        for key, value in theirs.vision_encoder.visual[0].state_dict().items()
    }
    change_state(directory, lambda state: state.update(tuned))
    assert not torch.equal(logits(*fl.load(directory), documents), logits(*fl.load(made[0]), documents))


def test_parts_may_be_yaml(directory: Path) -> None:
    (directory / "openflamingo.json").unlink()
    (directory / "openflamingo.yaml").write_text(
        "clip_vision_encoder_path: clip\nlang_encoder_path: language\n"
    )
    assert len(fl.load_model(directory).blocks) == STOCK.depth


def test_the_processor_writes_as_their_tokenizer_does(
    made: tuple[Path, Any], image_of: Callable[[int], Image]
) -> None:
    processor = fl.load_processor(made[0])
    document = Document([image_of(0), fl.Text("cat", ends_chunk=True)])
    ids = processor([document], complete=True).input_ids[0]
    assert processor.tokenizer.decode(ids) == "<image>cat<|endofchunk|><|endoftext|>"


def test_the_head_of_a_new_token_that_no_checkpoint_keeps_is_the_mean_row(made: tuple[Path, Any]) -> None:
    head: Any = fl.load_model(made[0]).language.get_output_embeddings()
    assert torch.equal(head.new_rows, head.weight.mean(0).expand(1, -1))


def test_the_last_norm_of_the_encoder_is_applied_exactly_where_the_parts_say_so(
    made: tuple[Path, Any], directory: Path, documents: list[Document]
) -> None:
    change_parts(directory, final_norm=True)
    model, processor = fl.load(directory)
    with torch.no_grad():
        expected = made[1](**their_inputs(batch := processor(documents))).logits
    assert (model(**batch).logits - expected)[0, :, :WORDS].abs().max() > 1e-3


class Anything:
    """What a pickle must not make."""


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no parts": (
        lambda d: (d / "openflamingo.json").unlink(),
        r"holds checkpoint.pt but no openflamingo.json; write one with clip_vision_encoder_path",
    ),
    "an unknown field": (
        lambda d: change_parts(d, lang_encoder="x"),
        r"unknown field of .*openflamingo.json: 'lang_encoder'; did you mean 'lang_encoder_path'",
    ),
    "no language model": (
        lambda d: change_parts(d, lang_encoder_path=None),
        r"lang_encoder_path in .*openflamingo.json is None; expected a name or a directory",
    ),
    "an interval of zero": (
        lambda d: change_parts(d, cross_attn_every_n_layers=0),
        r"cross_attn_every_n_layers in .* is 0; expected an integer, at least 1",
    ),
    "another interval": (
        lambda d: change_parts(d, cross_attn_every_n_layers=2),
        r"gated blocks at \[0, 1\] of lang_encoder.model.layers, but cross_attn_every_n_layers 2 .* means \[1\]",
    ),
    "parts that are no object": (
        lambda d: (d / "openflamingo.json").write_text("[]"),
        r"openflamingo.json holds a list; expected the parts by their names",
    ),
    "a missing key": (
        lambda d: change_state(d, lambda state: state.pop("perceiver.norm.bias")),
        r"1 missing: perceiver.norm.bias",
    ),
    "a superfluous key": (
        lambda d: change_state(d, lambda state: state.update(more=torch.zeros(1))),
        r"1 superfluous: more",
    ),
    "a misshapen key": (
        lambda d: change_state(d, lambda state: state.update({"perceiver.norm.bias": torch.zeros(3)})),
        r"1 of another shape: perceiver.norm.bias \(3,\) \(expected \(24,\)\)",
    ),
    "another project's checkpoint": (
        lambda d: torch.save({"weight": torch.zeros(1)}, d / "checkpoint.pt"),
        r"checkpoint.pt holds no perceiver.latents \(found: weight",
    ),
    "latents of another width": (
        lambda d: change_state(d, lambda state: state.update({"perceiver.latents": torch.zeros(64, 20)})),
        r"perceiver.latents in .* has width 20, the patches of clip_vision_encoder_path 'clip' have 24",
    ),
    "a pickle": (
        lambda d: torch.save({"weight": Anything()}, d / "checkpoint.pt"),
        r"checkpoint.pt holds a pickle of more than tensors, which is never run",
    ),
    "no tensors": (
        lambda d: torch.save({"step": 3}, d / "checkpoint.pt"),
        r"checkpoint.pt holds a dict; expected tensors by their keys",
    ),
    "a file cut short": (
        lambda d: (d / "checkpoint.pt").write_bytes((d / "checkpoint.pt").read_bytes()[:-2000]),
        r"cannot read .*checkpoint.pt: .*; expected a whole file of tensors",
    ),
    "an unknown language model": (
        lambda d: change_parts(d, lang_encoder_path="/nowhere"),
        r"no directory /nowhere",
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
        ("connector", "qk_norm", True),
        ("connector", "latents", 7),
        ("fusion", "place", "start"),
        ("fusion", "gate", "vector"),
        ("fusion", "feed_forward", "swiglu"),
        ("vision_tower", "class_token", True),
        ("vision_tower", "layer", -2),
    ],
)
def test_what_their_class_cannot_express_is_named(
    made: tuple[Path, Any], tmp_path: Path, part: str, name: str, value: Any
) -> None:
    model = fl.load_model(made[0])
    getattr(model.config, part)[name] = value
    with pytest.raises(FlamingoError, match=f"cannot export as openflamingo: {part}.{name} is {value!r}"):
        fl.export(model, None, tmp_path / "out", format="openflamingo")
    assert list(tmp_path.iterdir()) == []


def test_parts_without_a_name_cannot_be_named(made: tuple[Path, Any], tmp_path: Path) -> None:
    model = fl.load_model(made[0])
    model.config.sources = {}
    with pytest.raises(FlamingoError, match="sources.vision.name is None"):
        fl.export(model, None, tmp_path / "out", format="openflamingo")


def test_a_head_with_a_bias_is_named(made: tuple[Path, Any], tmp_path: Path) -> None:
    model = fl.load_model(made[0])
    head: Any = model.language.get_output_embeddings()
    head.bias = torch.nn.Parameter(torch.zeros(WORDS))
    with pytest.raises(FlamingoError, match="text_config.model_type is 'llama', .* whose head has no bias"):
        fl.export(model, None, tmp_path / "out", format="openflamingo")


def test_an_unknown_format_is_named(made: tuple[Path, Any], tmp_path: Path) -> None:
    with pytest.raises(FlamingoError, match="unknown format 'openflaming'; did you mean 'openflamingo'"):
        fl.export(fl.load_model(made[0]), None, tmp_path / "out", format="openflaming")


@pytest.mark.parametrize(
    "place", ["OpenFlamingo-9B-vitl-mpt7b", "models--openflamingo--OpenFlamingo-9B-vitl-mpt7b/snapshots/0f"]
)
def test_a_release_is_known_by_the_name_of_its_directory(place: str, tmp_path: Path) -> None:
    from flamingo_lite.checkpoints.openflamingo_parts import read_parts

    (tmp_path / place).mkdir(parents=True)
    parts = read_parts(tmp_path / place)
    assert (parts.lang_encoder_path, parts.cross_attn_every_n_layers) == ("mosaicml/mpt-7b", 4)


def test_a_release_that_is_nowhere_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FlamingoError, match="cannot fetch checkpoint.pt of openflamingo/") as error:
        fl.load("openflamingo/OpenFlamingo-9B-vitl-mpt7b")
    assert "\n" not in str(error.value)
