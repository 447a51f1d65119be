"""MediaCache: images that a model has already encoded, and their keys and values for each fused layer.

It is not a tensor, so `generate` neither repeats it for beams nor slices it: rows point into it by
`media_index`. Everything is filled on first use, inside the model's forward, and computed once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from torch import Tensor

KeysValues = tuple[Tensor, Tensor]


class MediaCache:
    """Media tokens (m n d) of m images, and their projected keys and values (m h n e) per fused layer.

    Made from `pixel_values` (m c h w), encoded at the first forward, or from `media` tokens directly. `text`: ids
    and mask (m s) of what the connector reads beside each image. Only for inference: what it remembers carries
    no gradient.
    """

    def __init__(
        self, pixel_values: Tensor | None = None, media: Tensor | None = None, text: tuple[Tensor, ...] = ()
    ) -> None:
        if (pixel_values is None) == (media is None):
            raise ValueError("MediaCache needs either pixel_values or media tokens, and not both")
        self._pixel_values = pixel_values
        self._text = text
        self._media = media
        self._projected: dict[int, KeysValues] = {}

    def __len__(self) -> int:
        # Exactly one of the two is there (see __init__).
        return len(self._media if self._media is not None else cast(Tensor, self._pixel_values))

    def tokens(self, encode: Callable[..., Tensor]) -> Tensor:
        """The media tokens (m n d); `encode` turns the pixels, and the text if any, into them at the first call."""
        if self._media is None:
            self._media = encode(cast(Tensor, self._pixel_values), *self._text)
            self._pixel_values = None
        return self._media

    def keys_values(self, layer: int, project: Callable[[Tensor], KeysValues]) -> KeysValues:
        """Keys and values (m h n e) of fused layer `layer`; `project` makes them from the tokens at the first
        call.
        """
        if layer not in self._projected:
            if self._media is None:
                raise RuntimeError(
                    "MediaCache.keys_values before MediaCache.tokens: the images are not encoded yet"
                )
            self._projected[layer] = project(self._media)
        return self._projected[layer]

    def select(self, index: Tensor) -> MediaCache:
        """The images `index` (k) as a cache of their own; whatever either computes is computed once, in this
        one.
        """
        return _Selection(self, index)


class _Selection(MediaCache):
    def __init__(self, parent: MediaCache, index: Tensor) -> None:
        self._parent = parent
        self._index = index
        self._chosen: Tensor | None = None
        self._selected: dict[int, KeysValues] = {}

    def __len__(self) -> int:
        return len(self._index)

    def tokens(self, encode: Callable[..., Tensor]) -> Tensor:
        if self._chosen is None:
            self._chosen = self._parent.tokens(encode).index_select(0, self._index)
        return self._chosen

    def keys_values(self, layer: int, project: Callable[[Tensor], KeysValues]) -> KeysValues:
        if layer not in self._selected:
            key, value = self._parent.keys_values(layer, project)
            self._selected[layer] = (key.index_select(0, self._index), value.index_select(0, self._index))
        return self._selected[layer]


@dataclass(frozen=True)
class Media:
    """What one forward has of images: their media tokens, and which text position reads which."""

    cache: MediaCache
    tokens: Tensor  # (m n d)
    index: Tensor  # (b t) the last image at or before the position, -1 for none
    first: Tensor | None  # (b t) the first image of the position's document; None: a row is one document
    is_packed: bool
