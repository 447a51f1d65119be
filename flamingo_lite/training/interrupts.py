"""SIGTERM and SLURM's warning before preemption: the step is finished, a checkpoint written, and the run ends.

While steps are taken a handler only notes the signal. The ranks agree on it in the one reduction that every step has, so
all of them stop at the same step, whichever of them was told. Before the first step and after the last, while a model
is loaded or saved, there is nothing to save, and each rank that is told ends at once. SIGUSR1 is what
`#SBATCH --signal=USR1@120` sends before the time is up; the job is then put into the queue again.
"""

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import lightning.pytorch as lightning

from flamingo_lite.errors import Interrupted, first_line
from flamingo_lite.training.checkpointing import CheckpointKeeper
from flamingo_lite.training.module import SIGNALS, TrainingModule


class _Stop(BaseException):
    """Goes through whatever takes an `Exception` for a reason to try something else."""


@contextmanager
def ending_on_signal(is_first: bool) -> Iterator[None]:
    """Inside, a signal raises `Interrupted`, unless `StopOnSignal` has taken over. `is_first`: this rank asks SLURM."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[signal.Signals] = []

    def stop(number: int, frame: FrameType | None) -> None:
        if not received:  # a second one is not to cut what the first has begun
            received.append(signal.Signals(number))
            raise _Stop

    before = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        yield
    except _Stop:
        asked = requeue() if is_first and received[0] == signal.SIGUSR1 else None
        raise Interrupted(
            f"stopped by {received[0].name} while no step was taken: nothing had to be saved; "
            f"{asked or 'the same command continues'}"
        ) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class StopOnSignal(lightning.Callback):
    """Raises `Interrupted` at the first step boundary after a signal, once `keeper` has saved."""

    def __init__(self, keeper: CheckpointKeeper) -> None:
        self.keeper = keeper
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        # Lightning has just put up handlers that talk to other ranks while a step may be doing so.
        assert isinstance(pl_module, TrainingModule)

        def note(number: int, frame: FrameType | None) -> None:
            pl_module.signal = signal.Signals(number)

        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, note) for number in SIGNALS}

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        assert isinstance(pl_module, TrainingModule)
        report = pl_module.report
        if report is None or report.signal is None or trainer.global_step == trainer.max_steps:
            return
        step, steps, name = trainer.global_step, trainer.max_steps, report.signal.name
        saved = self.keeper.save(trainer)
        where = "saved" if saved else "not saved (see above); the last checkpoint stays"
        then = "the same command continues"
        if saved and trainer.is_global_zero and report.signal == signal.SIGUSR1:
            then = requeue() or then
        raise Interrupted(f"stopped by {name} at step {step} of {steps}, {where}; {then}")

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        self._restore()

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


def requeue() -> str | None:
    """Puts this SLURM job into the queue again, and says so; None where there is no SLURM."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return None
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", None) or first_line(error)
        return f"SLURM did not take job {job} back into the queue ({reason.strip()}): submit it again to continue"
    return f"SLURM has job {job} in the queue again and will continue it"
