"""Steps whose loss or gradient is no number: left out on all ranks together, counted, and their samples written down.

One such step would make every parameter NaN for good; a few in a long run are the data's or the precision's doing.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from flamingo_lite.errors import FlamingoError
from flamingo_lite.training.ranks import Ranks

FILE = "skipped_steps.jsonl"


@dataclass(frozen=True)
class Part:
    """One batch of a step on one rank: its summed loss, and the samples that it was made of."""

    loss: float
    samples: list[str]
    rank: int = 0


class SkippedSteps:
    """Counts skipped steps; `path` gets a line for each: {"step", "gradient_norm", "parts": [{"rank", "loss", "samples"}]}.

    `limit`: one more than these stops the run.
    """

    def __init__(self, path: Path, limit: int, ranks: Ranks) -> None:
        self.path, self.limit, self.ranks = path, limit, ranks
        self.count = 0

    def add(self, step: int, gradient_norm: float, parts: Sequence[Part]) -> None:
        """Called on all ranks together, each with its own `parts`. Errors: `FlamingoError` beyond the limit."""
        self.count += 1
        everyone = [part for of_rank in self.ranks.gather(list(parts)) for part in of_rank]
        if self.ranks.is_first:
            line = {
                "step": step,
                "gradient_norm": gradient_norm,
                "parts": [asdict(p) for p in culprits(everyone)],
            }
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        if self.count > self.limit:
            raise FlamingoError(
                f"step {step} is the {_ordinal(self.count)} whose loss or gradient is no number, and "
                f"stage.max_skipped_steps is {self.limit}; their samples are in {self.path}: look at them, lower "
                "stage.optimizer.learning_rate, or allow more"
            )


def culprits(parts: Sequence[Part]) -> list[Part]:
    """The parts whose own loss is no number; all of them where only the gradient is none."""
    return [part for part in parts if not math.isfinite(part.loss)] or list(parts)


def _ordinal(number: int) -> str:
    if number % 100 in (11, 12, 13):
        return f"{number}th"
    return f"{number}{({1: 'st', 2: 'nd', 3: 'rd'}).get(number % 10, 'th')}"
