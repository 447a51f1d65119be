"""Progress in the terminal: a Rich bar with loss and speed; plain lines where there is no terminal."""

from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

T = TypeVar("T")
LINES = 10
# Plain lines in one run: enough to see that it moves, few enough to read in a log.


class ProgressDisplay:
    """A context in which `update` moves the bar and says how things stand."""

    def __init__(self, label: str, total: int, console: Console, done: int = 0) -> None:
        self.label, self.total, self.done, self.console = label, total, done, console
        self._note = ""
        self._printed = done * LINES // max(1, total)
        self._bar = Progress(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("[cyan]{task.fields[note]}"),
            TimeElapsedColumn(),
            TextColumn("[dim]left[/dim]"),
            TimeRemainingColumn(),
            console=console,
            expand=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(label, total=total, completed=done, note="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def update(self, done: int, note: str | None = None) -> None:
        self.done = done
        self._note = self._note if note is None else note
        self._bar.update(self._task, completed=done, note=self._note)
        tenth = done * LINES // max(1, self.total)
        if not self.console.is_terminal and tenth > self._printed:
            self._printed = tenth
            self.console.print(f"{self.label} {done}/{self.total}  {self._note}".rstrip(), highlight=False)

    def counting(self, items: Iterable[T]) -> Iterator[T]:
        """The items, each counted once it has been used."""
        for done, item in enumerate(items, start=self.done + 1):
            yield item
            self.update(done)
