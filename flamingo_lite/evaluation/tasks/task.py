"""What a task is: data and pure functions, of which the runner, the controls and the report know no more than this.

A task is one small module: where its queries and demonstrations come from (`load`), how an example is written
(`write`), and how an answer is judged (`styles`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from flamingo_lite.document import Document, Image, Text
from flamingo_lite.errors import FlamingoError
from flamingo_lite.evaluation.conditions import CONDITIONS
from flamingo_lite.evaluation.demonstrations import (
    MAX_REJECTIONS,
    Example,
    Support,
    episode_generator,
    uniform_support,
)
from flamingo_lite.evaluation.metrics import Extract, Scored
from flamingo_lite.evaluation.ranking import RANKINGS
from flamingo_lite.names import check_choice

# Another query's image is looked for among this many neighbours, so that few images are drawn for it alone.
NEIGHBOURS = 100

Segments = Sequence[Image | Text]
Score = Callable[[str, Example], Scored]


@dataclass(frozen=True)
class Answer:
    """One answered prompt, as figures over a whole cell see it. `likelihoods`: the score of each candidate, by
    which a ranked answer was chosen."""

    example: Example
    raw: str
    scored: Scored
    likelihoods: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Style:
    """A way of asking and judging. `score` judges one text; `metric` is the name of what it gives, within `bounds`.

    `together`: scores that need all answers of a cell, such as CIDEr-D, in place of those of `score`; `figures`:
    further figures of a cell, by name. `candidates`: the answers among which the likeliest is taken, instead of a
    generated text, by the rule `ranking` (see `ranking.py`). `stop`: a generated text ends before the first of these.
    `has_read`: whether a text says what the query's image shows, where the style asks for such a thing. `opening`:
    what every prompt of the style begins with, demonstrations or none.
    """

    score: Score
    metric: str = "exact_match"
    bounds: tuple[float, float] = (0.0, 1.0)
    max_new_tokens: int = 12
    stop: tuple[str, ...] = ()
    together: Callable[[Sequence[str], Sequence[Example]], list[float]] | None = None
    figures: Callable[[Sequence[Answer]], Mapping[str, float | None]] | None = None
    candidates: Callable[[Example], Sequence[str]] | None = None
    ranking: str = "sum"
    has_read: Callable[[str, Example], bool] | None = None
    opening: str = ""


@dataclass(frozen=True)
class Items:
    """Where examples come from, each a pure function of its arguments: (split, query id), ids from 0 up.

    `count`: how many queries a split has; None for as many as one likes.
    """

    query: Callable[[str, int], Example]
    support: Callable[[str, int], Support]
    count: Callable[[str], int | None] = lambda split: None


@dataclass(frozen=True)
class Task:
    """`asks`: what is asked, in a few words; `splits`: name to a few words. The one that is scored unless a user says
    otherwise is called `test`, and the style `direct`.

    `write`: (example, style, whether its answer is shown) to the segments of a document: what is asked has
    `loss=False`, the answer `loss=True` and `ends_chunk`. `files`: what `load` needs of a user, name to a few words;
    those named in `optional` may be left out. `controls`: the conditions that make sense. `instruction`: what a
    prompt may begin with where it has no demonstrations.
    """

    name: str
    asks: str
    splits: Mapping[str, str]
    styles: Mapping[str, Style]
    write: Callable[[Example, str, bool], Segments]
    load: Callable[[Mapping[str, str]], Items]
    files: Mapping[str, str] = field(default_factory=dict)
    optional: frozenset[str] = frozenset()
    controls: Sequence[str] = tuple(CONDITIONS)
    instruction: str = ""


def segments(example: Example, asked: str, answered: str | None) -> Segments:
    """The example's images, what is asked, and the answer if it is shown."""
    question = (Text(asked, loss=False),) if asked else ()
    answer = () if answered is None else (Text(answered, ends_chunk=True),)
    return (*example.images, *question, *answer)


def exact_match(extract: Extract) -> Score:
    """What `extract` finds in a text, against the example's right answers."""

    def score(text: str, example: Example) -> Scored:
        found = extract(text)
        if found is None:
            return Scored(extracted=None, score=0.0, status="unparsed")
        return Scored(found, float(found in example.right_answers), "ok")

    return score


def ranked(style: Style) -> dict[str, Style]:
    """The styles that choose among an example's choices, by each of the rules of `ranking.py`, judged as `style`."""

    def choices(example: Example) -> Sequence[str]:
        return example.choices

    return {
        "ranked" if rule == "sum" else f"ranked_{rule}": replace(style, candidates=choices, ranking=rule)
        for rule in RANKINGS
    }


def balanced_choice(options: Sequence[str], purpose: str, task: str, split: str, query_id: int) -> str:
    """One of `options` for a query, so that any run of queries has each about equally often.

    Queries are taken in groups as large as the number of options, and each group has every option once, in an order
    of its own.
    """
    group, place = divmod(query_id, len(options))
    return episode_generator(purpose, task, split, group).sample(list(options), len(options))[place]


def first_line(text: str) -> str | None:
    """The first line without the space around it; None where there is none."""
    lines = text.strip().splitlines()
    return lines[0].strip() if lines else None


def continuation(task: Task, example: Example, style: str, answer: str) -> Text:
    """What a model that means `answer` would write after the example's prompt."""
    meant = replace(example, answer=answer, references=())
    asked, answered = task.write(meant, style, False), task.write(meant, style, True)
    written = [segment for segment in answered[len(asked) :] if isinstance(segment, Text)]
    return Text("".join(text.text for text in written), ends_chunk=written[-1].ends_chunk)


def write_document(
    task: Task,
    demonstrations: Sequence[Example],
    query: Example,
    style: str,
    preface: Segments = (),
    drops_query_images: bool = False,
) -> Document:
    """The document that ends where the answer begins."""
    shown = [segment for example in demonstrations for segment in task.write(example, style, True)]
    asked = task.write(query, style, False)
    if drops_query_images:
        asked = [segment for segment in asked if isinstance(segment, Text)]
    opening = task.styles[style].opening
    return Document([*((Text(opening, loss=False),) if opening else ()), *preface, *shown, *asked])


def other_query(
    items: Items,
    name: str,
    split: str,
    query_id: int,
    seed: int,
    admits: Callable[[Example], bool] = lambda example: True,
) -> Example:
    """Another query of the split that shows something else in as many images, which are to stand in for those of
    `query_id`; `admits` says whether it may.

    Errors: `FlamingoError` where there is none among its neighbours.
    """
    query, count = items.query(split, query_id), items.count(split)
    generator = episode_generator("other", name, split, query_id, seed)
    first = query_id - query_id % NEIGHBOURS
    last = first + NEIGHBOURS if count is None else min(first + NEIGHBOURS, count)
    for _ in range(MAX_REJECTIONS):
        other = items.query(split, generator.randrange(first, last))
        if len(other.images) == len(query.images) and _shown(other) != _shown(query) and admits(other):
            return other
    raise FlamingoError(
        f"{name}, split {split}: none of {last - first} queries may be shown and shows something else than query "
        f"{query_id}; leave out mismatched_images, or evaluate a split with more images"
    )


def _shown(example: Example) -> tuple[str, ...]:
    # Another rendering of the same words would be no mismatch.
    return tuple(image.words if image.words is not None else image.id for image in example.images)


def listed(queries: Mapping[str, Sequence[Example]], support: Mapping[str, Sequence[Example]]) -> Items:
    """Items of lists, by split: every query of a split has all of its support.

    Errors: `FlamingoError` for a split without queries and for an id that comes twice among its queries or in its
    support.
    """
    supports = {split: uniform_support(split, examples) for split, examples in support.items()}
    for kind, examples_of in (("queries", queries), ("support", support)):
        for split, examples in examples_of.items():
            _require_distinct(f"the {kind} of split {split}", examples)
    for split, examples in queries.items():
        if not examples:
            raise FlamingoError(f"split {split} has no queries; expected at least one: check the files")
    return Items(
        query=lambda split, query_id: queries[split][query_id],
        support=lambda split, query_id: supports[split],
        count=lambda split: len(queries[split]),
    )


def check_files(task: Task, files: Mapping[str, str]) -> None:
    """Errors: `FlamingoError` for a file that the task does not know, that is not named, or that is not there."""
    for name in files:
        check_choice(f"file of {task.name}", name, task.files)
    for name, what in task.files.items():
        if name not in files and name not in task.optional:
            raise FlamingoError(
                f"{task.name} needs {what}; say where with eval.files.{task.name}.{name}=PATH"
            )
    for name, path in files.items():
        if not Path(path).exists():
            raise FlamingoError(
                f"eval.files.{task.name}.{name} is {path}, which does not exist; expected {task.files[name]}"
            )


def _require_distinct(where: str, examples: Sequence[Example]) -> None:
    seen: set[str] = set()
    for example in examples:
        if example.id in seen:
            raise FlamingoError(f"{where} has the id {example.id} twice; expected each once: mend the file")
        seen.add(example.id)
