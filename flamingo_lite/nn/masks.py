"""Who sees what: which image a text position reads, and which text positions see each other when packed.

Shape letters: b batch, t text positions, m images in the whole batch, g groups, c positions in a group.
Everything here is a pure function of the data in a `Batch`; it is computed once per forward, outside the
layers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flamingo_lite.errors import FlamingoError


@dataclass(frozen=True)
class MediaLayout:
    """Text positions grouped by the image that they read, so that attention never touches another image.

    A group is up to c positions, in any rows of the batch, that read one image; an image with many positions
    has several groups. Positions without an image are in no group.
    """

    shape: tuple[int, int]  # (b, t)
    attending: Tensor  # (k) flat positions (b t) that read an image, sorted by image
    slots: Tensor  # (k) where each of them lies in the flat groups (g c)
    positions: (
        Tensor  # (g c) flat position held by each slot; unused slots repeat position 0 and are never read
    )
    images: Tensor  # (g) image of each group
    covers_all_images: bool  # images == 0..m-1: keys and values then need no gathering


@dataclass(frozen=True)
class StepLayout:
    """A decoding step: every row has one position, which reads one image or none.

    Its shapes hang on no number, and nothing waits for the device: a step can be compiled and captured.
    """

    images: Tensor  # (b) image of each row; any where it reads none
    has_image: Tensor  # (b) bool: does the row read one?


@dataclass(frozen=True)
class PreviousLayout:
    """What each position reads under *all previous*: a run of its row's candidate images."""

    images: Tensor  # (b i) candidates of each row; some may lie past the last image, and are read by nobody
    visible: Tensor  # (b t i) bool: does the position read the candidate?
    has_image: Tensor  # (b t) bool: does it read any?
    is_empty: bool  # no position reads any


def media_layout(media_index: Tensor, images: int) -> MediaLayout:
    """Group the positions of `media_index` (b t) by image; `images` is m.

    The group length c is the longest run, but at most twice the mean one: with even runs every image is one
    group, with one very long run (the query's answer, say) the padding stays below two slots per position.
    """
    b, t = media_index.shape
    flat = media_index.flatten()
    attending = (flat >= 0).nonzero().squeeze(1)
    image_of, order = flat[attending].sort(stable=True)
    attending = attending[order]
    image, count = image_of.unique_consecutive(return_counts=True)
    total, device = len(attending), flat.device
    if total == 0:
        nothing = attending.new_zeros(0)
        return MediaLayout((b, t), attending, nothing, nothing.view(0, 1), image, False)
    longest = min(int(count.max()), 2 * -(-total // len(image)))
    groups = (count + longest - 1) // longest
    rank = torch.arange(total, device=device) - (count.cumsum(0) - count).repeat_interleave(count)
    group = (groups.cumsum(0) - groups).repeat_interleave(count) + rank // longest
    slots = group * longest + rank % longest
    group_image = image.repeat_interleave(groups)
    positions = slots.new_zeros(len(group_image) * longest).scatter(0, slots, attending)
    covers = len(group_image) == images and bool((group_image == torch.arange(images, device=device)).all())
    return MediaLayout((b, t), attending, slots, positions.view(-1, longest), group_image, covers)


def step_layout(media_index: Tensor) -> StepLayout:
    """What the rows of `media_index` (b 1) read; equal to `media_layout`, for less."""
    index = media_index[:, 0]
    return StepLayout(index.clamp(min=0), index >= 0)


def check_media_index(media_index: Tensor, images: int, exact: bool) -> None:
    """Raise FlamingoError unless `media_index` points into `images` images; `exact`: the last one must be
    used.

    A batch that was padded and concatenated without shifting its indices, or sliced, is caught here.
    """
    lowest, highest = (int(x) for x in media_index.aminmax()) if media_index.numel() else (-1, -1)
    if lowest < -1 or highest >= images or (exact and highest + 1 != images):
        raise FlamingoError(
            f"media_index runs from {lowest} to {highest}, but there are {images} images; it must be -1 or "
            "count them "
            "through from 0 (collate with the processor, slice with Batch.rows)"
        )


def previous_layout(media_index: Tensor, media_first: Tensor | None) -> PreviousLayout:
    """What each position reads under *all previous*: the images `media_first..media_index` of its own document.

    Without `media_first` a row is one document. A row's candidates run from its first image on, as many as the
    longest row has.
    """
    none = torch.iinfo(media_index.dtype).max
    has_image = media_index >= 0
    first = first_images(media_index) if media_first is None else media_first
    first = first.masked_fill(~has_image, none)
    start = first.amin(1)
    start = start.masked_fill(start == none, 0)
    span = int((media_index.amax(1) - start).clamp(min=0).max()) + 1
    images = start[:, None] + torch.arange(span, device=start.device)
    candidates = images[:, None, :]
    visible = (candidates >= first[..., None]) & (candidates <= media_index[..., None])
    return PreviousLayout(images, visible, has_image, not bool(has_image.any()))


def first_images(media_index: Tensor) -> Tensor:
    """(b t) the first image of each row of `media_index` (b t), -1 in a row without one."""
    none = torch.iinfo(media_index.dtype).max
    first = media_index.masked_fill(media_index < 0, none).amin(1, keepdim=True)
    return first.masked_fill(first == none, -1).expand_as(media_index)


def packed_positions(segment_ids: Tensor) -> Tensor:
    """(b t) each position's distance from the start of its own packed document in `segment_ids` (b t)."""
    index = torch.arange(segment_ids.shape[1], device=segment_ids.device).expand_as(segment_ids)
    is_first = torch.ones_like(segment_ids, dtype=torch.bool)
    is_first[:, 1:] = segment_ids[:, 1:] != segment_ids[:, :-1]
    return index - (index * is_first).cummax(1).values


def visible_pairs(
    segment_ids: Tensor,
    attention_mask: Tensor | None = None,
    window: int | None = None,
    also: Tensor | None = None,
) -> Tensor:
    """(b t t) bool: which positions (last axis) a position (middle axis) sees within its own document.

    Itself and those before it, under a sliding `window` only the last `window` of these, and the pairs in
    `also` (b t t), such as the tokens of one image, unless they lie behind the window. Padding sees only
    itself: a position that sees nothing would be NaN. A row that is one document has one segment id.
    """
    position = torch.arange(segment_ids.shape[1], device=segment_ids.device)
    distance = position[:, None] - position
    pairs = (distance >= 0)[None] if also is None else (distance >= 0) | also
    if window is not None:
        pairs = pairs & (distance < window)
    pairs = pairs & (segment_ids[:, :, None] == segment_ids[:, None, :])
    if attention_mask is not None:
        real = attention_mask.bool()
        pairs = pairs & real[:, None, :] & real[:, :, None]
    return pairs | (distance == 0)


def packing_mask(
    segment_ids: Tensor,
    attention_mask: Tensor | None,
    dtype: torch.dtype,
    window: int | None = None,
    also: Tensor | None = None,
) -> Tensor:
    """Additive mask (b 1 t t): 0 for `visible_pairs`, the finite minimum of `dtype` for all others.

    Float, not bool: eager attention adds it, and MPT takes no other.
    """
    visible = visible_pairs(segment_ids, attention_mask, window, also)
    mask = torch.zeros(visible.shape, dtype=dtype, device=segment_ids.device)
    return mask.masked_fill(~visible, torch.finfo(dtype).min)[:, None]
