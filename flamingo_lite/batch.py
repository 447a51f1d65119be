"""A batch: what a model eats. Rows of token ids, all images of the batch flat, and for each position the
image that it attends to.

Shape letters: b batch, t text positions, m images in the whole batch, c channels, h height, w width,
s positions of a connector's text.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from flamingo_lite.errors import FlamingoError

IGNORED = -100  # the label of a position that nothing is trained on
NO_IMAGE = -1  # the media index of a position that attends to no image
PER_IMAGE = (
    "pixel_values",
    "connector_text_ids",
    "connector_text_mask",
)  # their rows are images, not documents
NO_SEGMENT = -1  # the segment id of padding in a packed batch


@dataclass
class Batch:
    """Token ids, labels, images and the media index that joins them; `model(**batch)` works.

    `media_index`: the image in [0, m) that a position attends to, the last one at or before it in its own
    document; -1 for none and on padding. `media_first`: the first image of the position's document.
    `labels` are not shifted. Errors: `FlamingoError` when shapes disagree, or when `media_index.max() + 1`
    is not m (checked on the CPU only, where reading the maximum waits for no device).
    """

    input_ids: Tensor  # (b t) int64
    attention_mask: Tensor  # (b t) bool, False on padding
    position_ids: Tensor  # (b t) int64, restarts at each packed document
    labels: Tensor  # (b t) int64, -100 where nothing is trained
    pixel_values: Tensor  # (m c h w) float
    media_index: Tensor  # (b t) int64
    segment_ids: Tensor | None = None  # (b t) int64, the number of the document, when rows are packed
    media_first: Tensor | None = None  # (b t) int64
    connector_text_ids: Tensor | None = None  # (m s) int64, what the connector reads beside each image
    connector_text_mask: Tensor | None = None  # (m s) bool, False on padding

    def __post_init__(self) -> None:
        shape = self.input_ids.shape
        for name in self.keys():
            if name not in PER_IMAGE and self[name].shape != shape:
                raise FlamingoError(
                    f"batch: {name} has shape {tuple(self[name].shape)}, input_ids has {tuple(shape)}"
                )
        if self.pixel_values.ndim != 4:
            raise FlamingoError(
                f"batch: pixel_values has shape {tuple(self.pixel_values.shape)}, not (m c h w)"
            )
        for name in PER_IMAGE:
            if name in self.keys() and len(self[name]) != len(self.pixel_values):
                raise FlamingoError(
                    f"batch: {name} has {len(self[name])} rows, expected one for each of {len(self.pixel_values)} images"
                )
        if self.media_index.device.type == "cpu" and self.media_index.numel():
            last, m = int(self.media_index.max()), len(self.pixel_values)
            if last + 1 != m or int(self.media_index.min()) < NO_IMAGE:
                raise FlamingoError(
                    f"batch: media_index ends at {last}, expected {m - 1}: there are {m} images"
                )

    def keys(self) -> Iterator[str]:
        """The names of the fields that are present."""
        return (field.name for field in fields(self) if getattr(self, field.name) is not None)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.keys():
            raise KeyError(name)
        return getattr(self, name)

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.input_ids)

    @property
    def documents(self) -> int:
        """The number of documents: as many as rows, or more where rows are packed."""
        return int(((self.position_ids == 0) & self.attention_mask).sum())

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> "Batch":
        """The batch on another device; types are kept."""
        return replace(
            self, **{name: self[name].to(device, non_blocking=non_blocking) for name in self.keys()}
        )

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory, for copies that do not block (torch's DataLoader calls this)."""
        return replace(self, **{name: self[name].pin_memory() for name in self.keys()})

    def rows(self, rows: slice | Tensor | Iterable[int]) -> "Batch":
        """The chosen rows with exactly the images that they use, renumbered: the right way to slice a batch.

        Rows may repeat; they then share their images. `media_index` and `media_first` keep their order.
        """
        device = self.input_ids.device
        if isinstance(rows, slice):
            chosen = torch.arange(len(self), device=device)[rows]
        else:
            chosen = torch.as_tensor(rows if isinstance(rows, Tensor) else list(rows), dtype=torch.int64).to(
                device
            )
        taken = {name: self[name][chosen] for name in self.keys() if name not in PER_IMAGE}
        # Every image of a row stands in its media_index at the image's own mark.
        used = taken["media_index"][taken["media_index"] >= 0].unique()
        number = torch.full((len(self.pixel_values) + 1,), NO_IMAGE, dtype=torch.int64, device=device)
        number[used] = torch.arange(len(used), device=device)
        for name in ("media_index", "media_first"):
            if name in taken:
                taken[name] = number[taken[name]]  # index -1 reads the last entry, which stays -1
        taken |= {name: self[name][used] for name in PER_IMAGE if name in self.keys()}
        return replace(self, **taken)
