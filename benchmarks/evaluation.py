"""A few-shot evaluation with random weights: visual questions at 8 shots, and 1,000 class names ranked; ours and
OpenFlamingo's way of doing it.

    python benchmarks/evaluation.py

builds both models with the same weights, asks both the same questions in turns, compares the answers, and writes
`evaluation.json` and `evaluation.md` beside this file. `--help` lists the sizes.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from evaluation_sides import (
    Asked,
    Item,
    Ours,
    Theirs,
    build_ours,
    class_names,
    class_segments,
    draw_items,
    vqa_segments,
    write_tokenizer,
)
from pairing import made, provenance
from retrieval import TITLE
from sections import section

from flamingo_lite.config import load_config

T = TypeVar("T")

HERE = Path(__file__).parent
FULL = [
    "model=openflamingo_4b", "model.vision.pretrained=false", "model.language.pretrained=false",
    "model.vision.name=ViT-B-32",
    "model.vision.config={embed_dim: 512, quick_gelu: true, vision_cfg: {image_size: 224, layers: 12, width: 768, "
    "patch_size: 32}}",
    "model.language.config={model_type: gpt_neox, hidden_size: 512, intermediate_size: 2048, num_hidden_layers: 6, "
    "num_attention_heads: 8, max_position_embeddings: 2048, vocab_size: 50304, tie_word_embeddings: false}",
    "model.fusion.every=1",
]  # fmt: skip
SMALL = [
    *FULL[:3],
    "model.vision.config={embed_dim: 32, quick_gelu: true, vision_cfg: {image_size: 32, layers: 1, width: 64, "
    "head_width: 32, patch_size: 16}}",
    "model.language.config={model_type: gpt_neox, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, "
    "num_attention_heads: 2, max_position_embeddings: 2048, vocab_size: 3000, tie_word_embeddings: false}",
    "model.fusion.every=1",
]
SIDES = ("ours", "theirs")


class Clock:
    """Seconds by side, on the wall and of all cores."""

    def __init__(self) -> None:
        self.wall = dict.fromkeys(SIDES, 0.0)
        self.work = dict.fromkeys(SIDES, 0.0)

    def time(self, side: str, call: Callable[[], T]) -> T:
        wall, work = time.perf_counter(), time.process_time()
        found = call()
        self.wall[side] += time.perf_counter() - wall
        self.work[side] += time.process_time() - work
        return found

    def figures(self, samples: Mapping[str, int]) -> dict[str, Any]:
        """`samples`: how many each side answered."""
        rates, work = (
            {side: samples[side] / spent[side] for side in SIDES} for spent in (self.wall, self.work)
        )
        return {
            "samples": dict(samples),
            "seconds": self.wall,
            "processor_seconds": self.work,
            "samples_per_second": rates,
            "speedup": rates["ours"] / rates["theirs"],
            "work_ratio": work["ours"] / work["theirs"],
        }


def draw(queries: Sequence[Item], pool: Sequence[Item], shots: int, seed: int) -> list[Asked]:
    generator = random.Random(seed)
    return [Asked(tuple(generator.sample(list(pool), shots)), query) for query in queries]


def blocks(asked: Sequence[Asked], number: int) -> list[Sequence[Asked]]:
    size = -(-len(asked) // number)
    return [asked[start : start + size] for start in range(0, len(asked), size)]


def shared(block: Sequence[Asked], theirs: int | None, whole: int) -> dict[str, Sequence[Asked]]:
    """The queries of a block that each side answers, where theirs answer that many of the whole; None is all."""
    return {"ours": block, "theirs": block[: max(1, round((theirs or whole) / whole * len(block)))]}


def same_prompts(ours: Ours, theirs: Theirs, asked: Asked) -> None:
    for segments in (vqa_segments, class_segments):
        one, other = ours.ids(asked, segments), theirs.ids(asked, segments)
        if one != other:
            raise SystemExit(
                f"the prompts differ, so there is nothing to compare: {one[:40]} and {other[:40]}"
            )


def run_vqa(
    ours: Ours, theirs: Theirs, asked: Sequence[Asked], options: argparse.Namespace
) -> dict[str, Any]:
    """Both sides by turns; theirs on the first queries of each block, if not all. The answers have to be the same."""
    clock = Clock()
    both: list[str] = []
    texts: dict[str, list[str]] = {side: [] for side in SIDES}
    models = {"ours": ours, "theirs": theirs}
    for number, block in enumerate(blocks(asked, options.blocks)):
        parts = shared(block, options.their_queries, len(asked))
        for side in SIDES if number % 2 == 0 else reversed(SIDES):
            texts[side] += clock.time(side, lambda side=side, parts=parts: models[side].vqa(parts[side]))
        both += texts["ours"][-len(block) :][: len(parts["theirs"])]
        print(f"vqa, block {number + 1}: {clock.wall}", flush=True)
    other = [i for i, (a, b) in enumerate(zip(both, texts["theirs"], strict=True)) if a != b]
    if len(other) > 0.02 * len(both):
        raise SystemExit(
            f"{len(other)} of {len(both)} answers differ, the first: {both[other[0]]!r} and "
            f"{texts['theirs'][other[0]]!r}; expected a near tie in fifty at most"
        )
    counts = {side: len(texts[side]) for side in SIDES}
    return {"queries": len(asked), "compared": len(both), "different": len(other), **clock.figures(counts)}


def run_ranking(
    ours: Ours, theirs: Theirs, asked: Sequence[Asked], names: Sequence[str], options: argparse.Namespace
) -> dict[str, Any]:
    """As `run_vqa`; the log-probabilities have to be the same."""
    clock = Clock()
    counts = dict.fromkeys(SIDES, 0)
    models = {"ours": ours, "theirs": theirs}
    furthest = 0.0
    for number, block in enumerate(blocks(asked, options.ranked_blocks)):
        parts = shared(block, options.their_ranked, len(asked))
        found: dict[str, torch.Tensor] = {}
        for side in SIDES if number % 2 == 0 else reversed(SIDES):
            found[side] = clock.time(
                side, lambda side=side, parts=parts: models[side].rank(parts[side], names)
            )
            counts[side] += len(parts[side])
        apart = (found["ours"][: len(found["theirs"])] - found["theirs"]).abs().max()
        furthest = max(furthest, float(apart))
        print(f"ranking, block {number + 1}: {clock.wall}", flush=True)
    if furthest > 1e-2:
        raise SystemExit(f"log-probabilities differ by {furthest}, so there is nothing to compare")
    tokens = [len(theirs.tokenizer(name, add_special_tokens=False)["input_ids"]) for name in names]
    return {
        "queries": len(asked),
        "compared": counts["theirs"],
        "names": len(names),
        "tokens_of_a_name": sum(tokens) / len(tokens),
        "furthest_apart": furthest,
        **clock.figures(counts),
    }


def results(options: argparse.Namespace) -> dict[str, Any]:
    names = class_names()[: options.names]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        pool = draw_items(root / "pool", options.pool, (640, 480), seed=1)
        queries = draw_items(root / "queries", options.queries, (640, 480), seed=2)
        words = load_config(options.model).model.language.config["vocab_size"]
        write_tokenizer(root / "tokenizer", names, options.merges, words)
        model, processor = build_ours([*options.model, f"model.language.name={root / 'tokenizer'}"])
        asked = draw(queries, pool, options.shots, seed=3)
        ours = Ours(model, processor, options.batch_size)
        theirs = Theirs(model, processor, options.their_batch_size)
        theirs.hold(pool)
        same_prompts(ours, theirs, asked[0])
        # One class per demonstration, all as long as each other: see `Theirs.rank`.
        # As many ranked queries to an image of the pool as there are questions to one.
        shown = max(options.shots, round(len(pool) * options.ranked / options.queries))
        classes = [Item(item.image, "", "red") for item in pool[:shown]]
        ranked = draw(queries[: options.ranked], classes, options.shots, seed=4)
        with torch.no_grad():
            vqa = run_vqa(ours, theirs, asked, options)
            # Both begin with nothing encoded.
            ranking = run_ranking(Ours(model, processor, options.batch_size), theirs, ranked, names, options)
    return {
        **provenance("evaluation", options),
        "vqa": vqa,
        "ranking": ranking,
    }


def markdown(found: dict[str, Any], options: argparse.Namespace) -> str:
    rows = [
        "| | flamingo_lite | OpenFlamingo 2.0.1 | ratio | ratio of processor time |",
        "| --- | --- | --- | --- | --- |",
    ]
    labels = {
        "vqa": f"visual questions at {options.shots} shots, queries a second",
        "ranking": f"ranking {found['ranking']['names']:,} class names, queries a second",
    }
    for name, label in labels.items():
        rate = found[name]["samples_per_second"]
        rows.append(
            f"| {label} | {rate['ours']:.3g} | {rate['theirs']:.3g} | {found[name]['speedup']:.1f} | "
            f"{found[name]['work_ratio']:.1f} |"
        )
    return TEXT.format(
        table="\n".join(rows),
        found=found,
        options=options,
        vqa=found["vqa"],
        ranking=found["ranking"],
        made=made(found),
        shapes="small shapes, for a test of this script"
        if options.small
        else "ViT-B/32, 6 layers of width 512",
        model="\n".join(f"    {override}" for override in options.model),
    )


TEXT = """# A few-shot evaluation

Written by `{found[command]}`; do not edit.

{table}

{options.note}

{made} Random weights in float32 ({shapes}). One run, both sides in one process, in turns over the same queries.

- **The same work**: OpenFlamingo's `Flamingo` with our weights under its names, gates at 0.5, its prompts, the same ids.
  {vqa[queries]:,} questions, demonstrations drawn for each from a pool of {options.pool:,}; OpenFlamingo answered
  {vqa[compared]:,} of them, spread over the run, at the same cost each: it keeps nothing from one to the next.
  {vqa[different]} of these answers differ (choices closer than rounding).
  {ranking[queries]} queries rank, {ranking[compared]} of them with OpenFlamingo too, whose log-probabilities differ by at
  most {ranking[furthest_apart]:.1e}; their demonstrations come from a part of the pool, as many queries to an image as
  among the questions.
- **flamingo_lite**: `ModelAnswers`, as `flamingo-lite eval` runs it, in batches of {options.batch_size}. Encoding the pool
  and every query is in its time: each image goes through the encoder once, its keys and values are made once. Class names
  run as one tree, {ranking[tokens_of_a_name]:.1f} tokens a name.
- **OpenFlamingo**: greedy `Flamingo.generate` in batches of {options.their_batch_size}, the default of its evaluation; the
  demonstrations' images are held decoded, prepared and encoded anew for every query; class names one after the other
  after the prompt's cache (`get_rank_classifications` with `use_cache`). Its three beams are left out for both.
- **Not in it**: scoring, data loading ahead of time, more than one process, a GPU.

The model:

{model}
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true", help="tiny shapes, to see that everything runs")
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument(
        "--their-queries",
        type=int,
        help="how many OpenFlamingo answers, spread over the run, each of which costs it the same; by default all",
    )
    parser.add_argument("--pool", type=int, default=512)
    parser.add_argument("--shots", type=int, default=8)
    parser.add_argument("--ranked", type=int, default=128, help="of the queries")
    parser.add_argument(
        "--their-ranked", type=int, help="how many of these OpenFlamingo ranks; by default all"
    )
    parser.add_argument("--names", type=int, default=1000)
    parser.add_argument("--merges", type=int, default=2500, help="size of the tokenizer: fewer, longer names")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--their-batch-size", type=int, default=8)
    parser.add_argument("--blocks", type=int, default=8, help="turns in which the queries are asked")
    parser.add_argument("--ranked-blocks", type=int, default=2)
    parser.add_argument("--note", default="", help="what else is to be said of this run, on its page")
    parser.add_argument(
        "--output", type=Path, default=HERE, help="where evaluation.json and evaluation.md are written"
    )
    options = parser.parse_args()
    options.model, options.device = SMALL if options.small else FULL, "cpu"
    found = results(options)
    text = markdown(found, options)
    (options.output / "evaluation.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    page = options.output / "evaluation.md"
    kept = section(page, TITLE)
    page.write_text(text.replace("\n\n\n", "\n\n") + (f"\n{kept}" if kept else ""), encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
