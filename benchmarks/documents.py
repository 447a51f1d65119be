"""Training throughput on documents whose lengths and image counts are like MMC4's: ours and OpenFlamingo's own step.

    python benchmarks/documents.py

draws documents, compares losses on the same ones, times optimizer steps of the sides in turns, counts what lives beside
weights, gradients and optimizer state, and writes `documents.json` and `documents.md` beside this file. `--help` lists the
sizes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pairing
from documents_sides import (
    Sides,
    build_sides,
    bytes_and_operations,
    exact,
    our_batch,
    packed_batches,
    their_batch,
)
from drawn_documents import MAX_TOKENS, Drawn, cut, distribution, draw_documents, draw_sizes
from pairing import Interval, table, times
from training_steps import Trainer

from flamingo_lite.data.packing import pack
from flamingo_lite.training.rates import matrix_rate, seconds_of

THEIRS = "OpenFlamingo 2.0.1"
OURS, CACHED = "flamingo_lite", "flamingo_lite, features cached"
WHOLE, WHOLE_CACHED = "flamingo_lite, whole documents", "flamingo_lite, whole documents, features cached"
ROW, LONGEST = 512, 1024  # positions of a row that documents share: of those that are cut, and of whole ones
TOLERANCE = 1e-4  # of losses of about 10


@dataclass(frozen=True)
class Work:
    """The batches of one side, one a round, and how many positions of each are trained on. `heaviest`: the documents of
    the round of theirs with most images, alike for all sides."""

    trainer: Trainer
    batches: list[dict[str, Any]]
    trained: list[int]
    heaviest: dict[str, Any]


def work_of(sides: Sides, documents: Sequence[Drawn], options: argparse.Namespace) -> dict[str, Work]:
    """The same documents as batches of each side, as many batches as there are rounds."""
    short = [cut(document, MAX_TOKENS, sides.special) for document in documents]
    long = [cut(document, LONGEST, sides.special) for document in documents]
    groups = [range(i, len(documents), options.rounds) for i in range(options.rounds)]
    most = max(groups, key=lambda group: sum(len(short[i].pixels) for i in group))
    theirs = [their_batch([short[i] for i in group], MAX_TOKENS, sides.device) for group in groups]
    trained = [sum(short[i].trained for i in group) for group in groups]
    found = {THEIRS: Work(sides.theirs, theirs, trained, theirs[groups.index(most)])}
    for names, chosen, row in (((OURS, CACHED), short, ROW), ((WHOLE, WHOLE_CACHED), long, LONGEST)):
        packed = packed_batches(sides, chosen, row, options.rounds)
        [(heaviest, _)] = packed_batches(sides, [chosen[i] for i in most], row, 1)
        trained = [sum(document.trained for document in inside) for _, inside in packed]
        for name, prepare in zip(names, (lambda batch: dict(**batch), sides.with_features), strict=True):
            batches = [prepare(batch) for batch, _ in packed]
            found[name] = Work(sides.ours, batches, trained, prepare(heaviest))
    return found


def compare_losses(sides: Sides, documents: Sequence[Drawn]) -> dict[str, float]:
    """The mean loss of a trained-on position of the same documents: theirs padded, ours padded, packed, features cached."""
    short = [cut(document, MAX_TOKENS, sides.special) for document in documents]
    places = pack([len(document.ids) for document in short], None, 2 * MAX_TOKENS)
    alone, packed = our_batch(sides, short), our_batch(sides, short, places)
    theirs = their_batch(short, MAX_TOKENS, sides.device)
    known = sides.with_features(packed)
    found = {
        THEIRS: exact(lambda: sides.theirs.model(**theirs)[0]),
        "ours, a row each": exact(lambda: sides.model(**alone).loss),
        "ours, packed": exact(lambda: sides.model(**packed).loss),
        "ours, packed, features cached": exact(lambda: sides.model(**known).loss),
    }
    for name, loss in found.items():
        if not abs(loss - found[THEIRS]) <= TOLERANCE:
            raise SystemExit(
                f"losses differ, so there is nothing to compare: {THEIRS} {found[THEIRS]}, {name} {loss}"
            )
    return found


def measure(work: dict[str, Work], options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of each side's step, by round; each begins a round in its turn."""
    names = list(work)
    found: dict[str, list[float]] = {name: [] for name in names}
    for number in range(options.rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            step = partial(work[name].trainer.step, work[name].batches[number])
            found[name].append(
                work_seconds(step) if options.device == "cpu" else seconds_of(step, options.device)
            )
        print(
            f"round {number + 1}: " + ", ".join(f"{name} {found[name][-1]:.2f} s" for name in names),
            flush=True,
        )
    return found


def work_seconds(step: Callable[[], object]) -> float:
    """Of the processor, summed over threads: other programs do not lengthen them."""
    started = time.process_time()
    step()
    return time.process_time() - started


def results(options: argparse.Namespace) -> dict[str, Any]:
    found = pairing.provenance("documents", options)
    sides = build_sides(options.small, options.device)
    sizes = draw_sizes(options.rounds * options.documents)
    documents = draw_documents(sizes, sides.special, sides.edge)
    found["drawn"] = {
        "whole": distribution(documents),
        "cut": distribution([cut(document, MAX_TOKENS, sides.special) for document in documents]),
    }
    found["losses"] = compare_losses(sides, documents[: options.documents])
    work = work_of(sides, documents, options)
    for name in (THEIRS, OURS):
        work[name].trainer.step(work[name].batches[0])  # and so the optimizers' states are there
    counted = {name: bytes_and_operations(side.trainer, side.heaviest) for name, side in work.items()}
    found["bytes"] = {name: most for name, (most, _) in counted.items()}
    found["memory"] = {name: most / found["bytes"][THEIRS] for name, most in found["bytes"].items()}
    found["operations"] = {name: operations for name, (_, operations) in counted.items()}
    found["matrix_rate"] = matrix_rate(options.device)
    found["rounds"] = seconds = measure(work, options)
    found["trained"] = trained = {name: side.trained for name, side in work.items()}
    found["seconds"] = {name: sum(values) for name, values in seconds.items()}
    found["rate"] = {name: sum(trained[name]) / sum(values) for name, values in seconds.items()}
    found["speedup"] = {
        name: ratio_of_rates((trained[name], seconds[name]), (trained[THEIRS], seconds[THEIRS]))
        for name in work
    }
    return found


def ratio_of_rates(ours: tuple[list[int], list[float]], theirs: tuple[list[int], list[float]]) -> Interval:
    """Trained-on positions a second over all rounds, in which both sides see the same documents; the interval draws
    rounds again and again."""
    draws = np.random.default_rng(0).integers(0, len(ours[0]), (10_000, len(ours[0])))

    def rates(side: tuple[list[int], list[float]], rounds: Any) -> Any:
        trained, seconds = (np.asarray(values)[rounds].sum(-1) for values in side)
        return trained / seconds

    every = np.arange(len(ours[0]))
    low, high = np.percentile(rates(ours, draws) / rates(theirs, draws), [2.5, 97.5])
    return {
        "median": float(rates(ours, every) / rates(theirs, every)),
        "low": float(low),
        "high": float(high),
    }


def markdown(found: dict[str, Any], options: argparse.Namespace) -> str:
    head = ("code", "trained-on tokens", "a second", "ours is faster", "memory", "ours takes", "limit")
    operations = found["operations"]
    return PAGE.format(
        table=table(head, [side_row(found, name) for name in found["rate"]]),
        losses=", ".join(f"{name} {loss:.6f}" for name, loss in found["losses"].items()),
        sizes=table(DRAWN, [drawn_row(name, part) for name, part in found["drawn"].items()]),
        found=found,
        options=options,
        made=pairing.made(found),
        longest=LONGEST,
        row=ROW,
        theirs=THEIRS,
        floors=[operations[THEIRS] / operations[name] for name in (OURS, CACHED)],
    )


def side_row(found: dict[str, Any], name: str) -> list[str]:
    trained, rate = sum(found["trained"][name]), found["rate"][name]
    size = f"{found['bytes'][name] / 1e6:,.0f} MB"
    limit = f"{found['operations'][name] / found['matrix_rate']:.1f} s"
    speedup, memory = times(found["speedup"][name]), f"{found['memory'][name]:.2f} of theirs"
    if name == THEIRS:
        speedup = memory = ""
    return [name, f"{trained:,}", f"{rate:.0f}", speedup, size, memory, limit]


DRAWN = ("", "documents", "tokens: mean, median", "images: mean, median", "with 1 to 6 images", "trained on")


def drawn_row(name: str, part: dict[str, Any]) -> list[str]:
    length, images = part["length"], part["images"]
    counts = ", ".join(map(str, images["documents"].values()))
    of_images = f"{images['mean']:.2f}, {images['median']:.0f}"
    of_tokens = f"{length['mean']:.0f}, {length['median']:.0f}"
    return [name, str(part["documents"]), of_tokens, of_images, counts, f"{part['trained']:.0f}"]


PAGE = """# Training on documents like MMC4's

Written by `{found[command]}`; do not edit.

{table}

{options.note}

{made}
The sides take turns, an optimizer step of each a round, {options.rounds} rounds; theirs has {options.documents}
documents a step, ours the rows that come to a round when all documents are packed together. Rates and their ratios
are over all rounds, in which every side sees the same documents once; seconds are the processor's where there is no
GPU, so that other programs do not lengthen them; intervals are 95% bootstrap intervals over rounds.

- **The same losses**: before anything is timed, losses of the same documents, cut alike, have to agree to 1e-4:
  {losses}.
- **{theirs}**: `Flamingo` of `open_flamingo/src` with our weights and the step of its `train_one_epoch`; every
  document is a row of 256 positions and six images, as `preprocess_interleaved` cuts and pads them.
- **flamingo_lite**: the step of `flamingo-lite train`. Documents are cut alike and share rows of {row} positions;
  there are no empty images, and logits of trained-on positions alone.
- **features cached**: patch features are known, as with `data.features.directory`; reading them is not in the time.
- **whole documents**: not cut at 256 but at {longest}, the length of a row, so that more of a document is trained on.
  Their pipeline has no such setting.
- **Memory**: the most bytes of tensors that live at once in a step beside weights, their gradients and the
  optimizer's state, inputs included, on the same documents: those of the round with most images.
- **limit**: of a step on those documents, its matrix products and attention at {found[matrix_rate]:.3g} operations a
  second, the best of twelve products of 2,048 x 2,048 matrices here. On them theirs has {floors[0]:.2f} times the
  operations of ours, and {floors[1]:.2f} times those of ours with features cached; what is gained beyond that is
  gained between the products.
- **The model**: ViT-B/32, a resampler of six layers and 64 latents, a Llama of six layers and width 512 with 32,002
  words and a gated block before every layer, all float32 (with `--small` all is tiny, for a test). Images are a
  larger part of its work than of a 3B model's.

## The documents

{sizes}

Means of whole documents, before any are dropped, are MMC4's (425 tokens, 5.6 images); medians of cut ones those that
OpenFlamingo's report names for its training (256 tokens, 2 images): `drawn_documents.py`. Labels follow its
`train_one_epoch`: nothing is trained on before the first image or behind the last end of chunk. All lengths are in
`documents.json`.
"""


def main() -> None:
    parser = pairing.parser(__doc__, rounds=8)
    parser.add_argument("--documents", type=int, default=4, help="of a step of theirs, of whatever length")
    options = parser.parse_args()
    found = results(options)
    pairing.write(options.output, "documents", found, markdown(found, options))


if __name__ == "__main__":
    main()
