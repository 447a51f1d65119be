"""Examples that are drawn when they are asked for: a support of thousands of pictures costs only those that are shown."""

import random
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import overload

from flamingo_lite.data.synthetic.picture import paint
from flamingo_lite.data.synthetic.scenes import Thing, scene
from flamingo_lite.document import Image
from flamingo_lite.evaluation.demonstrations import Example


class Drawn(Sequence[Example]):
    """`length` examples; the i-th is `draw(i)`, a pure function."""

    def __init__(self, length: int, draw: Callable[[int], Example]) -> None:
        self._length = length
        self._draw = draw

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self._draw(i) for i in range(*index.indices(self._length))]
        if not -self._length <= index < self._length:
            raise IndexError(f"example {index} of {self._length}")
        return self._draw(index % self._length)


@lru_cache(maxsize=2048)
def support_image(task: str, split: str, thing: Thing, rendering: int) -> Image:
    """A scene of one thing, which all episodes of a task share: few images, encoded once and met often."""
    colour, shape = thing
    return paint(scene([thing]), random.Random(f"support/{task}/{split}/{colour}/{shape}/{rendering}"))
