"""Masked cross-attention with many images in a long row, ours and the peers' on the same numbers: time and memory, forward
and backward, of the attention itself and of whole gated blocks.

    python benchmarks/attention.py

compares outputs and gradients, times the sides in turns, and writes `attention.json` and `attention.md` beside this file.
flamingo-pytorch takes part where it is installed. `--help` lists the sizes.
Shape letters: t text positions, m images, n latents of an image, h heads, e head width, d width.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import pairing
import torch
from pairing import in_turns, ratio, refuse_apart, said, table, times
from peers import GATE, package
from torch import Tensor, nn

from flamingo_lite.nn.attention import attend
from flamingo_lite.nn.gated import GatedConfig, GatedCrossAttention
from flamingo_lite.nn.masks import media_layout
from flamingo_lite.training.live_bytes import LiveBytes
from flamingo_lite.training.rates import matrix_rate

OURS = "flamingo_lite"
OPEN_FLAMINGO = "OpenFlamingo 2.0.1"
FLAMINGO_PYTORCH = "flamingo-pytorch"
TOLERANCE = 1e-5
BLOCK_TOLERANCE = 1e-4  # of outputs up to about 10, after matrices of up to 8,192 rows
PASSES = ("forward", "forward and backward")

Side = Callable[[], Tensor]


def projected(options: argparse.Namespace) -> tuple[dict[str, Side], list[Tensor], list[Tensor]]:
    """The sides from queries (1 t (h e)), keys and values (m n (2 h e)) to outputs (1 t (h e)), what gradients are wanted
    of, and what is no part of the memory that is counted."""
    t, m, n, h, e = options.length, options.images, options.latents, 8, 64
    torch.manual_seed(0)
    query = torch.randn(1, t, h * e, device=options.device, requires_grad=True)
    both = torch.randn(1, m, n, 2 * h * e, device=options.device, requires_grad=True)
    marks = places(options)
    index = marks.long().cumsum(1) - 1

    def ours() -> Tensor:
        # The layout is made once for all layers of a forward; here it is in the time of one.
        layout = media_layout(index, m)
        key, value = (x.transpose(1, 2).contiguous() for x in both[0].view(m, n, 2, h, e).unbind(2))
        return attend(query.view(1, t, h, e), key, value, layout).view(1, t, h * e)

    sides = {OURS: ours}
    for name, kind in masked_attentions().items():
        module: Any = kind(h * e)
        for part in ("norm", "to_q", "to_kv", "to_out"):
            setattr(module, part, nn.Identity())
        module.to(options.device)
        sides[name] = lambda module=module: module(query, both, media_locations=marks)
    return sides, [query, both], [query, both, marks, index]


def masked_attentions() -> dict[str, Callable[[int], nn.Module]]:
    """The peers' `MaskedCrossAttention` of width d; its own code then runs on what is projected already."""
    theirs = package("helpers").MaskedCrossAttention
    found: dict[str, Callable[[int], nn.Module]] = {OPEN_FLAMINGO: lambda d: theirs(dim=d, dim_visual=2 * d)}
    if importlib.util.find_spec("flamingo_pytorch") is not None:
        from flamingo_pytorch.flamingo_pytorch import MaskedCrossAttention  # pyrefly: ignore

        found[FLAMINGO_PYTORCH] = lambda d: MaskedCrossAttention(dim=d)
    return found


def places(options: argparse.Namespace) -> Tensor:
    """(1 t) bool: where images stand, evenly, the first one behind a few words that read none."""
    marks = torch.zeros(1, options.length, dtype=torch.bool, device=options.device)
    marks[0, torch.arange(options.images) * (options.length // options.images) + 3] = True
    return marks


def blocks(options: argparse.Namespace, width: int) -> tuple[dict[str, Side], list[Tensor], list[Tensor]]:
    """Whole gated blocks of `width` on the media tokens (m n d) of a ViT-B or -L, the same weights on both sides."""
    torch.manual_seed(0)
    m, media_width = options.images, 768
    ours = GatedCrossAttention(width, media_width, GatedConfig()).to(options.device)
    theirs: Any = package("helpers").GatedCrossAttentionBlock(dim=width, dim_visual=media_width)
    theirs.to(options.device)
    nn.init.constant_(ours.attention_gate, GATE)
    nn.init.constant_(ours.feed_forward_gate, GATE)
    # Their parameters come in the order of ours, but for the gates.
    named = {**same_weights(ours), "attn_gate": ours.attention_gate, "ff_gate": ours.feed_forward_gate}
    theirs.load_state_dict({name: weight.detach() for name, weight in named.items()})
    text = torch.randn(1, options.length, width, device=options.device, requires_grad=True)
    media = torch.randn(1, m, options.latents, media_width, device=options.device, requires_grad=True)
    marks = places(options)
    index = marks.long().cumsum(1) - 1
    sides = {
        OURS: lambda: ours(text, media[0], media_layout(index, m)),
        OPEN_FLAMINGO: lambda: theirs(text, media, media_locations=marks),
    }
    weights = [*ours.parameters(), *theirs.parameters()]
    return sides, [text, media, *weights], [text, media, marks, index, *weights]


def same_weights(block: GatedCrossAttention) -> dict[str, Tensor]:
    attention, feed_forward = block.attention, block.feed_forward
    return {
        "attn.norm.weight": attention.norm.weight,
        "attn.norm.bias": attention.norm.bias,
        "attn.to_q.weight": attention.to_q.weight,
        "attn.to_kv.weight": attention.to_kv.weight,
        "attn.to_out.weight": attention.to_out.weight,
        "ff.0.weight": feed_forward.norm.weight,
        "ff.0.bias": feed_forward.norm.bias,
        "ff.1.weight": feed_forward.up.weight,
        "ff.3.weight": feed_forward.down.weight,
    }


def with_backward(side: Side, wanted: Sequence[Tensor], upstream: Tensor) -> Side:
    def both() -> Tensor:
        grads = torch.autograd.grad(side(), wanted, upstream, allow_unused=True)
        return torch.cat([grad.flatten() for grad in grads[:2]])

    return both


def compare(
    sides: dict[str, Side],
    wanted: Sequence[Tensor],
    apart: Sequence[Tensor],
    tolerance: float,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Both passes of the sides: how far apart, seconds by round, bytes at most beside inputs and weights."""
    torch.manual_seed(1)
    with torch.no_grad():
        upstream = torch.randn_like(sides[OURS]())
    found: dict[str, Any] = {}
    for passing in PASSES:
        backward = passing != PASSES[0]
        calls = {
            name: with_backward(side, wanted, upstream) if backward else side for name, side in sides.items()
        }
        with torch.set_grad_enabled(backward):
            first = calls[OURS]()
            furthest = {
                name: refuse_apart(f"{name}, {passing}", first, call(), tolerance)
                for name, call in calls.items()
                if name != OURS
            }
            seconds = in_turns(calls, options.rounds, options.device)
            most = {name: bytes_of(call, [*apart, upstream]) for name, call in calls.items()}
        peers = [name for name in sides if name != OURS]
        found[passing] = {
            "furthest_apart": furthest,
            "seconds": {name: pairing.median_with_interval(values) for name, values in seconds.items()},
            "speedup": {name: ratio(seconds, name, OURS) for name in peers},
            "bytes": most,
            "memory": {name: most[OURS] / most[name] for name in peers},
            "rounds": seconds,
        }
    return found


def bytes_of(call: Side, apart: Sequence[Tensor]) -> int:
    with LiveBytes(apart) as live:
        call()
    return live.most


def results(options: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, Any] = pairing.provenance("attention", options)
    sides, wanted, apart = projected(options)
    found["attention"] = compare(sides, wanted, apart, TOLERANCE, options)
    found["blocks"] = {
        str(width): compare(*blocks(options, width), BLOCK_TOLERANCE, options) for width in options.widths
    }
    n, inner = options.latents, 512
    # Scores and sums of the n latents that a position reads, and of all latents of the row.
    found["operations"] = {
        "read": 4 * options.length * n * inner,
        "all": 4 * options.length * n * options.images * inner,
    }
    found["matrix_rate"] = matrix_rate(options.device)
    return found


def rows_of(what: str, compared: dict[str, Any]) -> list[list[str]]:
    rows = []
    for passing in PASSES:
        part = compared[passing]
        for name, seconds in part["seconds"].items():
            ratios = ["", ""]
            if name != OURS:
                memory = part["memory"][name]
                ratios = [times(part["speedup"][name]), f"1/{1 / memory:.1f}"]
            size = f"{part['bytes'][name] / 1e6:,.0f} MB"
            rows.append(
                [f"{what}, {passing}", name, f"{said(seconds, 1, 1e3)} ms", ratios[0], size, ratios[1]]
            )
    return rows


def markdown(found: dict[str, Any], options: argparse.Namespace) -> str:
    rows = rows_of("attention", found["attention"])
    for width, compared in found["blocks"].items():
        rows += rows_of(f"block of width {int(width):,}", compared)
    head = ("what", "code", "time", "ours is faster", "memory", "ours takes")
    parts = [found["attention"], *found["blocks"].values()]
    apart = [max(d for p in PASSES for d in part[p]["furthest_apart"].values()) for part in parts]
    absent = "" if FLAMINGO_PYTORCH in found["versions"] else f"{FLAMINGO_PYTORCH} is not installed here. "
    return TEXT.format(
        table=table(head, rows),
        found=found,
        options=options,
        made=pairing.made(found),
        apart=apart,
        block_apart=max(apart[1:], default=0.0),
        absent=absent,
        read=found["operations"]["read"] / found["matrix_rate"] * 1e3,
        every=found["operations"]["all"] / found["matrix_rate"] * 1e3,
    )


TEXT = """# Masked cross-attention

Written by `{found[command]}`; do not edit.

{options.images} images of {options.latents} latents in a row of {options.length:,} positions, float32:

{table}

{options.note}

{made} Medians over {options.rounds} rounds, the sides in turns; ratios are medians of the rounds' ratios, intervals are
95% bootstrap intervals of the medians. {absent}

- **The same numbers**: before anything is timed, outputs, and gradients of queries, keys and values, have to agree to
  1e-5; they are {apart[0]:.1e} apart. Blocks, with the same weights and open gates, are {block_apart:.1e} apart at most.
- **attention** is what lies between projected queries, keys and values and its output: 8 heads of 64. Ours has the
  grouping of positions by image in its time, which a forward pass makes once for all layers. The peers' is the forward of
  their `MaskedCrossAttention`, its projections and its norm taken out.
- **block**: projections, attention, feed-forward and gates; backward gives gradients of text, media and weights. What a
  block saves is the attention; its matrices are the same on both sides, and with the width they take the time.
- **Memory** is the most bytes of tensors that live at once beside inputs, weights and the upstream gradient.
- **Limits**: the latents that are read cost {read:.2f} ms of this machine's matrix rate, {found[matrix_rate]:.3g}
  operations a second; all latents of the row would cost {every:.0f} ms, before a single one is masked.
"""


def main() -> None:
    parser = pairing.parser(__doc__, rounds=9)
    parser.add_argument("--length", type=int, help="text positions: 2,048, or 64 with --small")
    parser.add_argument("--images", type=int, help="64, or 4 with --small")
    parser.add_argument("--latents", type=int, help="of an image: 64, or 4 with --small")
    parser.add_argument("--widths", type=int, nargs="*", help="of the blocks: 512, 1,024 and 2,048")
    options = parser.parse_args()
    widths = [512, 1024, 2048], [32]
    pairing.fill_sizes(options, length=(2048, 64), images=(64, 4), latents=(64, 4), widths=widths)
    found = results(options)
    pairing.write(options.output, "attention", found, markdown(found, options))


if __name__ == "__main__":
    main()
