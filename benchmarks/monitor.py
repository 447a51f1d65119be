"""What logging costs: the time spent in a run's monitor beside the time of its steps, on the packaged tiny pair.

    python benchmarks/monitor.py

trains twice from the same data, with a row of figures at every tenth step and at every step, on one thread. On the CPU
nothing runs behind the clock's back, so the share of time spent in the monitor's hooks is the share that logging costs.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import lightning.pytorch as lightning
import torch
from rich.console import Console

from flamingo_lite.commands.data_make import make_shards
from flamingo_lite.config import load_config
from flamingo_lite.training.attention import AttentionWatch
from flamingo_lite.training.monitor import Monitor
from flamingo_lite.training.norms import GroupNorms
from flamingo_lite.training.stages import run_stage

MEASURED = (
    (Monitor, "on_train_batch_start"),
    (Monitor, "on_train_batch_end"),
    (GroupNorms, "before"),
    (AttentionWatch, "_look"),
)
"""What runs beside the steps; none of them calls another."""
WARMING = 5
"""Steps at the start that are not counted."""


class Clock(lightning.Callback):
    """The seconds of each step, and of them those in the monitor."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.monitor: list[float] = []
        self._in_monitor = 0.0
        self._since = time.perf_counter()

    def timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def wrapper(*arguments: Any, **named: Any) -> Any:
            began = time.perf_counter()
            try:
                return method(*arguments, **named)
            finally:
                self._in_monitor += time.perf_counter() - began

        return wrapper

    def on_train_batch_end(self, *_: Any) -> None:
        now = time.perf_counter()
        self.steps.append(now - self._since)
        self.monitor.append(self._in_monitor)
        self._since, self._in_monitor = now, 0.0


def measure(shards: Path, steps: int, every: int) -> tuple[float, float, float]:
    """Median seconds of a step, of a step's monitor, and the monitor's share of all time."""
    clock, kept = Clock(), [(owner, name, getattr(owner, name)) for owner, name in MEASURED]
    for owner, name, method in kept:
        setattr(owner, name, clock.timed(method))
    try:
        with tempfile.TemporaryDirectory() as output:
            overrides = [f"output={output}", f"data.directory={shards}", f"stage.steps={steps}"]
            overrides += [f"stage.log_every={every}", "stage.samples=0", "stage.checkpoint_every=100000"]
            overrides += [
                "trainer.accelerator=cpu",
                "trainer.threads=1",
                "trainer.workers=0",
                "wandb.mode=disabled",
            ]
            run_stage(load_config(overrides), Console(quiet=True), callbacks=[clock])
    finally:
        for owner, name, method in kept:
            setattr(owner, name, method)
    # The last step's checkpoint comes after its clock.
    taken, monitored = clock.steps[WARMING:], clock.monitor[WARMING:]
    return median(taken), median(monitored), sum(monitored) / sum(taken)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=45)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        shards = Path(folder) / "shards"
        config = load_config([f"data.directory={shards}", "data.samples=500", "data.samples_per_shard=500"])
        make_shards(config.data, Console(quiet=True))
        print(f"torch {torch.__version__}, one thread")
        for every in (10, 1):
            step, monitor, share = measure(shards, arguments.steps, every)
            print(
                f"a row every {every:>2} steps: {1000 * step:.0f} ms a step, {1000 * monitor:.1f} ms in the monitor "
                f"(medians); {share:.2%} of all time"
            )


if __name__ == "__main__":
    main()
