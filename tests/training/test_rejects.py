"""Rejects: counted over ranks in the order of the plan, written down, and too many of them stop the run."""

import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as distributed

from flamingo_lite.batch import Batch
from flamingo_lite.data.prepared import PreparedBatch, Reject
from flamingo_lite.errors import FlamingoError
from flamingo_lite.image_transform import ImageTransform
from flamingo_lite.training.beside import drop_lines_after
from flamingo_lite.training.callbacks import MetricsFile, read_metrics
from flamingo_lite.training.rejects import Consumption, in_order


def prepared(outcomes: str, capacity: int | None = None, tokens: int = 0) -> PreparedBatch:
    """A batch of the documents that `outcomes` tells of: "." used, any other letter a reason to reject."""
    ones = torch.zeros(1, 1, dtype=torch.int64)
    batch = Batch(ones, ones.bool(), ones, ones, torch.zeros(0, 3, 1, 1), ones - 1)
    rejects = tuple(
        Reject("web", "s.tar", f"#{i}", o, f"said {o}") for i, o in enumerate(outcomes) if o != "."
    )
    used = tuple(outcome == "." for outcome in outcomes)
    return PreparedBatch(
        batch, ImageTransform(), ones, rejects=rejects, outcomes=used, capacity=capacity, tokens=tokens
    )


def test_rejects_are_counted_by_reason_and_written_down(tmp_path: Path) -> None:
    counts = Consumption(tmp_path, 1.0, 100)
    counts.take(prepared(".a.b", capacity=40, tokens=30), 1)
    counts.take(prepared("a...", capacity=40, tokens=20), 2)
    counts.gather()
    assert counts.columns() == {"documents": 8, "fill_rate": 50 / 80, "rejects/a": 2, "rejects/b": 1}
    lines = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text().splitlines()]
    assert [(line["step"], line["key"], line["reason"]) for line in lines] == [
        *((1, "#1", "a"), (1, "#3", "b"), (2, "#0", "a"))
    ]
    assert set(lines[0]) == {"step", "source", "shard", "key", "reason", "message"}


def test_a_run_of_rejects_stops_across_batches() -> None:
    counts = Consumption(None, 1.0, 5)
    for outcomes in ("aa.aa", "aa..."):
        counts.take(prepared(outcomes), 1)
        counts.gather()
    counts.take(prepared(".aaa"), 2)
    counts.gather()
    counts.take(prepared("ab"), 3)
    with pytest.raises(FlamingoError, match="5 samples in a row.*said b.*data.max_rejects_in_a_row"):
        counts.gather()


def test_a_share_of_rejects_stops_once_a_thousand_documents_were_seen() -> None:
    counts = Consumption(None, 0.01, 100)
    counts.take(prepared("a" * 11 + "." * 988), 1)
    counts.gather()
    counts.take(prepared("."), 2)
    with pytest.raises(FlamingoError, match="11 of 1,000 samples could not be used .a 11.*max_reject_share"):
        counts.gather()


def test_a_share_at_the_limit_goes_on() -> None:
    counts = Consumption(None, 0.01, 100)
    counts.take(prepared(("a" + "." * 99) * 20), 1)
    counts.gather()
    assert counts.documents == 2000


def test_counts_go_on_from_a_checkpoint() -> None:
    first, second = Consumption(None, 1.0, 4), Consumption(None, 1.0, 4)
    first.take(prepared("..ab"), 1)
    first.gather()
    second.load_state_dict(first.state_dict())
    second.take(prepared("b."), 2)
    second.gather()
    assert second.columns() == {"documents": 6, "rejects/a": 1, "rejects/b": 2}
    second.load_state_dict(first.state_dict())
    second.take(prepared("aa"), 2)
    with pytest.raises(FlamingoError, match="4 samples in a row"):
        second.gather()


def test_cut_conversations_are_counted_and_go_on_from_a_checkpoint() -> None:
    first, second = Consumption(None, 1.0, 4), Consumption(None, 1.0, 4)
    for counts in (first, second):
        batch = prepared("...")
        batch.cut = 2
        counts.take(batch, 1)
        counts.gather()
    second.load_state_dict(first.state_dict())
    second.take(batch, 2)
    second.gather()
    assert second.columns() == {"documents": 6, "truncated": 4}


def test_what_later_steps_wrote_down_is_dropped_when_they_are_taken_again(tmp_path: Path) -> None:
    counts = Consumption(tmp_path, 1.0, 100)
    for step in (1, 2, 3):
        counts.take(prepared("a"), step)
    with (tmp_path / "rejects.jsonl").open("a") as file:
        file.write('{"step": 4, "sour')  # the run was killed while it wrote
    drop_lines_after(tmp_path / "rejects.jsonl", 2)
    lines = (tmp_path / "rejects.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
    drop_lines_after(tmp_path / "rejects.jsonl", 0)
    assert not (tmp_path / "rejects.jsonl").exists()


def test_outcomes_of_ranks_stand_in_the_order_of_the_plan() -> None:
    first, second = [(True, False), (True,)], [(False,), (False, False)]
    assert list(in_order([first, second])) == [True, False, False, True, False, False]
    assert list(in_order([[(True,), ()], [(False,), ()]])) == [True, False]


def count_on(rank: int, port: int, results: Any) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    counts = Consumption(None, 1.0, 4)
    said = None
    try:
        for step in range(2):
            counts.take(prepared((".a", "aa")[rank]), step)
            counts.gather()
        for step in range(2, 4):
            counts.take(prepared("aa"), step)
            counts.gather()
    except FlamingoError as error:
        said = str(error)
    results.put((rank, counts.documents, dict(counts.rejects), said))
    distributed.destroy_process_group()


@pytest.mark.slow  # two processes that import torch
def test_two_ranks_count_together_and_stop_together(unused_port: int) -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    ranks = [context.Process(target=count_on, args=(rank, unused_port, results)) for rank in range(2)]
    for process in ranks:
        process.start()
    found = sorted(results.get(timeout=120) for _ in ranks)
    for process in ranks:
        process.join(30)
    # .a aa | .a aa | aa ...: three rejects, one document that is used, then four rejects in a row.
    assert [f[1:] for f in found] == [found[0][1:]] * 2
    assert found[0][1] == 9 and "4 samples in a row" in found[0][3]


@pytest.fixture
def unused_port() -> int:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_a_column_that_comes_later_is_added_to_the_file(tmp_path: Path) -> None:
    rows = [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25, "rejects/a": 1}, {"step": 3, "loss": 0.125}]
    file = MetricsFile(tmp_path / "metrics.csv")
    for row in rows:
        file(row)
    assert read_metrics(tmp_path / "metrics.csv") == rows
    assert len(list(tmp_path.iterdir())) == 1
    MetricsFile(tmp_path / "metrics.csv", resume_at=2)(rows[2])
    assert read_metrics(tmp_path / "metrics.csv") == rows
