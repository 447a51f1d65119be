"""The tasks by name, each in a module of its own; `TASKS` is all that the rest of the evaluation knows of them."""

from collections.abc import Mapping
from functools import lru_cache

from flamingo_lite.evaluation.tasks.captioning import CAPTIONING
from flamingo_lite.evaluation.tasks.counting import COUNT_INDUCTION
from flamingo_lite.evaluation.tasks.existence import EXISTENCE
from flamingo_lite.evaluation.tasks.from_files import FROM_FILES
from flamingo_lite.evaluation.tasks.matching import MATCHING
from flamingo_lite.evaluation.tasks.naming import OPEN_NAMING
from flamingo_lite.evaluation.tasks.operators import OPERATOR_INDUCTION, OPERATOR_INDUCTION_INTERLEAVED
from flamingo_lite.evaluation.tasks.reading import READING
from flamingo_lite.evaluation.tasks.task import Items, Task, check_files
from flamingo_lite.names import check_choice

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        OPERATOR_INDUCTION,
        OPERATOR_INDUCTION_INTERLEAVED,
        COUNT_INDUCTION,
        OPEN_NAMING,
        MATCHING,
        READING,
        CAPTIONING,
        EXISTENCE,
        *FROM_FILES,
    )
}


def items_of(name: str, files: Mapping[str, Mapping[str, str]] | None = None) -> Items:
    """The queries and supports of a task; `files`: of each task the files that it needs, by name. Loaded once.

    Errors: `FlamingoError` for an unknown task, and for files that are missing or of the wrong kind.
    """
    check_choice("task", name, TASKS)
    given = (files or {}).get(name, {})
    return _loaded(name, tuple(sorted(given.items())))


@lru_cache(maxsize=64)
def _loaded(name: str, files: tuple[tuple[str, str], ...]) -> Items:
    task = TASKS[name]
    check_files(task, dict(files))
    return task.load(dict(files))


def spoken(name: str) -> str:
    """The name of a split, style or condition as a reader would write it: "held-out pairs"."""
    return name.replace("held_out", "held-out").replace("_", " ")


def describe_split(task: str, split: str) -> str:
    """A few words on a split, for a reader; its name where the task is not one of ours."""
    known = TASKS.get(task)
    return known.splits.get(split, split) if known else split
