"""The resampler in IDEFICS's flavours against transformers' own (OpenFlamingo's: tests/parity)."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import IdeficsConfig
from transformers.models.idefics.perceiver import IdeficsPerceiverResampler

from flamingo_lite.nn.resampler import PerceiverResampler, ResamplerConfig

TOLERANCE = 1e-9  # in float64: a norm over two or three numbers loses half of float32's digits

KEYS = {
    "layers.": "blocks.",
    ".attention.norm_media.": ".0.context_layer_norm.",
    ".attention.norm_latents.": ".0.latents_layer_norm.",
    ".attention.norm_query.": ".0.q_layer_norm.",
    ".attention.norm_key.": ".0.k_layer_norm.",
    ".attention.to_q.": ".0.q_proj.",
    ".attention.to_out.": ".0.output_proj.",
    ".feed_forward.norm.": ".1.ln.",
    ".feed_forward.up.": ".1.fc.",
    ".feed_forward.down.": ".1.c_proj.",
}


def in_our_words(theirs: dict[str, Tensor], ours: PerceiverResampler) -> dict[str, Tensor]:
    """Tensors of theirs by our names; all of them are used."""
    left = dict(theirs)
    named = {}
    for name in ours.state_dict():
        if name.endswith("to_kv.weight"):
            stem = name.replace("layers.", "blocks.").replace("attention.to_kv.weight", "0.")
            named[name] = torch.cat([left.pop(f"{stem}{part}_proj.weight") for part in "kv"])
            continue
        their_name = "layer_" + name if name.startswith("norm.") else name
        for our_part, their_part in KEYS.items():
            their_name = their_name.replace(our_part, their_part)
        named[name] = left.pop(their_name)
    assert not left
    return named


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    images=st.integers(1, 3),
    patches=st.integers(1, 7),
    latents=st.integers(1, 4),
    depth=st.integers(1, 3),
    heads=st.integers(1, 3),
    dim_head=st.integers(2, 6),
    width=st.integers(4, 16),
    qk_norm=st.booleans(),
)
def test_resampler_equals_idefics_in_outputs_and_gradients(
    seed: int,
    images: int,
    patches: int,
    latents: int,
    depth: int,
    heads: int,
    dim_head: int,
    width: int,
    qk_norm: bool,
) -> None:
    torch.manual_seed(seed)
    config = IdeficsConfig(
        vision_config={"embed_dim": width}, perceiver_config={"qk_layer_norms_perceiver": qk_norm}
    )
    theirs = IdeficsPerceiverResampler(config, width, depth, heads, dim_head, latents).double()
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(0.1 * torch.randn_like(p))  # stock norms are 1 and 0: an exchange would go unnoticed
    ours = PerceiverResampler(
        width, ResamplerConfig(depth, latents, heads, dim_head, qk_norm=qk_norm, activation="relu")
    )
    ours.double().load_state_dict(in_our_words(dict(theirs.state_dict()), ours))
    x = torch.randn(images, patches, width, dtype=torch.float64)
    weight = torch.randn(images, latents, width, dtype=torch.float64)
    out, expected = ours(x), theirs(x)
    torch.testing.assert_close(out, expected, atol=TOLERANCE, rtol=TOLERANCE)
    (out * weight).sum().backward()
    (expected * weight).sum().backward()
    wanted = in_our_words({name: p.grad for name, p in theirs.named_parameters()}, ours)
    for name, p in ours.named_parameters():
        torch.testing.assert_close(
            p.grad, wanted[name], atol=TOLERANCE, rtol=TOLERANCE, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_latents_start_as_standard_normals() -> None:
    torch.manual_seed(0)
    latents = PerceiverResampler(64, ResamplerConfig(depth=1, latents=64)).latents
    assert abs(latents.std().item() - 1) < 0.05 and abs(latents.mean().item()) < 0.05


def test_a_width_of_its_own_projects_the_patches() -> None:
    ours = PerceiverResampler(6, ResamplerConfig(depth=1, latents=3, width=10))
    assert ours(torch.randn(2, 5, 6)).shape == (2, 3, 10)
    assert ours.width == 10
