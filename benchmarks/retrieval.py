"""Choosing demonstrations by similarity: the search of `evaluation.nearest`, the bare product of matrices, and
OpenFlamingo's own `RICES.find`, on the same vectors.

    python benchmarks/retrieval.py

checks that all find the same, times them in turns, and writes `retrieval.json` and a section of `evaluation.md` beside
this file. A machine at rest, or a priority above what else runs on it (`chrt -r 1`), is wanted. `--help` lists the sizes.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shlex
import sys
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from pairing import machine, median_with_interval, ratio
from sections import write_section
from torch import Tensor
from torch.nn.functional import normalize

from flamingo_lite.evaluation.nearest import searcher

HERE = Path(__file__).parent
TITLE = "Choosing demonstrations by similarity"
SHOTS = 16


def open_flamingo_rices() -> Any:
    """Their class; the script imports a module beside it by its bare name."""
    package = importlib.util.find_spec("open_flamingo")
    if package is None or package.origin is None:
        raise SystemExit("open-flamingo is not installed; expected open-flamingo==2.0.1 (make setup)")
    utils: Any = ModuleType("utils")
    utils.custom_collate_fn = None
    sys.modules["utils"] = utils
    path = Path(package.origin).parent / "eval" / "rices.py"
    spec = importlib.util.spec_from_file_location("open_flamingo_rices", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    del sys.modules["utils"]
    return module.RICES


def theirs(features: Tensor) -> Callable[[Tensor], list[list[int]]]:
    """`RICES.find` on features that are there, its encoder one that has nothing to do."""
    rices: Any = object.__new__(open_flamingo_rices())
    rices.dataset, rices.features, rices.device = range(len(features)), features, "cpu"
    rices.image_processor = lambda image: image
    rices.model = SimpleNamespace(eval=lambda: None, encode_image=lambda inputs: inputs)
    # They show the most similar last.
    return lambda queries: [row[::-1] for row in rices.find(list(queries), SHOTS)]


def measure(features: Tensor, batch: int, rounds: int) -> dict[str, Any]:
    queries = normalize(torch.randn(batch, features.shape[1], generator=torch.Generator().manual_seed(batch)))
    search, find = searcher(features), theirs(features)
    sides: dict[str, Callable[[], Any]] = {
        "bare": lambda: queries @ features.T,
        "ours": lambda: search(queries, SHOTS),
        "theirs": lambda: find(queries),
    }
    different = sum(
        ours != other for ours, other in zip(search(queries, SHOTS)[1].tolist(), find(queries), strict=True)
    )
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(rounds):
        for side in sides if number % 2 == 0 else reversed(sides):
            start = time.perf_counter()
            sides[side]()
            seconds[side].append(time.perf_counter() - start)
    return {
        "batch": batch,
        "different": different,
        "milliseconds": {
            side: median_with_interval([1000 * s for s in values]) for side, values in seconds.items()
        },
        "over_bare": ratio(seconds, over="ours", under="bare"),
        "theirs_over_ours": ratio(seconds, over="theirs", under="ours"),
    }


def results(options: argparse.Namespace) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    features = normalize(torch.randn(options.support, options.width, generator=generator))
    found = [measure(features, batch, options.rounds) for batch in options.batches]
    return {
        "command": shlex.join(["python", "benchmarks/retrieval.py", *sys.argv[1:]]),
        "machine": machine("cpu"),
        "threads": torch.get_num_threads(),
        "date": date.today().isoformat(),
        "versions": {name: version(name) for name in ("torch", "open-flamingo")},
        "support": options.support,
        "width": options.width,
        "shots": SHOTS,
        "rounds": options.rounds,
        "batches": found,
    }


def markdown(found: dict[str, Any], note: str) -> str:
    def shown(value: dict[str, float], digits: int) -> str:
        low, high = (f"{value[end]:.{digits}f}" for end in ("low", "high"))
        return f"{value['median']:.{digits}f} ({low} to {high})"

    rows = []
    for each in found["batches"]:
        times = [shown(each["milliseconds"][side], 1) for side in ("bare", "ours", "theirs")]
        ratios = [shown(each["over_bare"], 2), shown(each["theirs_over_ours"], 1)]
        rows.append(f"| {each['batch']} | {' | '.join([*times, *ratios])} |")
    different = sum(each["different"] for each in found["batches"])
    threads = "1 thread" if found["threads"] == 1 else f"{found['threads']} threads"
    asked = sum(each["batch"] for each in found["batches"])
    return TEXT.format(
        found=found, rows="\n".join(rows), different=different, asked=asked, note=note, threads=threads
    )


TEXT = """
Written by `{found[command]}`.

| queries at once | bare product, ms | flamingo_lite, ms | OpenFlamingo, ms | ours over the product | theirs over ours |
| --- | --- | --- | --- | --- | --- |
{rows}

The {found[shots]} nearest of {found[support]:,} random vectors of width {found[width]}, float32; medians of {found[rounds]}
rounds, sides in turns in one process, with 95% intervals; ratios are paired by round. {found[date]}, {found[machine]},
{threads}, torch {found[versions][torch]}; {note}.

- **flamingo_lite**: `evaluation.nearest`, the product and the selection, ties in the order of the rows. An evaluation asks
  query by query, so that neighbours do not depend on which queries a process has.
- **OpenFlamingo**: `RICES.find` of 2.0.1 itself, its encoder replaced by one that returns the vectors it is given: it sorts
  all products. {different} of {asked} queries had other neighbours, or another order.
- **Not in it**: encoding images, which both do once for the support; FAISS, which takes over past 100,000.
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--support", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32, 256])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument(
        "--note", default="the machine at rest", help="what else is to be said of this run, on its page"
    )
    parser.add_argument("--output", type=Path, default=HERE, help="where the two files are written")
    options = parser.parse_args()
    found = results(options)
    (options.output / "retrieval.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    text = markdown(found, options.note)
    page = options.output / "evaluation.md"
    if not page.exists():
        page.write_text("# A few-shot evaluation\n", encoding="utf-8")
    write_section(page, TITLE, text)
    print(text)


if __name__ == "__main__":
    main()
