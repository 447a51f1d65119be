"""The figures that a training logs, by the panels that show them: one list for the page, the dashboard and the docs.

A panel names its columns by patterns (`loss/*`: one column per source of data). Whatever is logged has a panel, and
whatever a panel names is logged.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase


@dataclass(frozen=True)
class Panel:
    """`columns`: patterns of the columns that are its lines; `about`: what they say, in a sentence without its end.

    `needs`: what must be so for the columns to be there, in a few words; empty where they always are.
    """

    title: str
    columns: tuple[str, ...]
    about: str
    needs: str = ""
    is_logarithmic: bool = False

    def shows(self, column: str) -> bool:
        return any(fnmatchcase(column, pattern) for pattern in self.columns)

    def found(self, columns: Iterable[str]) -> list[str]:
        """Those of `columns` that it shows, in the order in which they are given."""
        return [column for column in columns if self.shows(column)]


SECTIONS: dict[str, tuple[Panel, ...]] = {
    "Loss": (
        Panel("loss", ("loss",), "per trained-on token, over all ranks, of one step", is_logarithmic=True),
        Panel(
            "loss by source",
            ("loss/*",),
            "per trained-on token of each source of data, since the row before",
            is_logarithmic=True,
        ),
        Panel("skipped steps", ("skipped_steps",), "steps whose loss or gradient was no number, so far"),
        Panel(
            "loss scale",
            ("loss_scale",),
            "by which the summed loss is multiplied before it is differentiated in float16",
            "trainer.precision=16-mixed",
            is_logarithmic=True,
        ),
    ),
    "Few-shot": (
        Panel(
            "accuracy over shots",
            ("few_shot/*",),
            "exact match while training goes on, by task, split, style, condition and shots",
            "stage.evaluate_every",
        ),
    ),
    "Optimizer": (
        Panel(
            "learning rate", ("learning_rate", "learning_rate/*"), "of the first group, and of every group"
        ),
        Panel(
            "gradient norm",
            ("gradient_norm", "gradient_norm/*"),
            "of all gradients and of each group's, before clipping",
            is_logarithmic=True,
        ),
        Panel(
            "update norm",
            ("update_norm/*",),
            "how far a step moved each group's weights",
            is_logarithmic=True,
        ),
        Panel(
            "weight norm",
            ("weight_norm/*",),
            "of each group's weights, which an update is to be compared with",
        ),
    ),
    "Images": (
        Panel(
            "gates of attention",
            ("gate/*/attention",),
            "tanh of the gate of each layer: the share with which it adds what it read",
            "cross-attention fusion",
        ),
        Panel(
            "gates of feed-forwards",
            ("gate/*/feed_forward",),
            "tanh of the gate of each layer's feed-forward",
            "cross-attention fusion",
        ),
        Panel(
            "what images add",
            ("attention/*/update",),
            "length of what a layer adds from images beside that of the text's state",
            "cross-attention fusion",
        ),
        Panel(
            "spread of attention",
            ("attention/*/entropy",),
            "1 where a position looks at all media tokens alike, 0 where at a single one",
            "cross-attention fusion",
        ),
        Panel(
            "attention to the latest image",
            ("attention/*/latest",),
            "share of a position's attention that goes to the last image before it",
            "fusion.sees=all_previous",
        ),
        Panel(
            "media tokens beside text",
            ("media_scale",),
            "length of a media token beside that of a word's embedding",
            "prefix fusion",
        ),
    ),
    "Data": (
        Panel("documents", ("documents",), "read so far, used or not"),
        Panel("fill rate", ("fill_rate",), "share of a batch's positions that are no padding"),
        Panel(
            "rejects by reason",
            ("rejects/*",),
            "samples that could not be used, so far",
            "samples that cannot be used",
        ),
    ),
    "Speed": (
        Panel("samples per second", ("samples_per_second",), "over all ranks"),
        Panel("tokens per second", ("tokens_per_second",), "over all ranks, padding left out"),
        Panel("images per second", ("images_per_second",), "over all ranks"),
        Panel(
            "model FLOPs utilization",
            ("mfu",),
            "share of the devices' peak that the model's own arithmetic takes, recomputation left out",
            "a device whose peak is known, or trainer.peak_flops",
        ),
        Panel("seconds", ("seconds",), "since this process began to train"),
        Panel("memory of the process", ("memory/process_gb",), "the most so far, of the first rank"),
        Panel(
            "memory of the device",
            ("memory/device_gb",),
            "the most so far, of the first rank",
            "a CUDA device",
        ),
    ),
}

PANELS = [panel for panels in SECTIONS.values() for panel in panels]

SAMPLES = "samples"
"""The table of prompts, their images and what the model wrote, over time."""

IMAGES = "samples/images"
"""The images of those prompts, as media of their own."""


def column_part(name: str) -> str:
    """`name` as a part of a column: letters, digits and `_` alone, which W&B can sort and filter by."""
    kept = "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in name)
    return "_".join(part for part in kept.split("_") if part) or "unnamed"
