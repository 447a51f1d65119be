"""Converting on Ray: the bytes and the messages of one process."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from flamingo_lite.errors import FlamingoError
from tests.data.convert.conversion_runs import run, tree, write_inputs
from tests.data.convert.pages import write_tar

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def workers_are_not_nice() -> Iterator[None]:
    """At Ray's own niceness of 15 they would wait for everything else that a busy machine does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")
        yield


@pytest.fixture
def no_cluster() -> None:
    """None that this process has begun. These tests come first: beside one that is ending, another may not start in time."""
    ray.shutdown()


def test_a_cluster_that_was_started_for_the_conversion_is_stopped_behind_it(
    no_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A short path, as Ray's sockets lie below it, in which a process that ends may still write.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        # What `ray start` leaves of a cluster, here of one that is none of ours.
        (Path(folder) / "ray").mkdir()
        (Path(folder) / "ray" / "ray_current_cluster").write_text("127.0.0.1:1")
        run(tmp_path / "ray", write_inputs(tmp_path / "in", 1), workers=1, engine="ray")
    assert not ray.is_initialized()


def test_a_cluster_that_does_not_start_is_one_line(
    no_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overslept(**options: Any) -> None:
        raise Exception("The current node timed out during startup.\nThis could happen because")

    monkeypatch.setattr(ray, "init", overslept)
    with pytest.raises(
        FlamingoError, match="no Ray cluster can be had .*timed out.*--engine local"
    ) as caught:
        run(tmp_path / "ray", write_inputs(tmp_path / "in", 1), workers=1, engine="ray")
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def cluster(workers_are_not_nice: None) -> Iterator[None]:
    """Two workers, shared by these tests because starting them is what takes long."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 2**20)
    yield
    ray.shutdown()


def test_two_ray_workers_write_the_bytes_of_one_process(cluster: None, tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path / "in")
    run(tmp_path / "one", inputs)
    run(tmp_path / "ray", inputs, workers=2, engine="ray")
    assert tree(tmp_path / "one") == tree(tmp_path / "ray")
    assert [was_done for _, was_done in run(tmp_path / "ray", inputs, engine="ray")] == [True] * 3


def test_what_fails_on_a_ray_worker_is_the_same_one_line(cluster: None, tmp_path: Path) -> None:
    bad = write_tar(tmp_path / "in" / "bad.tar", {"a.cls": b"1"})
    with pytest.raises(FlamingoError, match="not img2dataset: bad.tar: sample a: 0 images") as here:
        run(tmp_path / "a", bad)
    with pytest.raises(FlamingoError) as there:
        run(tmp_path / "b", bad, workers=2, engine="ray")
    assert str(there.value) == str(here.value)
