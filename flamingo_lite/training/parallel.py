"""Lightning's trainer for one device or many: strategy, ranks and precision from the settings, nothing else switched on.

DDP averages gradients once a step, whatever is accumulated before; FSDP2 is `sharding.py`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import lightning.pytorch as lightning
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy, Strategy

from flamingo_lite.errors import FlamingoError, first_line
from flamingo_lite.training.precision import lightning_precision
from flamingo_lite.training.ranks import Ranks, is_lost_rank
from flamingo_lite.training.settings import TrainerConfig, torch_device
from flamingo_lite.training.sharding import ShardedStrategy


def build_trainer(
    config: TrainerConfig, ranks: Ranks, *, plugins: list[Any], **settings: Any
) -> lightning.Trainer:
    """A trainer whose ranks are there already; `settings` are Lightning's own."""
    precision: Any = lightning_precision(config.precision)
    if config.precision == "16-mixed":
        # Lightning would take bfloat16 in its place on a CPU, and say so in a warning.
        plugins = [*plugins, MixedPrecision("16-mixed", torch_device(config.accelerator).type)]
        precision = None
    return lightning.Trainer(
        accelerator=config.accelerator,
        devices=ranks.devices,
        num_nodes=ranks.nodes,
        strategy=strategy_of(config, ranks),
        # Named, or Lightning would look for SLURM and torchrun itself.
        plugins=[*plugins, ranks.environment],
        precision=precision,
        accumulate_grad_batches=config.accumulate,
        deterministic=config.deterministic,
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **settings,
    )


def strategy_of(config: TrainerConfig, ranks: Ranks) -> Strategy | str:
    """One device needs none, and shards nothing."""
    if ranks.number == 1:
        return "auto"
    timeout = timedelta(minutes=config.timeout_minutes)
    if config.strategy == "fsdp2":
        return ShardedStrategy(timeout=timeout)
    # Buffers are constants of the architecture; the gradients live in the buckets that are sent.
    return DDPStrategy(timeout=timeout, broadcast_buffers=False, gradient_as_bucket_view=True)


@contextmanager
def one_line_failures() -> Iterator[None]:
    """What a dead worker or rank raises, as the `FlamingoError` that it is."""
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        # A batch that a dead worker had announced can no longer be fetched from it: no RuntimeError, but its like.
        if "DataLoader worker" in str(error) or not isinstance(error, RuntimeError):
            raise FlamingoError(
                f"a process that prepares batches has died ({first_line(error)}); the machine may be out of memory: try "
                "a smaller trainer.workers, then run the same command again"
            ) from error
        if is_lost_rank(error):
            raise FlamingoError(
                "another rank has ended while this one waited for it; the same command continues from the last checkpoint"
            ) from error
        raise
