"""Sweeps through hydra's launchers: joblib runs several at once on this machine, submitit puts them into SLURM's queue.

The launchers are hydra's own plugins, with their own settings (`hydra.launcher.*`). A job composes the configuration
again, trains into a folder of its own and writes what it says into a log there.
"""

import multiprocessing
import os
import textwrap
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol, TextIO

from hydra._internal.callbacks import Callbacks
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from flamingo_lite import config as configuration
from flamingo_lite.config import Config
from flamingo_lite.errors import FlamingoError, Interrupted, first_line
from flamingo_lite.names import check_choice, unknown

GROUP = "hydra/launcher"
SETTINGS = "hydra.launcher."
LOG = "log.txt"

# Hydra's own files and log lines stay out: a run's folder has its config.yaml, and `LOG`.
QUIET = ("hydra.output_subdir=null", "hydra/job_logging=none", "hydra/hydra_logging=none")

Task = Callable[[Config, Console], str]
"""What a job does with its configuration; it returns the line to print when it is done."""


class Job(Protocol):
    """One run of a sweep: what sets it apart ("seed=1,stage.steps=20"), its overrides and its configuration, and the
    folder in which it gets one of its own."""

    @property
    def name(self) -> str: ...
    @property
    def overrides(self) -> Sequence[str]: ...
    @property
    def config(self) -> Config: ...
    @property
    def output(self) -> str: ...


def split(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """The overrides that choose and set a launcher, and the others."""
    chosen = [text for text in overrides if _is_of_launcher(text)]
    return chosen, [text for text in overrides if not _is_of_launcher(text)]


def launch(
    task: Task,
    jobs: Sequence[Job],
    launcher: Sequence[str],
    console: Console,
    file: str | None = None,
) -> None:
    """Runs the jobs by the launcher that the overrides `launcher` choose; returns when all have ended.

    `file`: as in `configuration.compose`. Errors: `FlamingoError` for an unknown launcher or setting with the nearest
    right one, and when a job has failed, naming the first one.
    """
    config, output = jobs[0].config, jobs[0].output
    with configuration.started_hydra(file) as (hydra, config_name):
        loader = hydra.config_loader
        _check(launcher, loader.get_group_options(GROUP))
        own = [*launcher, f"hydra.sweep.dir={_quoted(output)}", f"hydra.job.name={_quoted(config.name)}"]
        with configuration.one_line_errors():
            master = hydra.compose_config(config_name, [*own, *QUIET], run_mode=RunMode.MULTIRUN)
        context = HydraContext(config_loader=loader, callbacks=Callbacks(master))
        found = Plugins.instance().instantiate_launcher(
            hydra_context=context, task_function=partial(_run_job, task), config=master
        )
        threads = _threads_each(master, len(jobs), config)
        console.print(
            f"{len(jobs)} runs by {type(found).__name__}, each with its {LOG} below {output}",
            highlight=False,
            soft_wrap=True,
        )
        try:
            ended = found.launch([[*_of_job(job), *threads] for job in jobs], initial_job_idx=0)
        except RuntimeError as error:
            reason = textwrap.shorten(str(error), 300)  # submitit's may hold a traceback
            raise FlamingoError(
                f"{type(found).__name__}: {reason}; the logs are below {output}, and --debug shows more"
            ) from error
    _conclude(jobs, ended, console)


def _run_job(task: Task, composed: DictConfig) -> str:
    """Runs in the job: hydra calls it with the configuration that it has composed there."""
    # joblib's processes start others in a way of their own, which the workers of a DataLoader do not survive.
    multiprocessing.set_start_method(None, force=True)
    config = configuration.as_config(composed)
    folder = Path(HydraConfig.get().sweep.dir) / HydraConfig.get().sweep.subdir
    # Only the output is the job's own: shards that lie in the common one are shared.
    config.output = str(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOG).open("a") as log:
        return _logged(task, config, log)


def _logged(task: Task, config: Config, log: TextIO) -> str:
    try:
        return task(config, Console(file=log, width=120))
    except Interrupted as error:
        log.write(f"{error}\n")
        if os.environ.get("SUBMITIT_EXECUTOR") == "slurm":
            # Without a result the job counts as running: who waits for it goes on waiting when SLURM starts it again.
            raise SystemExit(Interrupted.exit_code) from error
        raise
    except FlamingoError as error:
        log.write(f"{error}\n")
        raise
    except Exception as error:
        traceback.print_exc(file=log)
        raise FlamingoError(
            f"{type(error).__name__}: {first_line(error)} (the traceback is in {log.name})"
        ) from None


def _conclude(jobs: Sequence[Job], ended: Sequence[JobReturn], console: Console) -> None:
    failed: list[tuple[str, object]] = []
    for job, result in zip(jobs, ended, strict=True):
        name = job.name or "the run"
        if result.status == JobStatus.COMPLETED:
            console.print(f"{name}: {result.return_value}", highlight=False, soft_wrap=True)
        else:
            failed.append((name, result._return_value))
            console.print(f"{name}: [red]{result._return_value}[/red]", highlight=False, soft_wrap=True)
    if failed:
        name, error = failed[0]
        kind = Interrupted if isinstance(error, Interrupted) else FlamingoError
        raise kind(f"{len(failed)} of {len(jobs)} runs did not finish; {name}: {error}")


def _check(launcher: Sequence[str], known: Sequence[str]) -> None:
    """Errors: `FlamingoError` with the nearest right name."""
    chosen = "basic"
    for text in launcher:
        key, _, value = text.partition("=")
        if key == GROUP:
            chosen = value
    if chosen not in known and not {"joblib", "submitit_slurm"} <= set(known):
        raise FlamingoError(
            f"there is no {GROUP}={chosen} here (known: {', '.join(known)}); joblib and submitit come with "
            "pip install 'flamingo_lite[launchers]'"
        )
    check_choice(f"preset of {GROUP}=", chosen, known)
    settings = configuration.launcher_settings(chosen)
    for text in launcher:
        name = text.lstrip("+~").partition("=")[0].removeprefix(SETTINGS)
        if text.partition("=")[0] != GROUP and name.split(".")[0] not in settings:
            raise unknown(f"option of {GROUP}={chosen}:", name, settings)


def _threads_each(master: DictConfig, jobs: int, config: Config) -> list[str]:
    """Runs side by side share the cores, unless the user has said how many threads one takes."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    at_once = OmegaConf.select(master, "hydra.launcher.n_jobs")
    if at_once is None or config.trainer.threads:
        return []
    at_once = min(jobs, cores if at_once < 0 else at_once)
    return [f"trainer.threads={max(1, cores // at_once)}"]


def _of_job(job: Job) -> list[str]:
    overrides = [configuration.normalized(override) for override in configuration.parse(job.overrides)]
    return [*overrides, f"hydra.sweep.dir={_quoted(job.output)}", f"hydra.sweep.subdir={_quoted(job.name)}"]


def _is_of_launcher(text: str) -> bool:
    key = text.lstrip("+~").partition("=")[0]
    return key == GROUP or key.startswith(SETTINGS)


def _quoted(text: str) -> str:
    """For hydra's grammar: a path may hold spaces, commas and equal signs."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
