"""The controls: what is taken away from an episode, to learn what the score came from.

Every condition keeps the query's target, the demonstrations and their order; see `CONDITIONS` for the list.
"""

import functools
import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import PIL.Image

from flamingo_lite.document import Image
from flamingo_lite.errors import SampleError
from flamingo_lite.evaluation.demonstrations import Example, permute_answers

BLANK_GREY = 128


@dataclass(frozen=True)
class Episode:
    """A query with its demonstrations. `other` draws another query of the split, for the condition that
    swaps images."""

    demonstrations: tuple[Example, ...]
    query: Example
    other: Callable[[], Example]


@dataclass(frozen=True)
class Condition:
    """`apply` is pure; `words`: images are then replaced by what they show; `drops_query_images`: those of the query
    are then left out, with nothing in their place. `asks` is for the reader of a report."""

    apply: Callable[[Episode, random.Random], Episode]
    asks: str
    words: bool = False
    drops_query_images: bool = False


@functools.lru_cache(maxsize=4096)
def blank_like(image: Image) -> Image:
    """A uniform image of the size of `image`. It shows nothing, so it has no words.

    One that cannot be read stays, so that its prediction is a counted failure in every condition that shows it.
    """
    try:
        size = image.pil().size
    except SampleError:
        return image
    return Image(PIL.Image.new("RGB", size, (BLANK_GREY,) * 3))


def _unchanged(episode: Episode, generator: random.Random) -> Episode:
    return episode


def _shuffled_labels(episode: Episode, generator: random.Random) -> Episode:
    answers = permute_answers([d.answer for d in episode.demonstrations], generator)
    shown = zip(episode.demonstrations, answers, strict=True)
    return replace(episode, demonstrations=tuple(replace(d, answer=answer) for d, answer in shown))


def _blank_demonstrations(episode: Episode, generator: random.Random) -> Episode:
    return replace(episode, demonstrations=tuple(map(blanked, episode.demonstrations)))


def _mismatched_images(episode: Episode, generator: random.Random) -> Episode:
    return replace(episode, query=replace(episode.query, images=episode.other().images))


def _blank_images(episode: Episode, generator: random.Random) -> Episode:
    return replace(_blank_demonstrations(episode, generator), query=blanked(episode.query))


def blanked(example: Example) -> Example:
    """The example with uniform images."""
    return replace(example, images=tuple(map(blank_like, example.images)))


CONDITIONS: dict[str, Condition] = {
    "standard": Condition(_unchanged, "demonstrations and query as they are"),
    "text_twin": Condition(
        _unchanged, "images replaced by words: the language model's own ceiling", words=True
    ),
    "shuffled_labels": Condition(
        _shuffled_labels, "demonstrations' answers permuted: is the rule read off them?"
    ),
    "blank_demonstrations": Condition(
        _blank_demonstrations, "demonstrations' images uniform: are they looked at?"
    ),
    "mismatched_images": Condition(
        _mismatched_images, "another query's image, target kept: is the query looked at?"
    ),
    "blank_images": Condition(_blank_images, "every image uniform: what answers alone betray"),
    "no_query_image": Condition(
        _unchanged, "the query without its image: is it needed at all?", drops_query_images=True
    ),
}
