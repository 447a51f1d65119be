"""An image in words: captions, and boxes with labels. It is all that a teacher which sees no images is shown of it."""

from dataclasses import dataclass
from typing import Any

from flamingo_lite.document import Image

Corners = tuple[float, float, float, float]
"""Left, top, right, bottom, each from 0 to 1."""


@dataclass(frozen=True)
class Box:
    label: str
    corners: Corners

    def __str__(self) -> str:
        return f"{self.label}: [{', '.join(f'{corner:.3f}' for corner in self.corners)}]"


@dataclass(frozen=True)
class Described:
    """`key`: unique among the images of a run, and a part of the keys of their documents."""

    key: str
    image: Image
    captions: tuple[str, ...]
    boxes: tuple[Box, ...] = ()

    def meta(self) -> dict[str, Any]:
        """As a document keeps it: what its answers can be checked against."""
        boxes = [
            {"label": box.label, "box": [round(corner, 3) for corner in box.corners]} for box in self.boxes
        ]
        return {"captions": list(self.captions), "boxes": boxes}


def context(captions: tuple[str, ...], boxes: tuple[Box, ...] = ()) -> str:
    """What the teacher reads, the boxes as `label: [left, top, right, bottom]` with three decimals."""
    parts = ["Captions:\n" + "\n".join(f"- {caption}" for caption in captions)]
    if boxes:
        parts.append("Boxes:\n" + "\n".join(map(str, boxes)))
    return "\n\n".join(parts)
