"""Packing: documents share rows, so that little of a row is padding. A pure function of their lengths."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Place = tuple[int, int]
"""The row of a document, and the position in it at which the document starts."""


def pack(
    tokens: Sequence[int] | NDArray[np.integer],
    images: Sequence[int] | NDArray[np.integer] | None = None,
    row_tokens: int | None = None,
    row_images: int | None = None,
) -> list[Place]:
    """The place of each document: best-fit decreasing, within a budget of tokens and of images for each row.

    The longest document comes first (the one with the largest share of either budget); each goes to the fullest row
    that has room for it (Johnson, 1973). Documents of no tokens take no room, one longer than a row has a longer row to
    itself. `row_tokens`: by default the longest document's; `row_images`: by default without limit, else no document
    may have more.
    """
    lengths = np.asarray(tokens, np.int64)
    pictures = np.zeros_like(lengths) if images is None else np.asarray(images, np.int64)
    capacity = int(lengths.max(initial=1)) if row_tokens is None else row_tokens
    most_images = int(pictures.sum()) if row_images is None else row_images
    if pictures.max(initial=0) > most_images:
        raise ValueError("a document has more images than a row may have")
    share = np.maximum(lengths / capacity, pictures / max(1, most_images))
    token_room = np.full(len(lengths), capacity)
    image_room = np.full(len(lengths), most_images)
    places: list[Place] = [(0, 0)] * len(lengths)
    rows = 0
    for i in np.argsort(-share, kind="stable"):
        # A row with a document that is too long for it has less than no room.
        fits = np.flatnonzero((token_room[:rows] >= lengths[i]) & (image_room[:rows] >= pictures[i]))
        row = int(fits[np.argmin(token_room[fits])]) if len(fits) else rows
        rows = max(rows, row + 1)
        places[i] = (row, capacity - int(token_room[row]))
        token_room[row] -= lengths[i]
        image_room[row] -= pictures[i]
    return places
