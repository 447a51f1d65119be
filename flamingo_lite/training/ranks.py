"""The processes that train together: who they are, how they find each other, and what they tell each other.

A rank is one process with one device. torchrun, srun or `launch.py` starts them; this file only reads what they say.
"""

import functools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as distributed
from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)

from flamingo_lite.errors import FlamingoError
from flamingo_lite.training.settings import TrainerConfig, torch_device

T = TypeVar("T")

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
"""What torchrun, and whoever speaks its language, puts into the environment of each process."""

LOST = ("Connection closed by peer", "Connection reset by peer", "Timed out waiting", "Broken pipe", "gloo")
"""What a message says when a rank waited for another one that is gone."""


SIGN_OF_LIFE = 1.0
"""Seconds between two."""


@dataclass(frozen=True)
class Ranks:
    """`devices` processes on each of `nodes` machines; this one is number `rank`. Alone, every method is free.

    `timeout_minutes`: how long they wait for each other.
    """

    devices: int = 1
    nodes: int = 1
    environment: ClusterEnvironment = field(default_factory=LightningEnvironment)
    timeout_minutes: float = 30.0

    @property
    def number(self) -> int:
        return self.devices * self.nodes

    @property
    def rank(self) -> int:
        return self.environment.global_rank() if self.number > 1 else 0

    @property
    def is_first(self) -> bool:
        """Is this the rank that writes, prints and decides?"""
        return self.rank == 0

    def broadcast(self, value: T) -> T:
        """The first rank's `value`, on every rank."""
        if self.number == 1:
            return value
        box = [value]
        words = _words(self.timeout_minutes)
        distributed.broadcast_object_list(box, src=0, group=words, device=torch.device("cpu"))
        return box[0]

    def first_alone(self, work: Callable[[Callable[[], None]], T]) -> T:
        """What `work` gives on the first rank, on every rank; the others wait, however long it takes.

        `work` is handed a function to call now and then: to wait for it ends where it is silent for as long as ranks wait
        for each other.
        """
        if not self.is_first:
            while True:
                nothing: Any = None
                is_done, value = self.broadcast((False, nothing))
                if is_done:
                    return value
        told = [time.monotonic()]

        def is_alive() -> None:
            if time.monotonic() - told[0] > SIGN_OF_LIFE:
                self.broadcast((False, None))
                told[0] = time.monotonic()

        value = work(is_alive)
        self.broadcast((True, value))
        return value

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, in their order, on every rank."""
        if self.number == 1:
            return [value]
        values: list[Any] = [None] * self.number
        distributed.all_gather_object(values, value, group=_words(self.timeout_minutes))
        return values


def started_ranks(config: TrainerConfig) -> Ranks | None:
    """The ranks that this process is one of; None where a launch must start them first.

    Errors: `FlamingoError` when what was started is not what `config` asks for.
    """
    if all(name in os.environ for name in TORCHRUN):
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
        ranks = Ranks(devices, nodes, TorchElasticEnvironment(), config.timeout_minutes)
        return _checked(ranks, config, "torchrun")
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        nodes = int(os.environ.get("SLURM_STEP_NUM_NODES", "1"))
        devices = int(os.environ["SLURM_STEP_NUM_TASKS"]) // nodes
        # Lightning asks for it by name, also where srun was told of all tasks together.
        os.environ.setdefault("SLURM_NTASKS_PER_NODE", str(devices))
        # Requeueing is ours (interrupts.py): Lightning's would write a checkpoint of its own.
        environment = SLURMEnvironment(auto_requeue=False)
        return _checked(Ranks(devices, nodes, environment, config.timeout_minutes), config, "srun")
    if config.nodes > 1:
        raise FlamingoError(
            f"trainer.nodes is {config.nodes}, but nothing has started a process on each; start it with torchrun "
            "--nnodes=... on every node, or with srun"
        )
    return None if config.devices > 1 else Ranks()


def _checked(ranks: Ranks, config: TrainerConfig, launcher: str) -> Ranks:
    for name, started, wanted in (
        ("devices", ranks.devices, config.devices),
        ("nodes", ranks.nodes, config.nodes),
    ):
        if wanted not in (0, started):
            raise FlamingoError(
                f"trainer.{name} is {wanted}, but {launcher} has started {started}; leave it out, or start {wanted}"
            )
    return ranks


def join(ranks: Ranks, config: TrainerConfig) -> None:
    """Connects this process with the others; returns when all are there. Errors: `FlamingoError`."""
    device = torch_device(config.accelerator)
    if device.type == "cuda":
        if torch.cuda.device_count() < ranks.devices:
            raise FlamingoError(
                f"trainer.devices is {ranks.devices}, but this machine shows {torch.cuda.device_count()} GPUs; give at "
                "most that number (and each process must see all of them)"
            )
        torch.cuda.set_device(ranks.environment.local_rank() if ranks.number > 1 else 0)
    if ranks.number == 1 or distributed.is_initialized():
        return
    if device.type == "mps":
        raise FlamingoError("mps has one device; train on it with trainer.devices=1")
    os.environ["MASTER_ADDR"] = ranks.environment.main_address
    os.environ["MASTER_PORT"] = str(ranks.environment.main_port)
    try:
        distributed.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            rank=ranks.rank,
            world_size=ranks.number,
            timeout=timedelta(minutes=config.timeout_minutes),
        )
    except RuntimeError as error:
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise FlamingoError(
            f"rank {ranks.rank} of {ranks.number} did not meet the others at {address} "
            f"({type(error).__name__}); is every node started, and does it reach that address?"
        ) from error


def is_lost_rank(error: BaseException) -> bool:
    """Does `error` come from waiting for a rank that has ended?"""
    if isinstance(error, distributed.DistError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in LOST)


def _words(timeout_minutes: float) -> Any:
    """The group that Python objects travel in: NCCL would take them through the devices' memory."""
    return _gloo_group(timeout_minutes) if distributed.get_backend() == "nccl" else None


@functools.cache
def _gloo_group(timeout_minutes: float) -> Any:
    return distributed.new_group(backend="gloo", timeout=timedelta(minutes=timeout_minutes))
