"""The ways of choosing demonstrations that an evaluation has, with the encoders that those by similarity compare by."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flamingo_lite.commands.subjects import Load
    from flamingo_lite.config import Config
    from flamingo_lite.evaluation.selection import Selection
    from flamingo_lite.models.similarity import SimilarityEncoder
    from flamingo_lite.training.display import ProgressDisplay
    from flamingo_lite.training.ranks import Ranks


def selectors_of(
    config: "Config", ranks: "Ranks", display: "ProgressDisplay", load: "Load"
) -> "Mapping[str, Selection]":
    """The ways of choosing demonstrations; those by similarity with the encoders that `config.eval` names."""
    from flamingo_lite.commands.subjects import choices_of, directory_of, kept_features, key_of_features
    from flamingo_lite.evaluation.retrieval import Retrieval
    from flamingo_lite.evaluation.selection import BY_SIMILARITY, SELECTORS
    from flamingo_lite.models.similarity import load_encoder, own_encoder
    from flamingo_lite.training.settings import torch_device

    if config.eval.selector not in BY_SIMILARITY:
        return SELECTORS
    device = torch_device(config.trainer.accelerator)
    named, cache = config.eval.image_encoder, None
    if config.eval.features is not None:
        cache = partial(kept_features, config, Path(config.eval.features) / "similarity")

    def image_encoder() -> "SimilarityEncoder":
        if named is not None:
            return load_encoder(named, "image", device)
        (choice,) = choices_of(config).values()  # the only model, and ours: `subjects_of` has seen to it
        model, processor = load(directory_of(choice), config.trainer.accelerator)
        return own_encoder(model, processor, key_of_features(model, processor))

    def say(what: str, done: int, total: int) -> None:
        display.update(display.done, f"{what}: {done:,} of {total:,}")

    encoders = {
        "image": image_encoder,
        "text": lambda: load_encoder(config.eval.text_encoder, "text", device),
    }
    found = Retrieval(encoders, cache, rank=ranks.rank, number=ranks.number, say=say)
    return {**SELECTORS, **found.selectors()}
