"""The loss in chunks beside the loss over all logits: memory and time of a step at a large vocabulary.

    python benchmarks/loss.py --time

counts the bytes of live tensors (on fake tensors, so no memory is needed), with `--time` runs both in turns, and writes
`loss.md` beside this file. Three ways: all logits at once, as transformers' models do; chunks whose logits are computed
again in the backward pass; chunks whose gradients are computed beside their losses (`flamingo_lite.nn.loss`).
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint
from transformers.loss.loss_utils import ForCausalLMLoss

from flamingo_lite.nn.loss import chunk_rows, next_token_loss
from flamingo_lite.training.live_bytes import LiveBytes

VOCABULARY = 128 * 1024
TOKENS = 4096
WIDTH = 1024

Loss = Callable[[Tensor, Tensor, nn.Linear], Tensor]


def all_logits(hidden: Tensor, labels: Tensor, head: nn.Linear) -> Tensor:
    return ForCausalLMLoss(head(hidden), labels, head.out_features)


def recomputed(hidden: Tensor, labels: Tensor, head: nn.Linear) -> Tensor:
    def part(states: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(head(states).float(), targets, reduction="sum")

    states, targets = hidden[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    size = chunk_rows(head.out_features)
    parts = zip(states.split(size), targets.split(size), strict=True)
    return torch.stack([checkpoint(part, s, y, use_reentrant=False) for s, y in parts]).sum() / len(targets)


def beside(hidden: Tensor, labels: Tensor, head: nn.Linear) -> Tensor:
    chunk = chunk_rows(head.out_features)
    return next_token_loss(hidden, labels, head, parameters=head.parameters(), chunk=chunk)[0]


WAYS: dict[str, Loss] = {
    "all logits at once": all_logits,
    "chunks, recomputed": recomputed,
    "chunks, gradients beside the loss (ours)": beside,
}


def peak(loss: Loss, trains: bool, dtype: torch.dtype) -> int:
    """The most bytes that live at once beside the weights, in a step on `TOKENS` positions."""
    labels = torch.zeros(2, TOKENS // 2, dtype=torch.int64)
    with FakeTensorMode(allow_non_fake_inputs=True):
        head = nn.Linear(WIDTH, VOCABULARY, bias=False, dtype=dtype).requires_grad_(trains)
        hidden = torch.empty(2, TOKENS // 2, WIDTH, dtype=dtype, requires_grad=True)
    with LiveBytes([head.weight]) as live:
        loss(hidden, labels, head).backward()
    return live.most


def seconds(trains: bool, tokens: int, repeats: int) -> dict[str, float]:
    """The median time of a step of each way, measured in turns."""
    torch.manual_seed(0)
    head = nn.Linear(WIDTH, VOCABULARY, bias=False).requires_grad_(trains)
    labels = torch.randint(0, VOCABULARY, (1, tokens))
    hidden = torch.randn(1, tokens, WIDTH, requires_grad=True)
    found: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(repeats):
        for name, loss in WAYS.items():
            hidden.grad = head.weight.grad = None
            start = time.perf_counter()
            loss(hidden, labels, head).backward()
            found[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--time", action="store_true", help="also run them, which takes minutes and some 3 GB"
    )
    parser.add_argument("--tokens", type=int, default=512, help="positions of a timed step")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    heads = {"frozen": False, "trained": True}
    rows = [
        "| way | head | peak, float32 | of all logits | peak, bfloat16 | of all logits | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for head, trains in heads.items():
        timed = seconds(trains, arguments.tokens, arguments.repeats) if arguments.time else {}
        whole = {kind: peak(all_logits, trains, kind) for kind in (torch.float32, torch.bfloat16)}
        for name, loss in WAYS.items():
            cells = []
            for kind, most in whole.items():
                own = peak(loss, trains, kind)
                cells += [f"{own / 2**20:,.0f} MiB", f"{own / most:.0%}"]
            spent = f"{timed[name]:.2f}" if timed else ""
            rows.append(f"| {name} | {head} | {' | '.join(cells)} | {spent} |")
    clock = (
        f" Seconds: of a step of {arguments.tokens} tokens in float32 on one thread of {platform.machine()}, median of "
        f"{arguments.repeats}, in turns."
    )
    text = (
        f"# The loss in chunks\n\nA vocabulary of {VOCABULARY:,}, width {WIDTH:,}, {TOKENS:,} tokens; peaks are bytes of "
        f"live tensors beside the weights, gradients of the head included.{clock if arguments.time else ''} "
        f"({date.today()}, torch {torch.__version__}.) Made by `python benchmarks/loss.py --time`.\n\n"
    )
    (Path(__file__).parent / "loss.md").write_text(text + "\n".join(rows) + "\n", encoding="utf-8")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
