"""Where units are converted: on processes of this machine, or on the workers of a Ray cluster.

An engine is a function (task, units, workers) that yields the task's result for each unit, in any order. The
results lie on disk under names of their own, so neither the engine nor the order can be seen in them.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from flamingo_lite.data.convert.frame import Unit
from flamingo_lite.data.convert.ledger import Ledger
from flamingo_lite.data.make import available_cores
from flamingo_lite.errors import FlamingoError, first_line

Outcome = tuple[Ledger, bool]
"""What a unit came to, and whether it was so already."""
Task = Callable[[Unit], Outcome]


def run_local(task: Task, units: Sequence[Unit], workers: int) -> Iterator[Outcome]:
    """On `workers` processes (0: one per core). Errors: those of the task; `FlamingoError` for a process that died."""
    workers = min(workers or available_cores(), len(units))
    if workers <= 1:
        yield from map(task, units)
        return
    # Spawned, not forked: the parent may hold threads (torch's) whose locks a fork would copy locked.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _end_at_interrupt)
    try:
        for future in as_completed([pool.submit(task, unit) for unit in units]):
            yield future.result()
    except BrokenProcessPool as error:
        raise FlamingoError(
            "a worker process died, perhaps for lack of memory; try fewer --workers (what is done is kept)"
        ) from error
    finally:
        # Not future.cancel(): in Python 3.11 it races with the pool's own end when workers are killed.
        pool.shutdown(cancel_futures=True)


def run_ray(task: Task, units: Sequence[Unit], workers: int) -> Iterator[Outcome]:
    """On the cluster that RAY_ADDRESS names, or one of `workers` processes that is started here and stopped again.

    All its machines see inputs and target under the same paths. Errors: those of the task; `FlamingoError` without
    ray, for a cluster that cannot be had, or for a worker that died.
    """
    try:
        import ray
    except ImportError as error:
        raise FlamingoError("--engine ray needs Ray: pip install 'flamingo_lite[ray]'") from error
    is_ours = not ray.is_initialized()
    if is_ours:
        _start_ray(ray, workers)
    try:
        # Tried again where a worker or its machine died: a unit may be converted twice. What the task raises is final.
        remote = ray.remote(max_retries=2)(_run_task)
        waiting, running = list(reversed(units)), []
        slots = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        while waiting or running:
            while waiting and len(running) < slots:
                running.append(remote.remote(task, waiting.pop()))
            done, running = ray.wait(running, num_returns=1)
            yield ray.get(done[0])
    except ray.exceptions.RayTaskError as error:
        raise _cause(error) from error
    except ray.exceptions.RayError as error:
        raise FlamingoError(
            f"a Ray worker died ({type(error).__name__}); run the same command again"
        ) from error
    finally:
        if is_ours:
            ray.shutdown()


def _start_ray(ray: Any, workers: int) -> None:
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if not os.environ.get("RAY_ADDRESS"):
        # "local": without an address Ray would join what a `ray start` has left here, and refuse the number of CPUs.
        # What comes back are ledgers; without a limit Ray sets a third of the memory aside for them.
        options |= {
            "address": "local",
            "num_cpus": workers or available_cores(),
            "include_dashboard": False,
            "object_store_memory": 100 * 2**20,
        }
    try:
        ray.init(**options)
    except Exception as error:  # a bare Exception where a busy machine takes more than Ray's 30 s to start
        ray.shutdown()
        raise FlamingoError(
            f"no Ray cluster can be had ({first_line(error)}); check RAY_ADDRESS, or run the same command again when "
            "the machine is less busy, or with --engine local (what is done is kept)"
        ) from error


ENGINES: dict[str, Callable[[Task, Sequence[Unit], int], Iterator[Outcome]]] = {
    "local": run_local,
    "ray": run_ray,
}


def _end_at_interrupt() -> None:
    """Ctrl-C reaches the workers too: they end without a word, the main process says that it was interrupted."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _run_task(task: Task, unit: Unit) -> Outcome:
    return task(unit)


def _cause(error: BaseException) -> BaseException:
    """The task's own error inside Ray's wrapping."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, FlamingoError) else error
