"""What an evaluation asks: its configuration, and the prompts that follow from it.

`build_prompt` is a pure function of its arguments, so that a report can show again what the model was given.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from flamingo_lite.document import Document
from flamingo_lite.errors import FlamingoError
from flamingo_lite.evaluation.conditions import CONDITIONS, Episode
from flamingo_lite.evaluation.demonstrations import episode_generator
from flamingo_lite.evaluation.tasks import TASKS
from flamingo_lite.names import check_choice


@dataclass
class EvaluationConfig:
    """`standard` runs over splits x styles x shots x seeds; the other `conditions` at `control_shots` on
    `control_splits` in `control_styles` (spelled demonstrations name their operands: no control of images).
    `queries`: per split. `max_new_tokens` must hold the longest answer of any style.
    """

    tasks: list[str] = field(default_factory=lambda: ["operator_induction"])
    splits: list[str] = field(
        default_factory=lambda: ["test", "handwritten", "held_out_pairs", "held_out_rule"]
    )
    styles: list[str] = field(default_factory=lambda: ["direct", "spelled"])
    shots: list[int] = field(default_factory=lambda: [0, 1, 2, 4, 8])
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    conditions: list[str] = field(default_factory=lambda: list(CONDITIONS))
    control_splits: list[str] = field(default_factory=lambda: ["test"])
    control_styles: list[str] = field(default_factory=lambda: ["direct"])
    control_shots: list[int] = field(default_factory=lambda: [8])
    queries: int = 200
    batch_size: int = 64
    max_new_tokens: int = 12
    resamples: int = 2000

    def __post_init__(self) -> None:
        """Errors: `FlamingoError` for an unknown name, with the nearest right one, and for numbers out of
        range."""
        for condition in self.conditions:
            check_choice("condition", condition, CONDITIONS)
        for name in self.tasks:
            check_choice("task", name, TASKS)
            for split in (*self.splits, *self.control_splits):
                check_choice(f"split of {name}", split, TASKS[name].splits)
            for style in (*self.styles, *self.control_styles):
                check_choice(f"style of {name}", style, TASKS[name].styles)
        for name in ("queries", "batch_size", "max_new_tokens", "resamples"):
            if (value := getattr(self, name)) < 1:
                raise FlamingoError(f"{name} is {value}; expected at least 1")
        for name in ("tasks", "splits", "styles", "shots", "seeds", "conditions"):
            if not getattr(self, name):
                raise FlamingoError(f"{name} is empty; name at least one")
        for name in ("tasks", "splits", "styles", "shots", "seeds", "conditions", "control_shots"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise FlamingoError(f"{name} names a value twice: {list(values)}; name each once")
        if min((*self.shots, *self.control_shots)) < 0:
            raise FlamingoError(f"shots are {self.shots} and {self.control_shots}; expected 0 or more")


@dataclass(frozen=True)
class Setting:
    """One cell of the grid."""

    task: str
    split: str
    style: str
    condition: str
    shots: int


@dataclass(frozen=True)
class Prompt:
    """One prediction to make: the document given, the answers that its demonstrations show, and the
    target."""

    setting: Setting
    query_id: int
    seed: int
    document: Document
    demonstration_ids: tuple[str, ...]
    demonstration_answers: tuple[str, ...]
    target: str


def settings(config: EvaluationConfig) -> list[Setting]:
    """The cells in the order in which they are reported, each once."""
    chosen = {
        Setting(task, split, style, condition, shots): None
        for task in config.tasks
        for condition in config.conditions
        for split in (config.splits if condition == "standard" else config.control_splits)
        for style in (config.styles if condition == "standard" else config.control_styles)
        for shots in (config.shots if condition == "standard" else config.control_shots)
    }
    return list(chosen)


def seeds_of(setting: Setting, config: EvaluationConfig) -> list[int]:
    """Without demonstrations there is nothing that a seed draws, except the other query's image."""
    drawn = setting.shots > 0 or setting.condition == "mismatched_images"
    return list(config.seeds) if drawn else list(config.seeds[:1])


def prompts(setting: Setting, config: EvaluationConfig) -> Iterator[Prompt]:
    for seed in seeds_of(setting, config):
        for query_id in range(config.queries):
            yield build_prompt(setting, query_id, seed)


def build_prompt(setting: Setting, query_id: int, seed: int) -> Prompt:
    """Errors: `FlamingoError` for an unknown name and for a support smaller than the shots."""
    check_choice("task", setting.task, TASKS)
    check_choice("condition", setting.condition, CONDITIONS)
    task, condition = TASKS[setting.task], CONDITIONS[setting.condition]
    check_choice(f"split of {setting.task}", setting.split, task.splits)
    check_choice(f"style of {setting.task}", setting.style, task.styles)
    episode = Episode(
        demonstrations=task.demonstrations(setting.split, query_id, seed, setting.shots),
        query=task.query(setting.split, query_id),
        other=lambda: task.other_query(setting.split, query_id, seed),
    )
    generator = episode_generator(setting.condition, setting.task, setting.split, query_id, seed)
    shown = condition.apply(episode, generator)
    document = task.prompt(shown.demonstrations, shown.query, setting.style)
    return Prompt(
        setting=setting,
        query_id=query_id,
        seed=seed,
        document=document.text_twin() if condition.words else document,
        demonstration_ids=tuple(d.id for d in shown.demonstrations),
        demonstration_answers=tuple(d.answer for d in shown.demonstrations),
        target=episode.query.answer,
    )
