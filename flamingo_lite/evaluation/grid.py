"""What an evaluation asks: its configuration, and the prompts that follow from it.

`build_prompt` is a pure function of its arguments, so that a report can show again what the model was given.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from flamingo_lite.data.stores import parse_bytes
from flamingo_lite.document import Document, Text
from flamingo_lite.errors import FlamingoError
from flamingo_lite.evaluation.conditions import CONDITIONS, Episode, blanked
from flamingo_lite.evaluation.demonstrations import Example, episode_generator
from flamingo_lite.evaluation.exclusion import excluded, looked_for
from flamingo_lite.evaluation.ranking import NEEDS_CONTENT_FREE
from flamingo_lite.evaluation.rendering import RENDERINGS, rendered_answer
from flamingo_lite.evaluation.selection import (
    BY_SIMILARITY,
    ORDERS,
    SELECTORS,
    Selection,
    Wanted,
    is_drawn,
    select,
)
from flamingo_lite.evaluation.tasks import TASKS, items_of
from flamingo_lite.evaluation.tasks.task import (
    Style,
    Task,
    continuation,
    other_query,
    write_document,
)
from flamingo_lite.names import check_choice, unknown

Files = Mapping[str, Mapping[str, str]]

ZERO_SHOT = {
    "plain": "the query alone",
    "instruction": "the task's instruction before it",
    "text_only": "two demonstrations without their images before it (OpenFlamingo)",
}
TEXT_ONLY_EXAMPLES = 2


@dataclass
class EvaluationConfig:
    """`standard` runs over splits x styles x shots x seeds; the other `conditions` at `control_shots` on
    `control_splits` in `control_styles` (spelled demonstrations name their operands: no control of images).
    Of splits, styles and conditions a task takes those that it has.

    `files`: what tasks from files read, by task (eval.files.TASK.NAME=PATH); presets look for them in the folder `data`.
    `selector`, `order`: how demonstrations are chosen and arranged; `zero_shot`: what a prompt without demonstrations
    begins with. `rendering`: how models are shown a prompt; without it each in its own way, ours interleaved.
    `queries`: per split, or all where there are fewer. `max_new_tokens`: in place of each style's own.
    `image_encoder`, `text_encoder`: what a selector by similarity compares by, as `models.similarity.load_encoder` takes
    them; without an image encoder it is the model's own. `exclude`: the file of `flamingo-lite eval contamination`, whose
    examples are neither asked nor shown.

    None of these changes an answer: `batch_size`; `features`, a folder in which what the vision encoder gives of each
    image is kept; `media_bytes`, about what encoded images may take in memory.
    """

    tasks: list[str] = field(default_factory=lambda: ["operator_induction"])
    data: str = "datasets"
    files: dict[str, dict[str, str]] = field(default_factory=dict)
    splits: list[str] = field(
        default_factory=lambda: ["test", "handwritten", "held_out_pairs", "held_out_rule"]
    )
    styles: list[str] = field(default_factory=lambda: ["direct", "spelled"])
    shots: list[int] = field(default_factory=lambda: [0, 1, 2, 4, 8])
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])
    conditions: list[str] = field(default_factory=lambda: list(CONDITIONS))
    control_splits: list[str] = field(default_factory=lambda: ["test"])
    control_styles: list[str] = field(default_factory=lambda: ["direct"])
    control_shots: list[int] = field(default_factory=lambda: [8])
    selector: str = "random"
    order: str = "own"
    image_encoder: str | None = None
    text_encoder: str = "tiny"
    exclude: str | None = None
    zero_shot: str = "plain"
    rendering: str | None = None
    queries: int = 200
    batch_size: int = 64
    max_new_tokens: int | None = None
    resamples: int = 2000
    features: str | None = None
    media_bytes: str = "4GB"

    def __post_init__(self) -> None:
        """Errors: `FlamingoError` for an unknown name, with the nearest right one, and for numbers out of
        range."""
        for condition in self.conditions:
            check_choice("condition", condition, CONDITIONS)
        for name in (*self.tasks, *self.files):
            check_choice("task", name, TASKS)
        check_choice("selector", self.selector, (*SELECTORS, *BY_SIMILARITY))
        check_choice("order", self.order, ORDERS)
        check_choice("zero_shot", self.zero_shot, ZERO_SHOT)
        if self.rendering is not None:
            check_choice("rendering", self.rendering, RENDERINGS)
        for name in ("queries", "batch_size", "resamples"):
            if (value := getattr(self, name)) < 1:
                raise FlamingoError(f"{name} is {value}; expected at least 1")
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise FlamingoError(f"max_new_tokens is {self.max_new_tokens}; expected at least 1")
        for name in ("tasks", "splits", "styles", "shots", "seeds", "conditions"):
            if not getattr(self, name):
                raise FlamingoError(f"{name} is empty; name at least one")
        for name in ("tasks", "splits", "styles", "shots", "seeds", "conditions", "control_shots"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise FlamingoError(f"{name} names a value twice: {list(values)}; name each once")
        parse_bytes(self.media_bytes, "eval.media_bytes")
        excluded(self.exclude)
        if min((*self.shots, *self.control_shots)) < 0:
            raise FlamingoError(f"shots are {self.shots} and {self.control_shots}; expected 0 or more")
        self._check_choices("split", "splits", (*self.splits, *self.control_splits))
        self._check_choices("style", "styles", (*self.styles, *self.control_styles))

    @property
    def shown_as(self) -> str:
        """How a model is shown a prompt that has no way of its own."""
        return "interleaved" if self.rendering is None else self.rendering

    @property
    def compares(self) -> tuple[str, ...]:
        """What the selector compares of query and demonstrations, "image" and "text"; nothing where it is not by
        similarity."""
        kinds, _ = BY_SIMILARITY.get(self.selector, ((), ""))
        return kinds

    @property
    def needs_own_encoder(self) -> bool:
        """Whether demonstrations are chosen by the encoder of the model that is asked."""
        return "image" in self.compares and self.image_encoder is None

    def _check_choices(self, kind: str, attribute: str, chosen: Sequence[str]) -> None:
        known = {name: list(getattr(TASKS[name], attribute)) for name in self.tasks}
        every = list(dict.fromkeys(value for values in known.values() for value in values))
        # What other tasks have may be named too, so that one list serves whichever tasks are chosen.
        elsewhere = {value for task in TASKS.values() for value in getattr(task, attribute)}
        for value in chosen:
            if value not in elsewhere:
                raise unknown(f"{kind} of {', '.join(self.tasks)}:", value, every)
        for name, values in known.items():
            if not set(values).intersection(getattr(self, attribute)):
                raise FlamingoError(
                    f"{name} has none of the {attribute} {', '.join(getattr(self, attribute))}; "
                    f"expected one of: {', '.join(values)}"
                )


@dataclass(frozen=True)
class Setting:
    """One cell of the grid."""

    task: str
    split: str
    style: str
    condition: str
    shots: int
    selector: str = "random"
    order: str = "own"
    zero_shot: str = "plain"
    rendering: str = "interleaved"


def setting_of(sample: Mapping[str, Any]) -> Setting:
    """The cell of a sample or of a cell's own line; what older files lack had one value then."""
    return Setting(
        task=sample["task"],
        split=sample["split"],
        style=sample.get("style") or "",
        condition=sample["condition"],
        shots=sample["shots"],
        selector=sample.get("selector", "random"),
        order=sample.get("order", "own"),
        zero_shot=sample.get("zero_shot", "plain"),
    )


@dataclass(frozen=True)
class Prompt:
    """One prediction to make. `query` as it is, whatever a condition shows instead; `demonstrations` as shown.

    Where the answer is ranked, `candidates` are its continuations, which mean `choices`, and `content_free` the
    prompt against which it is calibrated, if it is. `failure`: why it is not asked, but counted as failed.
    """

    setting: Setting
    query_id: int
    seed: int
    document: Document
    query: Example
    demonstrations: tuple[Example, ...]
    style: Style
    max_new_tokens: int
    choices: tuple[str, ...] = ()
    candidates: tuple[Text, ...] = ()
    content_free: Document | None = None
    failure: str | None = None

    @property
    def shown(self) -> Document:
        """The document as the model is shown it."""
        return RENDERINGS[self.setting.rendering](self.document)

    @property
    def shown_candidates(self) -> tuple[Text, ...]:
        """The candidates as they continue `shown`."""
        return tuple(rendered_answer(self.setting.rendering, candidate) for candidate in self.candidates)

    @property
    def target(self) -> str:
        return self.query.answer

    @property
    def demonstration_ids(self) -> tuple[str, ...]:
        return tuple(example.id for example in self.demonstrations)

    @property
    def demonstration_answers(self) -> tuple[str, ...]:
        return tuple(example.answer for example in self.demonstrations)


def settings(config: EvaluationConfig) -> list[Setting]:
    """The cells in the order in which they are reported, each once."""
    shared = config.selector, config.order, config.zero_shot, config.shown_as
    chosen = {
        Setting(task, split, style, condition, shots, *shared): None
        for task in config.tasks
        for condition in config.conditions
        if condition in TASKS[task].controls
        for split in (config.splits if condition == "standard" else config.control_splits)
        if split in TASKS[task].splits
        for style in (config.styles if condition == "standard" else config.control_styles)
        if style in TASKS[task].styles
        for shots in (config.shots if condition == "standard" else config.control_shots)
    }
    return list(chosen)


def seeds_of(setting: Setting, config: EvaluationConfig) -> list[int]:
    """Without demonstrations there is nothing that a seed draws, except the other query's image; nor with those that
    are chosen by similarity, unless their order or answers are drawn."""
    has_text_only = setting.shots == 0 and setting.zero_shot == "text_only"
    has_draws = is_drawn(setting.selector, setting.order) or setting.condition == "shuffled_labels"
    drawn = (setting.shots > 0 or has_text_only) and has_draws or setting.condition == "mismatched_images"
    return list(config.seeds) if drawn else list(config.seeds[:1])


def prompts(
    setting: Setting, config: EvaluationConfig, selectors: Mapping[str, Selection] = SELECTORS
) -> Iterator[Prompt]:
    """Errors: as `build_prompt`."""
    for seed in seeds_of(setting, config):
        for query_id in query_ids(setting, config):
            yield asked(setting, query_id, seed, config, selectors)


def query_count(setting: Setting, config: EvaluationConfig) -> int:
    """How many queries of the setting's split are asked, those among them that are left out."""
    count = items_of(setting.task, config.files).count(setting.split)
    return config.queries if count is None else min(config.queries, count)


def query_ids(setting: Setting, config: EvaluationConfig) -> Sequence[int]:
    """Which queries of the setting's split are asked. Errors: `FlamingoError` where all are left out."""
    every = range(query_count(setting, config))
    out = excluded(config.exclude).get((setting.task, setting.split, "query"))
    if not out:
        return every
    items = items_of(setting.task, config.files)
    left = [number for number in every if items.query(setting.split, number).id not in out]
    if not left:
        raise FlamingoError(
            f"{setting.task}, split {setting.split}: {config.exclude} leaves out every query; ask for more queries, or "
            "leave out the task"
        )
    return left


def left_out(config: EvaluationConfig) -> list[dict[str, Any]]:
    """Of each task and split, how many queries and demonstrations `exclude` leaves out, and of how many queries it says
    nothing, where there are any."""
    found = []
    for task, split in {(setting.task, setting.split): None for setting in settings(config)}:
        setting = Setting(task, split, "", "standard", 0)
        count = query_count(setting, config)
        queries = count - len(query_ids(setting, config))
        support = len(excluded(config.exclude).get((task, split, "support"), ()))
        known = looked_for(config.exclude).get((task, split, "query"), 0) if config.exclude else count
        out = {"queries": queries, "of": count, "support": support, "not_looked_for": max(0, count - known)}
        if queries or support or known < count:
            found.append({"task": task, "split": split, **out})
    return found


def asked(
    setting: Setting,
    query_id: int,
    seed: int,
    config: EvaluationConfig,
    selectors: Mapping[str, Selection] = SELECTORS,
) -> Prompt:
    """One of the `prompts`. Errors: as `build_prompt`."""
    queries, support = (
        excluded(config.exclude).get((setting.task, setting.split, role), frozenset())
        for role in ("query", "support")
    )
    prompt = build_prompt(
        setting, query_id, seed, config.files, selectors, support, lambda other: other.id not in queries
    )
    longest = config.max_new_tokens
    return prompt if longest is None else replace(prompt, max_new_tokens=longest)


def build_prompt(
    setting: Setting,
    query_id: int,
    seed: int,
    files: Files | None = None,
    selectors: Mapping[str, Selection] = SELECTORS,
    excluded: frozenset[str] = frozenset(),
    admits_other: Callable[[Example], bool] = lambda example: True,
) -> Prompt:
    """`excluded`: ids that no demonstration has; `admits_other`: whether a query's images may stand in for this one's.
    Errors: `FlamingoError` for an unknown name and for a support smaller than the shots."""
    _check_names(setting)
    task, condition = TASKS[setting.task], CONDITIONS[setting.condition]
    items, style = items_of(setting.task, files), task.styles[setting.style]
    is_text_only = setting.shots == 0 and setting.zero_shot == "text_only"
    query, support = items.query(setting.split, query_id), items.support(setting.split, query_id)
    shots = TEXT_ONLY_EXAMPLES if is_text_only else setting.shots
    wanted = Wanted(setting.task, setting.split, query_id, seed, shots, query, support, excluded)
    episode = Episode(
        demonstrations=select(wanted, setting.selector, setting.order, selectors),
        query=query,
        other=lambda: other_query(items, setting.task, setting.split, query_id, seed, admits_other),
    )
    generator = episode_generator(setting.condition, setting.task, setting.split, query_id, seed)
    shown = condition.apply(episode, generator)

    def written(asked: Example, drops_query_images: bool) -> Document:
        document = write_document(
            task,
            () if is_text_only else shown.demonstrations,
            asked,
            setting.style,
            _preface(task, setting, shown.demonstrations),
            drops_query_images,
        )
        return document.text_twin() if condition.words else document

    document = written(shown.query, condition.drops_query_images)
    if not len(document):
        raise FlamingoError(
            f"{setting.task}: without the query's image nothing is asked at 0 shots in style {setting.style}; "
            "ask for more shots, or leave out no_query_image"
        )
    choices = () if style.candidates is None else tuple(style.candidates(query))
    content_free = None
    if choices and style.ranking in NEEDS_CONTENT_FREE:
        # A uniform image has no words to stand for it.
        content_free = written(blanked(query), condition.drops_query_images or condition.words)
    return Prompt(
        setting=setting,
        query_id=query_id,
        seed=seed,
        document=document,
        query=query,
        demonstrations=shown.demonstrations,
        style=style,
        max_new_tokens=style.max_new_tokens,
        choices=choices,
        candidates=tuple(continuation(task, query, setting.style, choice) for choice in choices),
        content_free=content_free,
        failure=selectors[setting.selector].refusal(wanted),
    )


def _check_names(setting: Setting) -> None:
    check_choice("task", setting.task, TASKS)
    check_choice("condition", setting.condition, CONDITIONS)
    task = TASKS[setting.task]
    check_choice(f"split of {setting.task}", setting.split, task.splits)
    check_choice(f"style of {setting.task}", setting.style, task.styles)


def _preface(task: Task, setting: Setting, demonstrations: Sequence[Example]) -> list[Text]:
    """What a prompt without demonstrations begins with."""
    if setting.shots or setting.zero_shot == "plain":
        return []
    if setting.zero_shot == "instruction":
        return [Text(task.instruction, loss=False)] if task.instruction else []
    written = [segment for d in demonstrations for segment in task.write(d, setting.style, True)]
    return [segment for segment in written if isinstance(segment, Text)]
