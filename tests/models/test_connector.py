"""The connectors by name: one flat config, shapes, widths, and each of them inside a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flamingo_lite.config import load_config
from flamingo_lite.errors import FlamingoError
from flamingo_lite.models.build import build
from flamingo_lite.models.connector import CONNECTORS, ConnectorConfig, build_connector
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.nn.projector import MLPConfig
from flamingo_lite.nn.resampler import ResamplerConfig

SMALL: dict[str, dict[str, Any]] = {
    "identity": {},
    "linear": {},
    "mlp": {"depth": 2},
    "perceiver": {"depth": 1, "latents": 3, "heads": 2, "dim_head": 4, "qk_norm": True, "activation": "relu"},
    "qformer": {
        "depth": 2, "latents": 3, "heads": 2, "hidden_width": 8, "text": True, "vocabulary": 11, "positions": 4,
    },
}  # fmt: skip


def test_the_flat_config_has_every_field_of_every_connector_and_no_other() -> None:
    own = {(field.name, field.type) for kind in CONNECTORS.values() for field in fields(kind.config)}
    own = {(name, str(kind).removesuffix(" | None") + " | None") for name, kind in own}
    assert {(field.name, field.type) for field in fields(ConnectorConfig) if field.name != "name"} == own


@pytest.mark.parametrize("name", CONNECTORS)
def test_a_name_alone_means_the_connectors_own_defaults(name: str) -> None:
    assert ConnectorConfig(name).own() == CONNECTORS[name].config()


def test_what_is_set_is_set_false_and_zero_too() -> None:
    assert ConnectorConfig("mlp", bias=False, depth=3).own() == MLPConfig(bias=False, depth=3)
    assert ConnectorConfig("qformer", dropout=0.0).complete()["dropout"] == 0.0


@pytest.mark.parametrize("name", CONNECTORS)
def test_a_complete_dictionary_makes_the_same_config(name: str) -> None:
    config = ConnectorConfig(name, **SMALL[name])
    again = ConnectorConfig(**config.complete())
    assert again.own() == config.own() and again.complete() == config.complete()


def test_the_dictionary_of_an_older_model_still_makes_its_resampler() -> None:
    saved = {
        "depth": 2,
        "latents": 16,
        "heads": 4,
        "dim_head": 32,
        "ff_mult": 4,
        "width": None,
        "name": "perceiver",
    }
    assert ConnectorConfig(**saved).own() == ResamplerConfig(2, 16, 4, 32)


@pytest.mark.parametrize("name", CONNECTORS)
@settings(max_examples=10, deadline=None)
@given(
    images=st.integers(0, 3),
    patches=st.integers(1, 6),
    patch_width=st.integers(2, 9),
    language_width=st.integers(2, 9),
    width=st.none() | st.integers(2, 9),
)
def test_tokens_and_width_are_the_shape_of_what_comes_out(
    name: str, images: int, patches: int, patch_width: int, language_width: int, width: int | None
) -> None:
    width = None if name == "identity" else width
    config = ConnectorConfig(name, **SMALL[name], width=width)
    connector = build_connector(patch_width, patches, language_width, config)
    out = connector(torch.randn(images, patches, patch_width))
    assert out.shape == (images, connector.tokens, connector.width)
    by_default = patch_width if name in ("perceiver", "identity") else language_width
    assert connector.width == (width or by_default)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "mlpp"}, "unknown connector 'mlpp'; did you mean 'mlp'"),
        (
            {"name": "mlp", "latents": 4, "heads": 2},
            r"connector.latents=4, connector.heads=2: the connector mlp has no such field, only width, bias, "
            r"depth, activation, hidden_width, input_norm; leave it out or set it to null",
        ),
        ({"name": "identity", "depth": 1}, "connector.depth=1: the connector identity has .*, only its name"),
        ({"name": "linear", "depth": 1}, "connector.depth=1: the connector linear has no such field"),
        ({"qk_norm": True, "bias": False}, "connector.bias=False: the connector perceiver has no such field"),
        ({"name": "mlp", "depth": 0}, "connector.depth is 0; expected an integer, at least 1"),
        ({"name": "mlp", "hidden_width": 0}, "connector.hidden_width is 0"),
        ({"name": "linear", "width": -1}, "connector.width is -1"),
        ({"latents": "4"}, "connector.latents is '4'; expected an integer"),
        ({"activation": "rely"}, "connector.activation: 'rely'; did you mean 'relu'"),
    ],
)
def test_a_bad_config_is_one_line(config: dict[str, Any], message: str) -> None:
    with pytest.raises(FlamingoError, match=message) as raised:
        ConnectorConfig(**config)
    assert "\n" not in str(raised.value)


def test_the_command_line_chooses_a_connector() -> None:
    unset = [f"model.connector.{name}=null" for name in ("latents", "heads", "dim_head")]
    chosen = ["model.connector.name=mlp", "model.connector.depth=3", "model.connector.activation=silu"]
    assert load_config([*chosen, *unset]).model.connector.own() == MLPConfig(depth=3, activation="silu")


def test_the_command_line_is_told_which_fields_of_the_preset_a_connector_lacks() -> None:
    with pytest.raises(
        FlamingoError, match="connector.latents=16, .*: the connector linear has no such field"
    ):
        load_config(["model.connector.name=linear", "model.connector.depth=null"])


@pytest.fixture(params=CONNECTORS)
def connected(
    request: pytest.FixtureRequest,
    model_config: dict[str, Any],
    set_gates: Callable[[VisionLanguageModel, float], VisionLanguageModel],
) -> VisionLanguageModel:
    """A model with each connector in turn, gates open."""
    torch.manual_seed(0)
    connector = {"name": request.param, **SMALL[request.param]}
    return set_gates(build({**model_config, "connector": connector}), 0.7).eval()


BATCH: dict[str, Any] = {
    "input_ids": torch.tensor([[4, 259, 7, 9]]),
    "media_index": torch.tensor([[-1, 0, 0, 0]]),
    "pixel_values": torch.linspace(-1, 1, 3 * 16 * 16).view(1, 3, 16, 16),
}


def test_a_saved_model_has_its_connector_when_loaded(connected: VisionLanguageModel, tmp_path: Path) -> None:
    connected.save_pretrained(tmp_path)
    again = VisionLanguageModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(again(**BATCH).logits, connected(**BATCH).logits)


def test_every_parameter_of_a_connector_gets_a_gradient(connected: VisionLanguageModel) -> None:
    connected.train()(**BATCH, labels=BATCH["input_ids"]).loss.backward()
    assert [name for name, p in connected.connector.named_parameters() if p.grad is None] == []
    gradients = [p.grad for p in connected.connector.parameters()]
    assert not gradients or any(g is not None and bool(g.any()) for g in gradients)
