"""The MLP connector against LLaVA's projector in transformers, the linear one against what torch computes."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import CLIPVisionConfig, InternVLConfig, InternVLVisionConfig, LlamaConfig, LlavaConfig
from transformers.models.internvl.modeling_internvl import InternVLMultiModalProjector
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from flamingo_lite.nn.activations import ACTIVATIONS
from flamingo_lite.nn.projector import LinearConfig, LinearProjector, MLPConfig, MLPProjector

TOLERANCE = 1e-9  # in float64, where rounding hides nothing
SIZES = st.integers(1, 12)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    images=st.integers(0, 3),
    patches=SIZES,
    patch_width=SIZES,
    language_width=st.integers(1, 6).map(lambda half: 2 * half),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    bias=st.booleans(),
)
def test_an_mlp_of_two_layers_equals_llava_in_outputs_and_gradients(
    seed: int, images: int, patches: int, patch_width: int, language_width: int, activation: str, bias: bool
) -> None:
    torch.manual_seed(seed)
    theirs = LlavaMultiModalProjector(
        LlavaConfig(
            vision_config=CLIPVisionConfig(hidden_size=patch_width, num_attention_heads=1),
            text_config=LlamaConfig(hidden_size=language_width, num_attention_heads=1),
            projector_hidden_act=activation,
            multimodal_projector_bias=bias,
        )
    ).double()
    ours = MLPProjector(
        patch_width, patches, language_width, MLPConfig(activation=activation, bias=bias)
    ).double()
    ours.load_state_dict(
        {
            name.replace("linear_1", "layers.0").replace("linear_2", "layers.1"): weight
            for name, weight in theirs.state_dict().items()
        }
    )
    x = torch.randn(images, patches, patch_width, dtype=torch.float64)
    out, expected = ours(x), theirs(x)
    torch.testing.assert_close(out, expected, atol=TOLERANCE, rtol=TOLERANCE)
    weight = torch.randn_like(out)
    found = torch.autograd.grad((out * weight).sum(), list(ours.parameters()))
    wanted = torch.autograd.grad((expected * weight).sum(), list(theirs.parameters()))
    torch.testing.assert_close(found, wanted, atol=TOLERANCE, rtol=TOLERANCE)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), patches=SIZES, patch_width=SIZES, half=st.integers(1, 6))
def test_an_mlp_with_an_input_norm_equals_internvls(
    seed: int, patches: int, patch_width: int, half: int
) -> None:
    torch.manual_seed(seed)
    theirs = InternVLMultiModalProjector(
        InternVLConfig(
            vision_config=InternVLVisionConfig(hidden_size=patch_width, num_attention_heads=1),
            text_config=LlamaConfig(hidden_size=2 * half, num_attention_heads=1),
            downsample_ratio=1.0,
        )
    ).double()
    with torch.no_grad():
        for weight in theirs.layer_norm.parameters():
            weight.normal_()
    ours = MLPProjector(patch_width, patches, 2 * half, MLPConfig(input_norm=True)).double()
    names = {"linear_1": "layers.0", "linear_2": "layers.1", "layer_norm": "input_norm"}
    ours.load_state_dict(
        {
            names[module] + "." + kind: weight
            for (module, kind), weight in (
                (name.split("."), weight) for name, weight in theirs.state_dict().items()
            )
        }
    )
    x = 20 * torch.randn(2, patches, patch_width, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), atol=TOLERANCE, rtol=TOLERANCE)


@settings(max_examples=25, deadline=None)
@given(
    depth=st.integers(1, 4),
    width=st.none() | SIZES,
    hidden_width=st.none() | SIZES,
    patch_width=SIZES,
    bias=st.booleans(),
)
def test_an_mlp_is_its_linear_layers_with_activations_between(
    depth: int, width: int | None, hidden_width: int | None, patch_width: int, bias: bool
) -> None:
    language_width = 7
    config = MLPConfig(width=width, depth=depth, hidden_width=hidden_width, bias=bias, activation="silu")
    ours = MLPProjector(patch_width, 3, language_width, config)
    layers: list[nn.Module] = []
    before = patch_width
    for i in range(depth):
        last = i == depth - 1
        after = (width or language_width) if last else (hidden_width or width or language_width)
        layers += [nn.Linear(before, after, bias=bias), *([] if last else [nn.SiLU()])]
        before = after
    stack = nn.Sequential(*layers)
    ours.load_state_dict(dict(zip(ours.state_dict(), stack.state_dict().values(), strict=True)))
    x = torch.randn(2, 3, patch_width)
    assert (ours.tokens, ours.width) == (3, width or language_width)
    torch.testing.assert_close(ours(x), stack(x))


def test_a_linear_connector_is_one_linear_layer() -> None:
    plain = nn.Linear(5, 7)
    ours = LinearProjector(5, 3, 7, LinearConfig())
    ours.load_state_dict({f"projection.{name}": weight for name, weight in plain.state_dict().items()})
    x = torch.randn(2, 3, 5)
    assert (ours.tokens, ours.width) == (3, 7)
    torch.testing.assert_close(ours(x), plain(x))


def test_without_bias_there_is_none() -> None:
    assert LinearProjector(5, 3, 7, LinearConfig(bias=False)).state_dict().keys() == {"projection.weight"}
