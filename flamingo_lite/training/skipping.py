"""Steps whose loss or gradient is no number: left out on all ranks together, counted, and their samples written down.

One such step would make every parameter NaN for good; a few in a long run are the data's or the precision's doing.
Under 16-mixed a gradient may be too large for float16 only because the loss was multiplied to begin with. The scaler
then halves its scale: some times at the start, until it has found one, and some times later, for it tries larger ones.
Such steps are left out, counted and written down too, but stop nothing, down to a scale that leaves the mean loss as it
is: what does not fit then is too large by itself. Where every step is spoilt, the scale is there after some thirty.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from flamingo_lite.errors import FlamingoError
from flamingo_lite.training.beside import Beside, LineFile
from flamingo_lite.training.ranks import Ranks

FILE = "skipped_steps.jsonl"


@dataclass(frozen=True)
class Part:
    """One batch of a step on one rank: its summed loss, and the samples that it was made of."""

    loss: float
    samples: list[str]
    rank: int = 0


class SkippedSteps:
    """Counts skipped steps; `path` gets a line for each: {"step", "gradient_norm", "loss_scale", "parts": [{"rank", "loss",
    "samples"}]}.

    `count`: all of them; `by_scale`: those that the loss scale explains. `limit`: one more of the others stops the run.
    """

    def __init__(self, path: Path, limit: int, ranks: Ranks, beside: Beside | None = None) -> None:
        self.path, self.limit, self.ranks = path, limit, ranks
        self.file = LineFile(path, beside or Beside())
        self.count = self.by_scale = 0

    def add(
        self, step: int, gradient_norm: float, parts: Sequence[Part], loss_scale: float | None = None
    ) -> None:
        """Called on all ranks together, each with its own `parts`. `loss_scale`: by which the mean loss was multiplied;
        None where it was not. Errors: `FlamingoError` beyond the limit.
        """
        self.count += 1
        everyone = [part for of_rank in self.ranks.gather(list(parts)) for part in of_rank]
        if self.ranks.is_first:
            self.file.add(
                [
                    {
                        "step": step,
                        "gradient_norm": gradient_norm,
                        "loss_scale": loss_scale,
                        "parts": [asdict(p) for p in culprits(everyone)],
                    }
                ]
            )
        if all(math.isfinite(part.loss) for part in everyone) and loss_scale is not None and loss_scale > 1:
            self.by_scale += 1
            return
        if (counted := self.count - self.by_scale) > self.limit:
            raise FlamingoError(
                f"step {step} is the {_ordinal(counted)} whose loss or gradient is no number, and "
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
