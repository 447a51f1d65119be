"""What the side-by-side measurements share: sides take turns, medians and ratios have intervals, a page and its figures are
written together.

A ratio is the median of the rounds' ratios, since what slows a round down slows all sides of it; intervals are 95%
bootstrap intervals of the medians.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flamingo_lite.training.rates import seconds_of

HERE = Path(__file__).parent
PACKAGES = ("torch", "transformers", "open_clip_torch", "open-flamingo", "flamingo-pytorch")

Interval = dict[str, float]
"""`median`, `low`, `high`."""


def in_turns(
    sides: Mapping[str, Callable[[], object]], rounds: int, device: str = "cpu"
) -> dict[str, list[float]]:
    """Seconds of a call of each side, by round. Each is called once before, and each begins a round in its turn."""
    names = list(sides)
    found: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        sides[name]()
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            found[name].append(seconds_of(sides[name], device))
    return found


def median_with_interval(values: Sequence[float]) -> Interval:
    draws = np.random.default_rng(0).choice(values, (10_000, len(values)))
    low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
    return {"median": statistics.median(values), "low": float(low), "high": float(high)}


def ratio(values: Mapping[str, Sequence[float]], over: str, under: str) -> Interval:
    """How many times as much `over` took as `under`, round by round."""
    return median_with_interval([a / b for a, b in zip(values[over], values[under], strict=True)])


def said(found: Interval, digits: int = 2, scale: float = 1.0) -> str:
    """ "median (low to high)" """
    median, low, high = (f"{scale * found[name]:,.{digits}f}" for name in ("median", "low", "high"))
    return f"{median} ({low} to {high})"


def times(found: Interval, digits: int = 2) -> str:
    return f"{said(found, digits)} times"


def refuse_apart(what: str, ours: torch.Tensor, theirs: torch.Tensor, tolerance: float) -> float:
    """The largest difference between two outputs. Ends the run where it is above `tolerance`: nothing is then timed."""
    if ours.shape != theirs.shape:
        raise SystemExit(f"{what}: shapes differ, {tuple(ours.shape)} and {tuple(theirs.shape)}")
    furthest = float((ours.float() - theirs.float()).abs().max())
    if not furthest <= tolerance:
        raise SystemExit(
            f"{what}: outputs differ by {furthest:.2e}, more than {tolerance:.0e}, so there is nothing to compare"
        )
    return furthest


def machine(device: str) -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine()
    )
    gpu = f"{torch.cuda.get_device_name()}, " if device == "cuda" else ""
    return f"{gpu}{cpu}, {os.cpu_count()} cores, {platform.system()}"


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Of those that are installed."""
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def provenance(script: str, options: argparse.Namespace) -> dict[str, Any]:
    """What a figure is worth nothing without."""
    return {
        "command": shlex.join(["python", f"benchmarks/{script}.py", *sys.argv[1:]]),
        "machine": machine(options.device),
        "threads": torch.get_num_threads(),
        "date": date.today().isoformat(),
        "versions": versions(),
        "options": {
            name: value for name, value in vars(options).items() if name not in ("output", "command", "run")
        },
    }


def made(found: Mapping[str, Any]) -> str:
    """The line that says when and where."""
    numbers = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    return f"{found['date']}, {found['machine']}, {found['threads']} threads; {numbers}."


def parser(doc: str | None, rounds: int) -> argparse.ArgumentParser:
    """The options that every comparison has."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument(
        "--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu"
    )
    made.add_argument("--rounds", type=int, default=rounds)
    made.add_argument("--small", action="store_true", help="tiny shapes, to see that everything runs")
    made.add_argument("--note", default="", help="what else is to be said of this run, on its page")
    made.add_argument("--output", type=Path, default=HERE, help="where the page and its figures are written")
    return made


def fill_sizes(options: argparse.Namespace, **sizes: tuple[Any, Any]) -> None:
    """Sets what was not said: of each option the value of a whole run, or with --small the other one."""
    for name, (whole, small) in sizes.items():
        if getattr(options, name) is None:
            setattr(options, name, small if options.small else whole)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def write(folder: Path, name: str, found: Mapping[str, Any], text: str) -> None:
    """`name`.json and `name`.md."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (folder / f"{name}.md").write_text(text.replace("\n\n\n", "\n\n"), encoding="utf-8")
    print(text)
