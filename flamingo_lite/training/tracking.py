"""Weights & Biases, offline unless asked: the figures, the gates, generated samples, plots, and the config.

One run of training is one W&B run: the evaluation and the report, which come later and in other processes,
add to it under the id that stands in the run's folder.
"""

import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from flamingo_lite.document import Image
from flamingo_lite.errors import FlamingoError, first_line
from flamingo_lite.names import check_choice

RUN_ID = "run_id"
WANDB_RUN = "wandb_run"
"""The name under which a checkpoint of training keeps the id."""
ANSWER = 30.0
"""Seconds that a W&B server gets to answer."""
FINISH = 300
"""Seconds that the last figures get to arrive; what has not is in the run's folder all the same."""
MODES = ("offline", "online", "disabled")
FOLDERS = ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_ARTIFACT_DIR")
CHOSEN_BY_USER = frozenset(name for name in FOLDERS if name in os.environ)


@dataclass
class WandbConfig:
    mode: str = "offline"
    project: str = "flamingo_lite"
    name: str | None = None

    def __post_init__(self) -> None:
        check_choice("value of wandb.mode:", self.mode, MODES)


@dataclass
class Sample:
    """A prompt, its images, what the model wrote and what was expected."""

    prompt: str
    images: list[Image]
    generated: str
    target: str


class Tracker:
    """A W&B run in `directory/wandb`; with mode "disabled" every method does nothing."""

    def __init__(
        self,
        config: WandbConfig,
        directory: Path,
        settings: Mapping[str, Any] | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        self._run: Any = None
        self.run_id: str | None = None
        if config.mode == "disabled":
            return
        import wandb

        _keep_inside(directory / "wandb")
        self.run_id = _run_id(directory / "wandb")
        known = {
            "project": config.project,
            "name": config.name or directory.name,
            "id": self.run_id,
            "dir": str(directory),
            "config": dict(settings) if settings else None,
        }
        try:
            if config.mode == "online":
                try:
                    self._run = wandb.init(**known, mode="online", resume="allow", settings=_settings())
                    return
                except wandb.errors.CommError as error:
                    say(
                        f"W&B does not answer ({first_line(error)}): this run is kept offline, in {directory / 'wandb'}; "
                        "wandb sync sends it later"
                    )
                    wandb.teardown()  # its service would say that the run's id is in use
            self._run = wandb.init(**known, mode="offline", settings=_settings())
        except wandb.errors.Error as error:
            raise FlamingoError(f"W&B did not start ({error}); wandb.mode=disabled goes without") from error

    def log(self, row: Mapping[str, float]) -> None:
        """A row of figures at its `step`."""
        self._log({name: value for name, value in row.items() if name != "step"}, int(row["step"]))

    def log_samples(self, samples: Iterable[Sample], step: int) -> None:
        """A table: prompt, its last image, what was generated, what was expected. All images beside it."""
        if self._run is None:
            return
        import wandb

        table = wandb.Table(columns=["prompt", "image", "generated", "target", "correct"])
        gallery = []
        for sample in samples:
            pictures = [wandb.Image(image.pil(), caption=sample.prompt) for image in sample.images]
            gallery += pictures
            is_correct = sample.generated.strip() == sample.target.strip()
            last = pictures[-1] if pictures else None
            table.add_data(sample.prompt, last, sample.generated, sample.target, is_correct)
        self._log({"samples": table, "samples/images": gallery}, step)

    def log_plots(self, paths: Iterable[Path], step: int) -> None:
        """The plots as images, each under the name of its file."""
        if self._run is None:
            return
        import wandb

        self._log({f"plots/{path.stem}": wandb.Image(str(path)) for path in paths}, step)

    def summarize(self, values: Mapping[str, float | str]) -> None:
        """Figures of the run as a whole."""
        if self._run is not None:
            self._run.summary.update(dict(values))

    def close(self, failed: bool = False) -> None:
        if self._run is not None:
            self._run.finish(exit_code=int(failed))
            self._run = None

    def _log(self, values: Mapping[str, Any], step: int) -> None:
        if self._run is not None:
            # Committed at once: what waits for the next step can be lost when the run ends first. What comes
            # at a step that is past is dropped.
            self._run.log(dict(values), step=step, commit=True)

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(failed=kind is not None)


def continue_run(directory: Path) -> tuple[Tracker, int]:
    """The W&B run that a training in `directory` began, and its first free step.

    Where there was none, a tracker that logs nothing.
    """
    path = directory / "config.yaml"
    if not path.is_file() or not (directory / "wandb" / RUN_ID).is_file():
        return Tracker(WandbConfig(mode="disabled"), directory), 0
    settings = OmegaConf.load(path)
    # The samples stand at the step after the last of the training.
    return Tracker(WandbConfig(**settings.wandb), directory), int(settings.stage.steps) + 2


def forget_run(directory: Path) -> None:
    """What is logged next into `directory` is a W&B run of its own."""
    (directory / "wandb" / RUN_ID).unlink(missing_ok=True)


def remember_run(directory: Path, run_id: str | None) -> None:
    """Goes on with the W&B run that a checkpoint names, where the folder no longer says which one it was."""
    path = directory / "wandb" / RUN_ID
    if run_id and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(run_id)


def _settings() -> Any:
    import wandb

    fields: dict[str, Any] = {"silent": True, "console": "off", "save_code": False, "disable_git": True}
    fields |= {"init_timeout": ANSWER, "login_timeout": int(ANSWER)}
    if hasattr(wandb.Settings(), "finish_timeout"):  # without it a server that is gone is waited for
        fields["finish_timeout"] = FINISH
    return wandb.Settings(**fields)


def _keep_inside(directory: Path) -> None:
    """W&B stages images and tables in the user's home unless told otherwise."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in FOLDERS:
        if name not in CHOSEN_BY_USER:
            os.environ[name] = str(directory.absolute() / "data")


def _run_id(directory: Path) -> str:
    path = directory / RUN_ID
    if not path.exists():
        path.write_text(os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4))
    return path.read_text().strip()
