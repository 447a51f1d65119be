"""Documents of a weighted mixture of synthetic families, drawn on all cores.

Document i is a pure function of (seed, the families' weights, i), so the shards are the same bytes whatever
the number of worker processes.
"""

import multiprocessing
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

from flamingo_lite.data.features import FeatureCacheConfig
from flamingo_lite.data.mixing import SourceConfig
from flamingo_lite.data.stores import CacheConfig
from flamingo_lite.document import Document
from flamingo_lite.errors import FlamingoError
from flamingo_lite.names import check_choice

CHUNK = 16
# Documents per message between processes: enough to hide the cost of one, few enough to share the work.


@dataclass
class DataConfig:
    """Shards in `directory`: where they are read, and what `flamingo-lite data make` writes there.

    `families` maps the name of a synthetic family to its weight. `text_twins`: the share of documents in which words
    stand in place of every picture. `workers`: processes; 0 = one per core. `cache`: for shards that are read from far away.
    `features`: for what a frozen vision encoder computes of each image.

    `sources`: what is read in place of `directory`, by name. `shuffle_shards`: shards whose samples are mixed with each
    other. `max_reject_share` (of the documents seen, once those are 1,000) and `max_rejects_in_a_row`: more samples
    that cannot be used stop a run. `draft`: JPEGs are decoded no larger than training needs them.
    """

    directory: str = "outputs/shards"
    families: dict[str, float] = field(default_factory=dict)
    text_twins: float = 0.0
    samples: int = 1000
    samples_per_shard: int = 1000
    seed: int = 0
    workers: int = 0
    cache: CacheConfig = field(default_factory=CacheConfig)
    features: FeatureCacheConfig = field(default_factory=FeatureCacheConfig)
    sources: dict[str, SourceConfig] = field(default_factory=dict)
    shuffle_shards: int = 8
    max_reject_share: float = 0.01
    max_rejects_in_a_row: int = 100
    draft: bool = True

    def __post_init__(self) -> None:
        for name in ("samples", "samples_per_shard", "shuffle_shards", "max_rejects_in_a_row"):
            if getattr(self, name) < 1:
                raise FlamingoError(f"data.{name} is {getattr(self, name)}; expected 1 or more")
        if self.workers < 0:
            raise FlamingoError(f"data.workers is {self.workers}; expected 0 (one per core) or more")
        if not 0 <= self.text_twins <= 1:
            raise FlamingoError(f"data.text_twins is {self.text_twins}; expected a share, 0 to 1")
        if not 0 <= self.max_reject_share <= 1:
            raise FlamingoError(f"data.max_reject_share is {self.max_reject_share}; expected a share, 0 to 1")
        for name, source in self.sources.items():
            if not source.directory:
                raise FlamingoError(f"data.sources.{name} has no directory; expected where its shards are")
        from flamingo_lite.data.synthetic.families import FAMILIES

        for name, weight in self.families.items():
            check_choice("family in data.families:", name, FAMILIES)
            if not weight >= 0:
                raise FlamingoError(f"data.families.{name} is {weight}; expected a weight of 0 or more")


def draw_documents(config: DataConfig) -> Iterator[tuple[str, Document]]:
    """Yields `config.samples` pairs (key, document), in order. Errors: `FlamingoError` without any weight."""
    if not any(config.families.values()):
        raise FlamingoError("data.families has no family with a weight above 0; expected at least one")
    draw = partial(
        draw_document, seed=config.seed, families=dict(config.families), text_twins=config.text_twins
    )
    workers = min(config.workers or available_cores(), -(-config.samples // CHUNK))
    if workers == 1:
        yield from map(draw, range(config.samples))
        return
    # Spawned, not forked: the parent may hold threads (torch's) whose locks a fork would copy locked.
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap(draw, range(config.samples), chunksize=CHUNK)


def draw_document(
    index: int, seed: int, families: dict[str, float], text_twins: float = 0.0
) -> tuple[str, Document]:
    """Document `index` of the mixture and its key, whatever was drawn before it."""
    from flamingo_lite.data.synthetic.families import FAMILIES
    from flamingo_lite.data.synthetic.picture import in_words, paint

    names = sorted(families)
    weights = [families[name] for name in names]
    name = random.Random(f"{seed}/mixture/{index}").choices(names, weights)[0]
    painter = in_words if random.Random(f"{seed}/twin/{index}").random() < text_twins else paint
    document = FAMILIES[name](random.Random(f"{seed}/{name}/{index}"), painter)
    return f"{index:08d}", Document(document, {**document.meta, "family": name})


def available_cores() -> int:
    """The cores that this process may run on (a container may own fewer than the machine has)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
