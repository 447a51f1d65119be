"""What was read and what could not be used: counted by reason over all ranks, written down, and too much of it stops.

Every rank counts its own; `gather` adds the ranks up at steps that all of them know, so that all of them stop together.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import torch.distributed as distributed

from flamingo_lite.data.prepared import PreparedBatch
from flamingo_lite.errors import FlamingoError
from flamingo_lite.training.beside import Beside, LineFile

SEEN_FIRST = 1000
"""Documents that are seen before a share of them says anything."""
REJECTS = "rejects.jsonl"


class Consumption:
    """The documents of the batches that were trained on. `directory`: where `rejects.jsonl` goes; None: nowhere.

    `most_share`, `most_in_a_row`: rejects beyond either stop the run.
    """

    def __init__(
        self,
        directory: Path | None,
        most_share: float,
        most_in_a_row: int,
        beside: Beside | None = None,
    ) -> None:
        self.file = None if directory is None else LineFile(directory / REJECTS, beside or Beside())
        self.most_share = most_share
        self.most_in_a_row = most_in_a_row
        self.documents = 0  # seen, used or not
        self.in_a_row = 0
        self.cut = 0  # conversations that were too long, and lost their last turns
        self.rejects: Counter[str] = Counter()
        self._last = ""
        self._filled: tuple[int, int] = (0, 0)
        self._clear()

    def take(self, batch: PreparedBatch, step: int) -> None:
        """Counts a batch that was trained on in `step`, and writes down what is missing from it."""
        self._outcomes.append(batch.outcomes)
        self._own_cut += batch.cut
        self._own_rejects.update(reject.reason for reject in batch.rejects)
        if batch.rejects:
            self._last = batch.rejects[-1].message
        if batch.capacity is not None:
            self._own_filled = (
                self._own_filled[0] + batch.tokens,
                self._own_filled[1] + batch.capacity,
            )
        if self.file is not None and batch.rejects:
            self.file.add({"step": step, **reject._asdict()} for reject in batch.rejects)

    def gather(self) -> None:
        """Adds up what all ranks took since the last time; every rank calls it at the same step.

        Errors: `FlamingoError` on every rank when too many samples could not be used.
        """
        own = (self._outcomes, dict(self._own_rejects), self._own_filled, self._last, self._own_cut)
        found: list[Any] = [own]
        if distributed.is_available() and distributed.is_initialized():
            found = [None] * distributed.get_world_size()
            distributed.all_gather_object(found, own)
        outcomes, rejects, filled, last, cut = zip(*found, strict=True)
        self.cut += sum(cut)
        for counts in rejects:
            self.rejects.update(counts)
        self._filled = (sum(f[0] for f in filled), sum(f[1] for f in filled))
        self._last = next((message for message in last if message), "")
        self._clear()
        self._check(in_order(outcomes))

    def columns(self) -> dict[str, float]:
        """What a row of metrics says: documents seen, cut behind a turn and rejected by reason so far, and how full the
        last rows were."""
        columns: dict[str, float] = {"documents": self.documents}
        if self.cut:
            columns["truncated"] = self.cut
        if self._filled[1]:
            columns["fill_rate"] = self._filled[0] / self._filled[1]
        return columns | {f"rejects/{reason}": count for reason, count in sorted(self.rejects.items())}

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, the same on all ranks."""
        return {
            "documents": self.documents,
            "in_a_row": self.in_a_row,
            "rejects": dict(self.rejects),
            "truncated": self.cut,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.documents = int(state["documents"])
        self.in_a_row = int(state["in_a_row"])
        self.rejects = Counter(state["rejects"])
        self.cut = int(state.get("truncated", 0))  # earlier checkpoints know of none

    def _check(self, outcomes: Iterable[bool]) -> None:
        for is_used in outcomes:
            self.documents += 1
            self.in_a_row = 0 if is_used else self.in_a_row + 1
            if self.in_a_row >= self.most_in_a_row:
                raise FlamingoError(
                    f"{self.in_a_row} samples in a row could not be used, the last because: {self._last}; "
                    f"see {REJECTS}, or raise data.max_rejects_in_a_row"
                )
        rejected = self.rejects.total()
        if self.documents >= SEEN_FIRST and rejected > self.most_share * self.documents:
            reasons = ", ".join(f"{reason} {count}" for reason, count in self.rejects.most_common())
            raise FlamingoError(
                f"{rejected:,} of {self.documents:,} samples could not be used ({reasons}); "
                f"see {REJECTS}, or raise data.max_reject_share, which is {self.most_share}"
            )

    def _clear(self) -> None:
        self._outcomes: list[tuple[bool, ...]] = []
        self._own_rejects: Counter[str] = Counter()
        self._own_cut = 0
        self._own_filled = (0, 0)


def in_order(outcomes: Sequence[Sequence[tuple[bool, ...]]]) -> Iterable[bool]:
    """The outcomes of all ranks in the order of the plan: the ranks take turns, batch after batch."""
    for turn in zip_longest(*outcomes, fillvalue=()):
        yield from chain.from_iterable(turn)
