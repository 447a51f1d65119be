"""The gated block's flavours against transformers' own layers, weights copied: outputs and gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import IdeficsConfig
from transformers.models.idefics.modeling_idefics import IdeficsGatedCrossAttentionLayer
from transformers.models.mllama.configuration_mllama import MllamaTextConfig
from transformers.models.mllama.modeling_mllama import MllamaCrossAttentionDecoderLayer

from flamingo_lite.errors import FlamingoError
from flamingo_lite.nn.cache import MediaCache
from flamingo_lite.nn.gated import GatedConfig, GatedCrossAttention, gate_value
from flamingo_lite.nn.masks import MediaLayout, PreviousLayout, media_layout, previous_layout

TOLERANCE = 1e-5
HIDDEN = torch.finfo(torch.float32).min
WIDTH, MEDIA_WIDTH = 12, 6

IDEFICS = {"norm": "rms", "norm_eps": 1e-6, "feed_forward": "swiglu", "feed_forward_width": 10}
FLAVOURS: dict[str, dict[str, Any]] = {
    "flamingo": {},
    "idefics": {**IDEFICS, "gate": "vector", "qk_norm": "rms", "dim_head": None},
    "shared keys": {**IDEFICS, "key_value_heads": 1},
    "layer norms": {"qk_norm": "layer", "gate": "vector"},
}


def flavour(name: str, **changes: Any) -> GatedCrossAttention:
    """A block of the flavour, gates open, norms away from 1 and 0 so that none goes unnoticed."""
    sizes = {"heads": 2, "dim_head": 4, "ff_mult": 2}
    block = GatedCrossAttention(
        WIDTH, MEDIA_WIDTH, GatedConfig(**{**sizes, "gate_mean": 0.6, **FLAVOURS[name], **changes})
    )
    randomise(block)
    return block


def randomise(module: nn.Module) -> None:
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.2 * torch.randn_like(p))


@dataclass
class Scene:
    """One layout of images, as ours (flat) and as theirs (every row padded to the most images)."""

    layout: MediaLayout | PreviousLayout
    index: Tensor  # (b t)
    flat: Tensor  # (m n d)
    padded: Tensor  # (b i n d)
    is_image: Tensor  # (b i) False where padded
    mask: Tensor  # (b 1 t (i n)), 0 where visible, else the lowest number

    @property
    def has_image(self) -> Tensor:
        return self.index >= 0


def scene(marks: Tensor, latents: int, width: int, sees: str) -> Scene:
    """`marks` (b t) bool: where `<image>` stands. The media tokens are random."""
    count, time = marks.sum(1), marks.cumsum(1)
    places = torch.arange(max(1, int(count.max())))
    is_image = places < count[:, None]
    padded = torch.randn(len(marks), len(places), latents, width)
    index = torch.where(time > 0, (count.cumsum(0) - count)[:, None] + time - 1, -1)
    last = (time - 1)[..., None]
    visible = (places == last) if sees == "immediate" else (places <= last)
    mask = torch.zeros(visible.shape).masked_fill(~visible, HIDDEN).repeat_interleave(latents, -1)[:, None]
    flat = padded[is_image].clone()
    layout = media_layout(index, len(flat)) if sees == "immediate" else previous_layout(index, None)
    return Scene(layout, index, flat.requires_grad_(), padded.requires_grad_(), is_image, mask)


@st.composite
def image_marks(draw: st.DrawFn) -> Tensor:
    """(b t) bool: rows have different numbers of images, also none, and text may come first."""
    rows, length = draw(st.integers(1, 3)), draw(st.integers(1, 9))
    marks = [draw(st.lists(st.booleans(), min_size=length, max_size=length)) for _ in range(rows)]
    return torch.tensor(marks)


SEES = st.sampled_from(["immediate", "all_previous"])
SEEDS = st.integers(0, 2**31)


def as_ours(layer: nn.Module, gates: tuple[str, str], of: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """A layer of IDEFICS or mllama as our names: `of` each of its parameters, the weights or their gradients."""
    theirs = {name: of(p) for name, p in layer.named_parameters()}
    renamed = {
        "attention.norm.weight": theirs.pop("input_layernorm.weight"),
        "attention.to_q.weight": theirs.pop("cross_attn.q_proj.weight"),
        "attention.to_kv.weight": torch.cat(
            (theirs.pop("cross_attn.k_proj.weight"), theirs.pop("cross_attn.v_proj.weight"))
        ),
        "attention.to_out.weight": theirs.pop("cross_attn.o_proj.weight"),
        "feed_forward.norm.weight": theirs.pop("post_attention_layernorm.weight"),
        "feed_forward.swish.weight": theirs.pop("mlp.gate_proj.weight"),
        "feed_forward.up.weight": theirs.pop("mlp.up_proj.weight"),
        "feed_forward.down.weight": theirs.pop("mlp.down_proj.weight"),
        "attention_gate": theirs.pop(gates[0]).flatten(),
        "feed_forward_gate": theirs.pop(gates[1]).flatten(),
    }
    for name in list(theirs):
        ours = {"q": "attention.norm_query.weight", "k": "attention.norm_key.weight"}[name.split(".")[1][0]]
        renamed[ours] = theirs.pop(name)
    return renamed


def assert_same_gradients(
    ours: nn.Module, theirs: dict[str, Tensor], inputs: list[tuple[str, Tensor | None, Tensor | None]]
) -> None:
    pairs = [(name, p.grad, theirs[name]) for name, p in ours.named_parameters()] + inputs
    for name, mine, wanted in pairs:
        assert mine is not None and wanted is not None, name
        torch.testing.assert_close(
            mine, wanted, atol=TOLERANCE, rtol=TOLERANCE, msg=lambda m, n=name: f"{n}: {m}"
        )


@settings(max_examples=40, deadline=None)
@given(
    seed=SEEDS,
    marks=image_marks(),
    sees=SEES,
    heads=st.integers(1, 3),
    dim_head=st.sampled_from([2, 4]),
    inner=st.integers(1, 9),
    latents=st.integers(1, 4),
    alpha=st.sampled_from(["float", "vector"]),
    qk_norm=st.booleans(),
)
def test_the_idefics_flavour_equals_transformers_layer(
    seed: int,
    marks: Tensor,
    sees: str,
    heads: int,
    dim_head: int,
    inner: int,
    latents: int,
    alpha: str,
    qk_norm: bool,
) -> None:
    torch.manual_seed(seed)
    width = heads * dim_head
    config = IdeficsConfig(
        hidden_size=width, num_attention_heads=heads, intermediate_size=inner, alpha_type=alpha,
        qk_layer_norms=qk_norm, vision_config={"embed_dim": MEDIA_WIDTH}, attn_implementation="eager",
    )  # fmt: skip
    theirs = IdeficsGatedCrossAttentionLayer(config, layer_idx=0)
    randomise(theirs)
    ours = GatedCrossAttention(
        width,
        MEDIA_WIDTH,
        GatedConfig(
            heads=heads, dim_head=None, norm="rms", norm_eps=config.rms_norm_eps, feed_forward="swiglu",
            feed_forward_width=inner, gate={"float": "scalar", "vector": "vector"}[alpha],
            qk_norm="rms" if qk_norm else "none",
        ),
    )  # fmt: skip
    gates = ("alpha_cross_attn", "alpha_dense")
    ours.load_state_dict(as_ours(theirs, gates, lambda p: p.detach()))
    seen = scene(marks, latents, MEDIA_WIDTH, sees)
    x, weight = torch.randn(*marks.shape, width, requires_grad=True), torch.randn(*marks.shape, width)
    y = x.detach().clone().requires_grad_()
    out = ours(x, seen.flat, seen.layout)
    expected = theirs(
        y,
        image_hidden_states=seen.padded.flatten(1, 2),
        image_attention_mask=seen.mask,
        cross_attention_gate=seen.has_image.float(),
    )
    torch.testing.assert_close(out, expected, atol=TOLERANCE, rtol=TOLERANCE)
    (out * weight).sum().backward()
    (expected * weight).sum().backward()
    assert seen.padded.grad is not None
    assert_same_gradients(
        ours,
        as_ours(theirs, gates, _gradient),
        [("text", x.grad, y.grad), ("media", seen.flat.grad, seen.padded.grad[seen.is_image])],
    )


def _gradient(p: Tensor) -> Tensor:
    assert p.grad is not None
    return p.grad


@settings(max_examples=25, deadline=None)
@given(
    seed=SEEDS,
    marks=image_marks(),
    sees=SEES,
    shared=st.integers(1, 2),
    key_value_heads=st.integers(1, 2),
    latents=st.integers(1, 4),
)
def test_mllamas_layer_is_a_flavour_wherever_there_is_an_image(
    seed: int, marks: Tensor, sees: str, shared: int, key_value_heads: int, latents: int
) -> None:
    torch.manual_seed(seed)
    heads, width = shared * key_value_heads, 8
    config = MllamaTextConfig(
        hidden_size=width, num_attention_heads=heads, num_key_value_heads=key_value_heads,
        intermediate_size=10, attn_implementation="eager",
    )  # fmt: skip
    theirs = MllamaCrossAttentionDecoderLayer(config, layer_idx=0)
    randomise(theirs)
    ours = GatedCrossAttention(
        width,
        width,
        GatedConfig(
            heads=heads, key_value_heads=key_value_heads, dim_head=None, norm="rms",
            norm_eps=config.rms_norm_eps, qk_norm="rms", feed_forward="swiglu", feed_forward_width=10,
        ),
    )  # fmt: skip
    gates = ("cross_attn_attn_gate", "cross_attn_mlp_gate")
    ours.load_state_dict(as_ours(theirs, gates, lambda p: p.detach()))
    seen = scene(marks, latents, width, sees)
    x = torch.randn(*marks.shape, width, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    has_image = seen.has_image[..., None].float()
    # Where there is no image, theirs attends to everything and skips the feed-forward: not our contract.
    weight = torch.randn(*marks.shape, width) * has_image
    out = ours(x, seen.flat, seen.layout) * has_image
    expected = has_image * theirs(
        y,
        cross_attention_states=seen.padded.flatten(1, 2),
        cross_attention_mask=seen.mask * has_image[:, None],
        attention_mask=None,
        full_text_row_masked_out_mask=has_image[:, None],
    )
    torch.testing.assert_close(out, expected, atol=TOLERANCE, rtol=TOLERANCE)
    (out * weight).sum().backward()
    (expected * weight).sum().backward()
    assert seen.padded.grad is not None
    assert_same_gradients(
        ours,
        as_ours(theirs, gates, _gradient),
        [("text", x.grad, y.grad), ("media", seen.flat.grad, seen.padded.grad[seen.is_image])],
    )


@pytest.mark.parametrize("alpha", ["float", "vector"])
@pytest.mark.parametrize(("initializer", "mean"), [("zeros", 0.0), ("ones", 1.0)])
def test_constant_gates_start_where_those_of_idefics_do(alpha: str, initializer: str, mean: float) -> None:
    config = IdeficsConfig(
        hidden_size=8, num_attention_heads=2, intermediate_size=4, alpha_type=alpha,
        alpha_initializer=initializer,
    )  # fmt: skip
    theirs = IdeficsGatedCrossAttentionLayer(config, layer_idx=0)
    gate = {"float": "scalar", "vector": "vector"}[alpha]
    ours = GatedCrossAttention(8, 8, GatedConfig(heads=2, gate=gate, gate_mean=mean))
    assert torch.equal(ours.attention_gate, theirs.alpha_cross_attn.flatten())
    assert torch.equal(ours.feed_forward_gate, theirs.alpha_dense.flatten())


def test_drawn_gates_have_the_mean_and_spread_asked_for() -> None:
    torch.manual_seed(0)
    config = GatedConfig(
        heads=1, dim_head=1, feed_forward_width=1, gate="vector", gate_mean=0.5, gate_std=0.1
    )
    gates = GatedCrossAttention(4000, 1, config).attention_gate
    assert abs(gates.mean().item() - 0.5) < 0.01 and abs(gates.std().item() - 0.1) < 0.01


@pytest.mark.parametrize("name", FLAVOURS)
@settings(max_examples=15, deadline=None)
@given(seed=SEEDS, marks=image_marks(), sees=SEES)
def test_a_position_without_an_image_gets_exactly_zero(
    name: str, seed: int, marks: Tensor, sees: str
) -> None:
    torch.manual_seed(seed)
    attention, seen = flavour(name).attention, scene(marks, 3, MEDIA_WIDTH, sees)
    update = attention(torch.randn(*marks.shape, WIDTH), *attention.project(seen.flat), seen.layout)
    assert (update[~seen.has_image] == 0).all()
    assert (update[seen.has_image] != 0).all()


@pytest.mark.parametrize("name", FLAVOURS)
def test_closed_gates_leave_the_text_as_it_was_bit_for_bit(name: str) -> None:
    torch.manual_seed(0)
    block, seen = (
        flavour(name),
        scene(torch.tensor([[False, True, False, True]]), 3, MEDIA_WIDTH, "immediate"),
    )
    with torch.no_grad():
        block.attention_gate.zero_()
        block.feed_forward_gate.zero_()
    x = torch.randn(1, 4, WIDTH)
    assert torch.equal(block(x, seen.flat, seen.layout), x)


@pytest.mark.parametrize("name", FLAVOURS)
def test_cached_keys_are_normed_once_and_give_the_same(name: str) -> None:
    torch.manual_seed(0)
    block, seen = (
        flavour(name),
        scene(torch.tensor([[False, True, False, True]]), 3, MEDIA_WIDTH, "immediate"),
    )
    x, cache = torch.randn(1, 4, WIDTH), MediaCache(media=seen.flat.detach())
    with torch.no_grad():
        from_tokens = block(x, seen.flat, seen.layout)
        for _ in range(2):
            assert torch.equal(block(x, cache, seen.layout), from_tokens)


@pytest.mark.parametrize("sees", ["immediate", "all_previous"])
@pytest.mark.parametrize("name", FLAVOURS)
def test_mixed_precision_stays_near_full_precision(name: str, sees: str) -> None:
    torch.manual_seed(0)
    block, seen = flavour(name), scene(torch.tensor([[False, True, False, True]]), 3, MEDIA_WIDTH, sees)
    x = torch.randn(1, 4, WIDTH)
    full = block(x, seen.flat, seen.layout)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = block(x, seen.flat, seen.layout)
        key, value = block.attention.project(seen.flat)
    assert key.dtype == value.dtype == torch.bfloat16
    torch.testing.assert_close(mixed.float(), full, atol=0.05, rtol=0.05)


@pytest.mark.parametrize(
    ("place", "every", "layers"),
    [("end", 4, [3, 7]), ("start", 4, [0, 4]), ("end", 3, [2, 5]), ("start", 3, [0, 3, 6])],
)
def test_a_block_ends_or_starts_each_interval(place: str, every: int, layers: list[int]) -> None:
    config = GatedConfig(place=place, every=every)
    assert [i for i in range(8) if config.stands_before(i)] == layers


def test_places_for_every_layer_are_the_same() -> None:
    assert all(GatedConfig(place=place).stands_before(i) for place in ("end", "start") for i in range(4))


def test_a_scalar_gates_value_keeps_its_sign_and_a_vectors_does_not_cancel() -> None:
    assert gate_value(torch.tensor([-0.5])) == pytest.approx(-0.46211716)
    assert gate_value(torch.tensor([0.5, -0.5])) == pytest.approx(0.46211716)


def test_a_config_saved_before_there_were_flavours_loads_as_open_flamingos() -> None:
    saved = {"every": 2, "heads": 4, "dim_head": 16, "ff_mult": 4, "sees": "immediate"}
    block = GatedCrossAttention(WIDTH, MEDIA_WIDTH, GatedConfig(**saved))
    assert set(block.state_dict()) == {
        "attention_gate", "feed_forward_gate", "attention.norm.weight", "attention.norm.bias",
        "attention.to_q.weight", "attention.to_kv.weight", "attention.to_out.weight",
        "feed_forward.norm.weight", "feed_forward.norm.bias", "feed_forward.up.weight",
        "feed_forward.down.weight",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"place": "middle"}, "fusion.place is 'middle'; it must be 'end' or 'start'"),
        ({"gate": "float"}, "fusion.gate is 'float'; it must be 'scalar' or 'vector'"),
        ({"qk_norm": None}, "fusion.qk_norm is None; it must be 'none' or 'layer' or 'rms'"),
        ({"norm": ["rms"]}, "it must be 'layer' or 'rms'"),
        ({"feed_forward": "relu"}, "it must be 'gelu' or 'swiglu'"),
        ({"feed_forward_width": 0}, "fusion.feed_forward_width is 0; expected an integer, at least 1"),
        ({"heads": "8"}, "fusion.heads is '8'; expected an integer, at least 1"),
        ({"heads": 8, "key_value_heads": 3}, "fusion.key_value_heads is 3; it must divide fusion.heads, 8"),
        ({"gate_std": -0.1}, "fusion.gate_std is -0.1; it must be 0 or more"),
        ({"gate_mean": float("nan")}, "fusion.gate_mean is nan; it must be a finite number"),
        ({"norm_eps": 0}, "fusion.norm_eps is 0; it must be above 0"),
        ({"norm_eps": "1e-5"}, "fusion.norm_eps is '1e-5'; it must be a finite number"),
    ],
)
def test_bad_fields_end_in_one_line(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(FlamingoError) as error:
        GatedConfig(**fields)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"heads": None}, "fusion.heads is null outside a language model"),
        ({"heads": 5, "dim_head": None}, "5 heads do not divide the width 12; give fusion.dim_head"),
    ],
)
def test_sizes_that_cannot_be_told_end_in_one_line(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(FlamingoError, match=message):
        GatedCrossAttention(WIDTH, MEDIA_WIDTH, GatedConfig(**fields))
