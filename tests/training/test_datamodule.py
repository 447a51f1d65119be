"""The data of a run: what is read, and in which order, is the same on any ranks and workers, and after any stop."""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flamingo_lite.data.lengths import COMMAND
from flamingo_lite.data.make import DataConfig
from flamingo_lite.data.manifest import MANIFEST, Manifest, Shard, load_manifest
from flamingo_lite.data.mixing import SourceConfig
from flamingo_lite.data.prepared import NO_SOURCE, PreparedBatch
from flamingo_lite.data.shards import Shards, write_shards
from flamingo_lite.data.stores import LocalStore
from flamingo_lite.document import Image
from flamingo_lite.errors import FlamingoError
from flamingo_lite.processing import VisionLanguageProcessor
from flamingo_lite.training.datamodule import ShardDataModule, open_sources
from flamingo_lite.training.settings import StageConfig
from tests.training.conftest import document

Documents = list[tuple[str, str]]


class OneOf:
    """What a data module asks of its trainer: the rank it is on."""

    class strategy:
        root_device = torch.device("cpu")

    def __init__(self, rank: int, ranks: int) -> None:
        self.global_rank, self.world_size = rank, ranks


@pytest.fixture(scope="module")
def directories(
    tmp_path_factory: pytest.TempPathFactory, image_of: Callable[[int], Image]
) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("sources")
    for name, count in (("pages", 23), ("pairs", 11), ("talks", 5)):
        documents = ((f"{name}-{i:02d}", document(i, image_of)) for i in range(count))
        write_shards(documents, root / name, samples_per_shard=4)
    # One sample of a source is cut off.
    os.truncate(root / "pairs" / "shard-000002.tar", 2048)
    return {name: root / name for name in ("pages", "pairs", "talks")}


@pytest.fixture
def module(
    directories: dict[str, Path], processor: VisionLanguageProcessor
) -> Callable[..., ShardDataModule]:
    """Data modules that differ in what a test is about; `weights` of sources by name."""

    def make(
        weights: dict[str, float | None] | None = None,
        seed: int = 0,
        accumulate: int = 1,
        workers: int = 0,
        rank: int = 0,
        ranks: int = 1,
        output: Path | None = None,
        sources: dict[str, dict[str, Any]] | None = None,
        shuffle_shards: int = 2,
        **stage: Any,
    ) -> ShardDataModule:
        weights = {"pages": 2.0, "pairs": 1.0, "talks": 0.5} if weights is None else weights
        more = sources or {}
        configs = {
            name: SourceConfig(str(directories[name]), weight, **more.get(name, {}))
            for name, weight in weights.items()
        }
        data = DataConfig(sources=configs, shuffle_shards=shuffle_shards)
        chosen = StageConfig(**{"steps": 6, "batch_size": 4, "pack": True, "pack_window": 16, **stage})
        made = ShardDataModule(
            open_sources(data), data, chosen, processor, seed, 40, accumulate, workers, output
        )
        made.trainer = OneOf(rank, ranks)  # type: ignore[assignment]
        return made

    return make


def consumed(data: ShardDataModule, batches: int | None = None) -> Iterator[PreparedBatch]:
    """The batches that a trainer would take, told to the data module as a trainer does."""
    for number, batch in enumerate(data.train_dataloader()):
        if number == batches:
            return
        yield batch
        data.took(batch)


def contents(batch: PreparedBatch) -> list[tuple[Any, ...]]:
    """The batch as values that can be compared, row by row, without what stands in for nothing."""
    rows = []
    for row in range(len(batch.batch)):
        if (batch.source_ids[row] == NO_SOURCE).all():
            continue
        one = batch.batch.rows([row])
        mask = one.attention_mask[0]
        fields = (
            one.input_ids,
            one.labels,
            one.position_ids,
            one.media_index,
            batch.source_ids[row : row + 1],
        )
        places = mask.nonzero().flatten().tolist()
        rows.append(
            (places, *(f[0][mask].tolist() for f in fields), one.pixel_values.sum((1, 2, 3)).tolist())
        )
    return rows


def whole(
    make: Callable[..., ShardDataModule], ranks: int, accumulate: int, workers: int, **how: Any
) -> list:
    """The rows of all ranks' batches in the order of the plan, step by step."""
    shares = [
        [
            (contents(batch), batch.samples, batch.rejects)
            for batch in consumed(make(rank=rank, ranks=ranks, accumulate=accumulate, workers=workers, **how))
        ]
        for rank in range(ranks)
    ]
    steps = []
    for step in range(len(shares[0]) // accumulate):
        turns = [shares[r][step * accumulate + turn] for turn in range(accumulate) for r in range(ranks)]
        steps.append(tuple([item for turn in turns for item in turn[field]] for field in range(3)))
    return steps


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 99),
    parts=st.sampled_from([(1, 2), (2, 1), (2, 2), (4, 1), (1, 4)]),
    pack=st.booleans(),
    weights=st.sampled_from([None, {"pages": None, "pairs": None}, {"pages": 1.0, "talks": 3.0}]),
)
def test_ranks_and_parts_change_nothing(
    module: Callable[..., ShardDataModule],
    seed: int,
    parts: tuple[int, int],
    pack: bool,
    weights: dict[str, float | None] | None,
) -> None:
    how = {"seed": seed, "pack": pack, "weights": weights, "steps": 4}
    assert whole(module, *parts, workers=0, **how) == whole(module, 1, 1, workers=0, **how)


@pytest.mark.parametrize("ranks, workers", [(1, 1), (2, 2), (4, 4)])
def test_workers_change_nothing(module: Callable[..., ShardDataModule], ranks: int, workers: int) -> None:
    assert whole(module, ranks, 1, workers, steps=3) == whole(module, 1, 1, 0, steps=3)


@pytest.mark.parametrize("pack", [False, True])
def test_a_run_that_stops_at_any_batch_goes_on_as_if_it_had_not(
    module: Callable[..., ShardDataModule], pack: bool
) -> None:
    straight, states, data = [], [], module(steps=40, pack=pack)
    for batch in consumed(data):
        states.append(data.state_dict())
        straight.append(contents(batch))
    for stop in random.Random(0).sample(range(39), 20):
        # In other parts than before: they are no part of the state.
        again = module(steps=min(40, stop + 2), pack=pack, accumulate=2)
        again.load_state_dict(states[stop])
        after = [contents(batch) for batch in consumed(again)]
        joined = [after[i] + after[i + 1] for i in range(0, len(after), 2)]
        assert joined == straight[stop : stop + 2]


def test_what_was_prefetched_is_not_counted_as_read(module: Callable[..., ShardDataModule]) -> None:
    data = module(workers=2)
    loader = iter(data.train_dataloader())
    first = next(loader)
    assert data.state_dict()["position"] == [0, 0, 0]
    data.took(first)
    assert data.state_dict()["position"][2] == 1


def test_the_state_is_the_same_on_all_ranks(module: Callable[..., ShardDataModule]) -> None:
    states = []
    for rank in range(2):
        data = module(rank=rank, ranks=2)
        for _ in consumed(data, 3):
            pass
        state = data.state_dict()
        states.append((state["position"], state["identity"]))
    assert states[0] == states[1]


@pytest.mark.parametrize(
    "change, named",
    [
        ({"seed": 1}, "seed was 0, now it is 1"),
        ({"batch_size": 8}, "stage.batch_size was 4, now it is 8"),
        ({"weights": {"pages": 2.0, "pairs": 1.5, "talks": 0.5}}, "mixture"),
        ({"sources": {"pages": {"samples": 20}}}, "mixture"),
        (
            {"sources": {"pages": {"template": {"end": False}}}},
            "tokenizer, template or length of source pages",
        ),
        ({"weights": {"pages": 2.0, "pairs": 1.0}}, "mixture"),
        ({"pack_window": 8}, "packing"),
        ({"images_per_row": 3}, "packing"),
        ({"pack": False}, "packing"),
        ({"row_length": 64}, "packing"),
        ({"shuffle_shards": 3}, "data.shuffle_shards"),
    ],
)
def test_going_on_in_other_data_is_refused_by_name(
    module: Callable[..., ShardDataModule], change: dict[str, Any], named: str
) -> None:
    state = module().state_dict()
    with pytest.raises(FlamingoError, match=f"{named}.*resume=never"):
        module(**change).load_state_dict(state)


def test_other_shards_are_refused_by_the_name_of_their_source(
    module: Callable[..., ShardDataModule], directories: dict[str, Path], image_of: Any
) -> None:
    weights = {"talks": None}
    state = module(weights).state_dict()
    write_shards([("a", document(0, image_of))], directories["talks"] / "other")
    directories["talks"] = directories["talks"] / "other"
    with pytest.raises(FlamingoError, match="set of shards of source talks"):
        module(weights).load_state_dict(state)
    directories["talks"] = directories["talks"].parent


class Counted(LocalStore):
    """A store that counts the shards that were opened."""

    opened: list[str]

    def open(self, shard: Shard) -> BinaryIO:
        self.opened.append(shard.name)
        return super().open(shard)


def a_million(directory: Path, root: Path) -> Path:
    """A directory of 1,000 shards of 600 samples: one, under 1,000 names."""
    shard = load_manifest(directory).shards[0]
    root.mkdir()
    shards = [replace(shard, name=f"shard-{i:06d}.tar") for i in range(1000)]
    for each in shards:
        for suffix in ("", ".idx"):
            (root / f"{each.name}{suffix}").symlink_to(directory / f"{shard.name}{suffix}")
    (root / MANIFEST).write_text(Manifest(root, tuple(shards)).to_json())
    return root


def test_going_on_at_the_millionth_sample_takes_no_time_and_opens_no_shard_but_its_own(
    processor: VisionLanguageProcessor, tmp_path: Path, image_of: Callable[[int], Image]
) -> None:
    write_shards(((f"{i}", document(i, image_of)) for i in range(600)), tmp_path / "one")
    opened: dict[str, list[str]] = {"pages": [], "pairs": []}
    stores = {name: Counted(a_million(tmp_path / "one", tmp_path / name)) for name in opened}
    for name, store in stores.items():
        object.__setattr__(store, "opened", opened[name])
    data = DataConfig(
        sources={name: SourceConfig(str(store.directory), 1.0) for name, store in stores.items()}
    )
    stage = StageConfig(steps=10**6 + 1, batch_size=1)
    before = time.process_time()
    shards = {name: Shards(store) for name, store in stores.items()}
    made = ShardDataModule(shards, data, stage, processor, 0, 40)
    made.load_state_dict({**made.state_dict(), "position": [10**6 // 1024 * 1024, 576, 10**6]})
    assert opened == {"pages": [], "pairs": []}
    batch = next(iter(made.train_dataloader()))
    assert time.process_time() - before < 2
    assert batch.documents == 1 and sorted(map(len, opened.values())) == [0, 1]


# Epochs and sizes


def test_an_epoch_is_each_document_once_whatever_the_ranks(module: Callable[..., ShardDataModule]) -> None:
    weights = {"pages": None, "pairs": None}
    for ranks in (1, 2, 4):
        steps = whole(module, ranks, 1, 0, weights=weights, epochs=2)
        used = [sample.key for step in steps for sample in step[1]]
        lost = [reject.key for step in steps for reject in step[2]]
        assert len(used) + len(lost) == 2 * 34 and lost
        wanted = [f"pages-{i:02d}" for i in range(23)] + [f"pairs-{i:02d}" for i in range(8)]
        assert sorted(set(used) & set(wanted)) == wanted and all(used.count(key) == 2 for key in wanted)


def test_epochs_of_a_weighted_mixture_are_refused(module: Callable[..., ShardDataModule]) -> None:
    with pytest.raises(FlamingoError, match="stage.epochs is 2, but data.sources have weights .pages, pairs"):
        module(epochs=2)


def test_a_source_can_be_cut_to_its_first_samples(module: Callable[..., ShardDataModule]) -> None:
    data = module({"pages": None}, sources={"pages": {"samples": 6}}, epochs=3)
    keys = [sample.key for batch in consumed(data) for sample in batch.samples]
    assert sorted(keys) == sorted(3 * [f"pages-{i:02d}" for i in range(6)])
    with pytest.raises(FlamingoError, match="data.sources.pages.samples is 24, but there are 23"):
        module({"pages": None}, sources={"pages": {"samples": 24}})


def test_packing_without_a_length_is_refused(
    directories: dict[str, Path], processor: VisionLanguageProcessor
) -> None:
    data = DataConfig(directory=str(directories["pages"]))
    with pytest.raises(FlamingoError, match="set stage.row_length"):
        ShardDataModule(open_sources(data), data, StageConfig(pack=True), processor, 0)


@pytest.mark.parametrize(
    "template, said",
    [
        ({"beginn": False}, "field in data.sources.pages.template: 'beginn'; did you mean 'begin'"),
        ({"image_tokens": 4}, "field in data.sources.pages.template: 'image_tokens'"),
        ({"around_images": "<img>"}, "data.sources.pages.template: the tokenizer has no token '<img>'"),
    ],
)
def test_a_template_that_cannot_be_is_refused_by_source(
    module: Callable[..., ShardDataModule], template: dict[str, Any], said: str
) -> None:
    with pytest.raises(FlamingoError, match=said):
        module(sources={"pages": {"template": template}})


def test_a_stale_length_stops_the_run_and_names_the_command(
    module: Callable[..., ShardDataModule], directories: dict[str, Path], image_of: Any, tmp_path: Path
) -> None:
    import numpy as np

    write_shards(((f"{i}", document(i, image_of)) for i in range(4)), tmp_path / "stale")
    directories["stale"] = tmp_path / "stale"
    module({"stale": None})
    for path in (tmp_path / "stale").rglob("*.npy"):
        np.save(path, np.load(path) + np.array([1, 0], np.int32))
    with pytest.raises(FlamingoError, match=f"were measured.*`{COMMAND} --fresh`"):
        list(consumed(module({"stale": None})))


@pytest.mark.slow  # three processes that import torch and lightning
def test_two_processes_train_on_what_one_trains_on(
    directories: dict[str, Path], model_config: dict[str, Any], tmp_path: Path
) -> None:
    sources = {name: str(directories[name]) for name in ("pages", "pairs")}
    settings = {
        "model": model_config,
        "sources": sources,
        "steps": 6,
        "accumulate": 2,
        "output": str(tmp_path),
    }
    found: dict[int, list[dict[str, Any]]] = {}
    for ranks in (1, 2):
        (tmp_path / "settings.json").write_text(json.dumps({**settings, "ranks": ranks}))
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
        script = str(Path(__file__).with_name("read_on_ranks.py"))
        subprocess.run(
            [sys.executable, *command, script, str(tmp_path / "settings.json")],
            check=True,
            timeout=300,
            capture_output=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        )
        names = (f"rank_{rank}_of_{ranks}.json" for rank in range(ranks))
        found[ranks] = [json.loads((tmp_path / name).read_text()) for name in names]
    (alone,), (first, second) = found[1], found[2]
    for step in range(6):
        parts = [r["batches"][2 * step + turn] for turn in range(2) for r in (first, second)]
        assert sum(parts, []) == sum(alone["batches"][2 * step : 2 * step + 2], [])
    assert first["losses"] == second["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    assert first["state"] == second["state"] == alone["state"]
    assert alone["state"]["consumption"]["rejects"]["truncated"] > 0
