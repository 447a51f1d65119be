"""Runs training on several processes of this machine, forked from one server that has the imports done."""

import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from flamingo_lite.training.launch import free_port

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["flamingo_lite.training.stages", "flamingo_lite.config", "sklearn"])


def start(
    ranks: int, function: Callable[..., None], *arguments: Any, log: Path | None = None
) -> list[BaseProcess]:
    """`function(*arguments)` in `ranks` processes that find themselves as torchrun's would."""
    port = free_port()
    processes = [
        CONTEXT.Process(target=_rank, args=(rank, ranks, port, function, arguments, log))
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    return processes


def run(ranks: int, function: Callable[..., None], *arguments: Any) -> None:
    """As `start`, and waits; every rank must end well."""
    processes = start(ranks, function, *arguments)
    for process in processes:
        process.join(120)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert codes == [0] * ranks


def _rank(
    rank: int,
    ranks: int,
    port: int,
    function: Callable[..., None],
    arguments: tuple[Any, ...],
    log: Path | None,
) -> None:
    import torch

    torch.set_num_threads(1)
    multiprocessing.set_start_method(
        "fork", force=True
    )  # for workers, as in a process that a shell has started
    if ranks > 1:
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
        names |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GROUP_RANK": 0}
        os.environ.update({name: str(value) for name, value in names.items()})
    if log is not None:
        descriptor = os.open(f"{log}.{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
    try:
        function(*arguments)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    sys.stdout.flush()
    os._exit(0)
