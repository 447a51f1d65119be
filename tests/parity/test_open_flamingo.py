"""The resampler and the gated block against OpenFlamingo's own, weights copied: outputs and gradients."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from flamingo_lite.nn.gated import GatedConfig, GatedCrossAttention
from flamingo_lite.nn.masks import media_layout, previous_layout
from flamingo_lite.nn.resampler import PerceiverResampler, ResamplerConfig
from tests.parity.open_flamingo_reference import source

TOLERANCE = 1e-5

RESAMPLER_KEYS = {
    ".attention.": ".0.",
    ".feed_forward.norm.": ".1.0.",
    ".feed_forward.up.": ".1.1.",
    ".feed_forward.down.": ".1.3.",
}
GATED_KEYS = {
    "attention_gate": "attn_gate",
    "feed_forward_gate": "ff_gate",
    "attention.": "attn.",
    "feed_forward.norm.": "ff.0.",
    "feed_forward.up.": "ff.1.",
    "feed_forward.down.": "ff.3.",
}


def their_name(name: str, keys: dict[str, str]) -> str:
    for ours, theirs in keys.items():
        if (name.startswith(ours) and keys is GATED_KEYS) or (ours in name and keys is RESAMPLER_KEYS):
            return name.replace(ours, theirs, 1)
    return name


def copy_and_pair(
    ours: nn.Module, theirs: nn.Module, keys: dict[str, str]
) -> list[tuple[str, Tensor, Tensor]]:
    """Copy their weights into ours (all of them, none left over) and pair the parameters."""
    their_parameters = dict(theirs.named_parameters())
    pairs = [(name, p, their_parameters.pop(their_name(name, keys))) for name, p in ours.named_parameters()]
    assert not their_parameters
    with torch.no_grad():
        for _, p, q in pairs:
            p.copy_(q)
    return pairs


def randomise(module: nn.Module) -> None:
    # Stock norms are 1 and 0: an exchanged pair of them would go unnoticed.
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.1 * torch.randn_like(p))


def assert_equal_gradients(pairs: list[tuple[str, Tensor, Tensor]]) -> None:
    for name, p, q in pairs:
        assert p.grad is not None and q.grad is not None, name
        torch.testing.assert_close(
            p.grad, q.grad, atol=TOLERANCE, rtol=TOLERANCE, msg=lambda m, n=name: f"{n}: {m}"
        )


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    images=st.integers(1, 3),
    patches=st.integers(1, 7),
    latents=st.integers(1, 4),
    depth=st.integers(1, 2),
    heads=st.integers(1, 3),
)
def test_resampler_equals_open_flamingo(
    seed: int, images: int, patches: int, latents: int, depth: int, heads: int
) -> None:
    torch.manual_seed(seed)
    helpers = source("helpers")
    theirs = helpers.PerceiverResampler(
        dim=12, depth=depth, dim_head=4, heads=heads, num_latents=latents, ff_mult=2
    )
    randomise(theirs)
    ours = PerceiverResampler(12, ResamplerConfig(depth, latents, heads, dim_head=4, ff_mult=2))
    pairs = copy_and_pair(ours, theirs, RESAMPLER_KEYS)
    x, weight = torch.randn(images, patches, 12), torch.randn(images, latents, 12)
    out, expected = ours(x), theirs(x[None, :, None])[0]
    torch.testing.assert_close(out, expected, atol=TOLERANCE, rtol=TOLERANCE)
    (out * weight).sum().backward()
    (expected * weight).sum().backward()
    assert_equal_gradients(pairs)


@st.composite
def image_marks(draw: st.DrawFn) -> Tensor:
    """(b t) bool: where `<image>` stands; rows have different numbers of images, also none."""
    rows, length = draw(st.integers(1, 3)), draw(st.integers(1, 9))
    marks = [draw(st.lists(st.booleans(), min_size=length, max_size=length)) for _ in range(rows)]
    return torch.tensor(marks)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), marks=image_marks(), sees=st.sampled_from(["immediate", "all_previous"]))
def test_gated_block_equals_open_flamingo(seed: int, marks: Tensor, sees: str) -> None:
    torch.manual_seed(seed)
    count = marks.sum(1)
    if sees == "all_previous":
        # Positions before the first image get uniform attention over everything there, and nothing here.
        marks[:, 0] = True
        count = marks.sum(1)
    if count.max() == 0:
        return
    helpers = source("helpers")
    theirs = helpers.GatedCrossAttentionBlock(
        dim=10, dim_visual=6, dim_head=4, heads=2, ff_mult=2, only_attend_immediate_media=sees == "immediate"
    )
    randomise(theirs)
    ours = GatedCrossAttention(10, 6, GatedConfig(heads=2, dim_head=4, ff_mult=2, sees=sees))
    pairs = copy_and_pair(ours, theirs, GATED_KEYS)
    with torch.no_grad():
        theirs.attn_gate.fill_(0.5)
        ours.attention_gate.fill_(0.5)
    x, weight = torch.randn(*marks.shape, 10), torch.randn(*marks.shape, 10)
    # Theirs: (b T n d), every row padded to the most images. Ours: the images that are there, flat.
    padded = torch.randn(len(marks), int(count.max()), 3, 6)
    flat = torch.cat([row[:n] for row, n in zip(padded, count.tolist(), strict=True)])
    first = count.cumsum(0) - count
    time = marks.cumsum(1)
    media_index = torch.where(time > 0, first[:, None] + time - 1, -1)
    if sees == "immediate":
        layout = media_layout(media_index, len(flat))
    else:
        layout = previous_layout(media_index, None)
    out, expected = ours(x, flat, layout), theirs(x, padded, marks)
    torch.testing.assert_close(out, expected, atol=TOLERANCE, rtol=TOLERANCE)
    (out * weight).sum().backward()
    (expected * weight).sum().backward()
    assert_equal_gradients(pairs)
