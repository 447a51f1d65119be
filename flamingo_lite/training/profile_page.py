"""A profile of a training step for people: a table by part, and a page with it and a flame chart, which loads nothing and
runs no script."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from flamingo_lite.data.pages import templates_of
from flamingo_lite.training.step_profile import (
    BACKWARD,
    DATA,
    FORWARD,
    OPTIMIZER,
    PartCost,
    Path,
    StepProfile,
)

LEAST = 0.002
"""Share of the step below which a bar would be too narrow to see."""

HEAD = ("part", "forward, ms", "backward, ms", "of the step", "weights, MB", "kept, MB", "of its limit")


@dataclass
class Node:
    """A bar of the flame chart. `hidden`: the share of what lies inside it and is too narrow to show."""

    name: str
    kind: str
    seconds: float = 0.0
    share: float = 0.0
    hidden: float = 0.0
    children: list[Node] = field(default_factory=list)


def flame(paths: Mapping[Path, float], name: str) -> Node:
    """The bars, the longest first within each; a bar is as long as what is in it."""
    root = Node(name, FORWARD)
    inside: dict[Path, Node] = {(): root}
    for path, seconds in paths.items():
        root.seconds += seconds
        for depth in range(1, len(path) + 1):
            if path[:depth] not in inside:
                inside[path[:depth]] = Node(path[depth - 1], path[0])
                inside[path[: depth - 1]].children.append(inside[path[:depth]])
            inside[path[:depth]].seconds += seconds
    _settle(root, max(root.seconds, 1e-12))
    return root


def _settle(node: Node, total: float) -> None:
    node.share = node.seconds / total
    shown = sorted(
        (child for child in node.children if child.seconds >= LEAST * total), key=lambda child: -child.seconds
    )
    node.hidden = (node.seconds - sum(child.seconds for child in shown)) / total if shown else 0.0
    node.children = shown
    for child in shown:
        _settle(child, total)


def rows(profile: StepProfile) -> list[list[str]]:
    """The table's cells, the sums last. The data stand beside the step, in which they are not."""
    step = sum(cost.total for name, cost in profile.parts.items() if name != DATA)
    made = [_row(name, cost, step) for name, cost in profile.parts.items()]
    others = [cost for name, cost in profile.parts.items() if name != DATA]
    sums = PartCost(
        {
            passing: sum(cost.seconds.get(passing, 0.0) for cost in others)
            for passing in (FORWARD, BACKWARD, OPTIMIZER)
        },
        weights=sum(cost.weights for cost in others),
        kept=sum(cost.kept for cost in others),
        limit=sum(cost.limit or 0.0 for cost in others),
    )
    return [*made, _row("all but data", sums, step)]


def _row(name: str, cost: PartCost, step: float) -> list[str]:
    forward = cost.seconds.get(FORWARD, 0.0) + cost.seconds.get(OPTIMIZER, 0.0)
    backward = cost.seconds.get(BACKWARD)
    return [
        name,
        f"{1e3 * forward:,.1f}",
        "" if backward is None else f"{1e3 * backward:,.1f}",
        f"{cost.total / step:.0%}",
        f"{cost.weights / 1e6:,.1f}" if cost.weights else "",
        f"{cost.kept / 1e6:,.1f}",
        "" if not cost.limit or not cost.total else f"{cost.limit / cost.total:.0%}",
    ]


def notes(profile: StepProfile) -> list[str]:
    """What the figures are."""
    timed = sum(cost.total for name, cost in profile.parts.items() if name != DATA)
    return [
        f"{profile.rows} rows of {profile.length} positions, {profile.images} images. A step takes "
        f"{1e3 * profile.step:,.1f} ms; timed one by one its operations take {1e3 * timed:,.1f} ms.",
        "Kept is what the forward pass leaves for the backward pass (of the data the batch, of the optimizer its state). "
        f"At most {profile.peak / 1e6:,.1f} MB of activations and gradients live at once, of these "
        f"{profile.gradients / 1e6:,.1f} MB gradients.",
        f"Of its limit: a part's arithmetic at {profile.matrix_rate / 1e9:,.1f} billion operations a second, the best that "
        "a product of 1024 x 1024 matrices comes to here, beside its time (above 100% where that was disturbed); the "
        f"optimizer's reading and writing at {profile.read_rate / 1e9:,.1f} GB a second; making the batch beside decoding "
        "its images alone.",
    ]


def page(profile: StepProfile, title: str) -> bytes:
    """The HTML, as UTF-8."""
    template = templates_of("flamingo_lite.training").get_template("profile.html.jinja")
    written = template.render(
        title=title,
        notes=notes(profile),
        head=HEAD,
        rows=rows(profile),
        flame=flame(profile.paths, "a step"),
        least=LEAST,
    )
    return written.encode("utf-8", "replace")
