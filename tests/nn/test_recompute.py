"""What is computed again: the same numbers, less is kept, and no product of matrices is made twice."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from flamingo_lite.nn.feed_forward import FeedForward, SwiGLU
from flamingo_lite.nn.gated import CrossAttention, GatedConfig
from flamingo_lite.nn.resampler import PerceiverAttention, ResamplerConfig

WIDTH, INNER = 32, 96
GATED = GatedConfig(heads=2, dim_head=16)
RESAMPLER = ResamplerConfig(heads=2, dim_head=16, qk_norm=False)


def plain_feed_forward(module: FeedForward, x: Tensor) -> Tensor:
    return module.down(module.activation(module.up(module.norm(x))))


def plain_swiglu(module: SwiGLU, x: Tensor) -> Tensor:
    x = module.norm(x)
    return module.down(module.activation(module.swish(x)) * module.up(x))


def plain_query(module: CrossAttention, x: Tensor) -> Tensor:
    return module.to_q(module.norm(x)).unflatten(2, (2, 16))


def plain_resampling(module: PerceiverAttention, x: Tensor) -> Tensor:
    latents = module.norm_latents(x[:, :4])
    key, value = module.to_kv(torch.cat((module.norm_media(x), latents), 1)).chunk(2, dim=2)
    heads = [part.unflatten(2, (2, 16)).transpose(1, 2) for part in (module.to_q(latents), key, value)]
    weights = (heads[0] @ heads[1].mT / 4).softmax(-1)
    return module.to_out((weights @ heads[2]).transpose(1, 2).flatten(2))


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[..., Tensor], Callable[..., Tensor]]] = {
    "feed-forward": (
        lambda: FeedForward(nn.LayerNorm(WIDTH), WIDTH, INNER), plain_feed_forward, lambda module, x: module(x),
    ),
    "swiglu": (
        lambda: SwiGLU(nn.RMSNorm(WIDTH), WIDTH, INNER), plain_swiglu, lambda module, x: module(x),
    ),
    "query": (
        lambda: CrossAttention(WIDTH, WIDTH, GATED), plain_query, lambda module, x: module.query(x),
    ),
    "resampler": (
        lambda: PerceiverAttention(WIDTH, RESAMPLER), plain_resampling,
        lambda module, x: module(x, x[:, :4]),
    ),
}  # fmt: skip


def gradients(run: Callable[..., Tensor], module: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor | None]]:
    x = x.clone().requires_grad_()
    out = run(module, x)
    found = torch.autograd.grad(out.square().sum(), [x, *module.parameters()], allow_unused=True)
    return out.detach(), list(found)


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_the_plain_computation(name: str) -> None:
    torch.manual_seed(0)
    build, plain, ours = CASES[name]
    module, x = build().double(), torch.randn(2, 8, WIDTH, dtype=torch.float64)
    torch.testing.assert_close(gradients(ours, module, x), gradients(plain, module, x))


@pytest.mark.parametrize("name", ["feed-forward", "swiglu", "query"])
def test_no_product_is_made_twice(name: str) -> None:
    build, plain, ours = CASES[name]
    module, x = build(), torch.randn(2, 8, WIDTH)
    counts = []
    for run in (ours, plain):
        with FlopCounterMode(display=False) as counter:
            run(module, x.clone().requires_grad_()).square().sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("name", CASES)
def test_less_is_kept_for_the_backward_pass(name: str) -> None:
    build, plain, ours = CASES[name]
    module, x = build(), torch.randn(2, 8, WIDTH).requires_grad_()
    kept = []
    for run in (ours, plain):
        sizes: dict[int, int] = {}
        with saved_tensors_hooks(
            lambda t, sizes=sizes: sizes.update({t.data_ptr(): t.nbytes}) or t, lambda t: t
        ):
            out = run(module, x)
        kept.append(sum(size for place, size in sizes.items() if place != x.data_ptr()))
        del out
    assert kept[0] < kept[1]


def test_without_gradients_nothing_is_recorded() -> None:
    module, x = FeedForward(nn.LayerNorm(WIDTH), WIDTH, INNER), torch.randn(2, 8, WIDTH)
    with torch.no_grad():
        assert module(x).grad_fn is None
        torch.testing.assert_close(module(x), plain_feed_forward(module, x))
