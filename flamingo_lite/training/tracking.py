"""Weights & Biases, offline unless asked: rows of figures, samples, plots, the settings and the code's version.

One run of training is one W&B run, also where it was stopped and goes on, and the evaluation and the report, which come
later and in other processes, add to it: its id stands in the run's folder and in the checkpoints.
"""

import json
import os
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image
import PIL.ImageOps
from omegaconf import OmegaConf

import flamingo_lite
from flamingo_lite.errors import FlamingoError, first_line
from flamingo_lite.evaluation.environment import git_sha
from flamingo_lite.evaluation.gallery import redrawn
from flamingo_lite.evaluation.grid import Files
from flamingo_lite.evaluation.panels import IMAGES, SAMPLES
from flamingo_lite.names import check_choice
from flamingo_lite.training.samples import SampleHistory, picture_path, side_by_side

RUN_ID = "run_id"
WANDB_RUN = "wandb_run"
"""The name under which a checkpoint of training keeps the id."""
FINISH = 300
"""Seconds that the last figures get to arrive; what has not is in the run's folder all the same."""
MODES = ("offline", "online", "disabled")
ARTIFACTS = ("all", "metadata", "none")
PREDICTION = (
    "model", "rendering", "style", "shots", "seed", "query_id", "target", "extracted", "score", "status", "raw",
)  # fmt: skip
"""Of a prediction, what stands in the table of all of them."""
FOLDERS = ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_ARTIFACT_DIR")
CHOSEN_BY_USER = frozenset(name for name in FOLDERS if name in os.environ)


@dataclass
class WandbConfig:
    """`group`: runs of one experiment stand together; by default the run's `name` setting. `name`: by default that of
    the output folder. `artifacts`: of the data and the checkpoints "all" files, "metadata" alone (what they are, where
    they lie and their sha256), or "none". `timeout_seconds`: how long an online run waits for the server to answer; then
    it goes on offline.
    """

    mode: str = "offline"
    project: str = "flamingo_lite"
    entity: str | None = None
    group: str | None = None
    name: str | None = None
    artifacts: str = "metadata"
    timeout_seconds: float = 30.0

    def __post_init__(self) -> None:
        check_choice("value of wandb.mode:", self.mode, MODES)
        check_choice("value of wandb.artifacts:", self.artifacts, ARTIFACTS)
        if not self.timeout_seconds > 0:
            raise FlamingoError(f"wandb.timeout_seconds is {self.timeout_seconds}; expected more than 0")


class Tracker:
    """A W&B run in `directory/wandb`; with mode "disabled" every method does nothing.

    `group`: where the config names none. `say` gets one line where the server does not answer: then the run is an
    offline one.
    Errors: `FlamingoError` where W&B does not even start offline.
    """

    def __init__(
        self,
        config: WandbConfig,
        directory: Path,
        settings: Mapping[str, Any] | None = None,
        *,
        group: str | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        self.run: Any = None
        self.run_id: str | None = None
        self.artifacts = config.artifacts
        if config.mode == "disabled":
            return
        _keep_inside(directory / "wandb")
        self.run_id = _run_id(directory / "wandb")
        described = {
            "project": config.project,
            "entity": config.entity,
            "group": config.group or group,
            "job_type": "train",
            "name": config.name or directory.name,
            "id": self.run_id,
            "dir": str(directory),
            "config": {**settings, "code": code_version()} if settings else None,
        }
        self.run = _started(described, config, say)

    def log(self, row: Mapping[str, float]) -> None:
        """A row of figures at its `step`."""
        self._log({name: value for name, value in row.items() if name != "step"}, int(row["step"]))

    def log_samples(self, history: SampleHistory, step: int) -> None:
        """A table of all samples so far: what the model wrote for each prompt, over time, beside its images."""
        if self.run is None:
            return
        import wandb

        # A prompt's rows stand together, so that one sees how its text changes.
        samples = sorted(history.samples, key=lambda sample: (sample.number, sample.step))
        shown = {
            sample.number: wandb.Image(str(path), caption=sample.prompt)
            for sample in samples
            if (path := picture_path(history.directory, sample.number)).exists()
        }
        table = wandb.Table(columns=["step", "prompt", "image", "generated", "target", "correct"])
        for s in samples:
            table.add_data(s.step, s.prompt, shown.get(s.number), s.generated, s.target, s.is_correct)
        # W&B shows a list of images in one size.
        pictures = [PIL.Image.open(picture_path(history.directory, number)) for number in shown]
        width = max((picture.width for picture in pictures), default=1)
        gallery = [
            wandb.Image(PIL.ImageOps.pad(p, (width, p.height), color="white", centering=(0, 0)))
            for p in pictures
        ]
        self._log({SAMPLES: table, IMAGES: gallery}, step, commit=False)

    def log_plots(self, paths: Iterable[Path], step: int) -> None:
        """The plots as images, each under the name of its file."""
        if self.run is None:
            return
        import wandb

        self._log({f"plots/{path.stem}": wandb.Image(str(path)) for path in paths}, step)

    def log_predictions(self, samples: Sequence[Mapping[str, Any]], files: Files | None, step: int) -> None:
        """Every prediction of an evaluation beside the images of its prompt: a table for each task, split and condition.

        A prompt that cannot be drawn again, bit by bit, has no images there.
        """
        if self.run is None or not samples:
            return
        import wandb

        shown: dict[tuple[str, ...], Any] = {}
        tables: dict[str, Any] = {}
        for sample in samples:
            name = "/".join(("predictions", sample["task"], sample["split"], sample["condition"]))
            table = tables.setdefault(
                name, wandb.Table(columns=[*PREDICTION, "images"], allow_mixed_types=True)
            )
            document = redrawn(dict(sample), files)
            images = document.images if document is not None else ()
            # One picture of all: W&B shows no lists of images in a table.
            ids = tuple(image.id for image in images)
            if ids and ids not in shown:
                shown[ids] = wandb.Image(side_by_side(images))
            table.add_data(*(sample.get(key) for key in PREDICTION), shown.get(ids))
        self._log(tables, step)

    def summarize(self, values: Mapping[str, float | str]) -> None:
        """Figures of the run as a whole."""
        if self.run is not None:
            self.run.summary.update(dict(values))

    def close(self, failed: bool = False) -> None:
        if self.run is not None:
            self.run.finish(exit_code=int(failed))
            self.run = None

    def _log(self, values: Mapping[str, Any], step: int, commit: bool = True) -> None:
        if self.run is not None:
            # A step that is committed takes nothing more: what comes beside a row of figures comes before it.
            self.run.log(dict(values), step=step, commit=commit)

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(failed=kind is not None)


def _started(described: Mapping[str, Any], config: WandbConfig, say: Callable[[str], None]) -> Any:
    """The run: online if asked and the server answers, else offline."""
    import wandb

    quiet: dict[str, Any] = {"silent": True, "console": "off", "save_code": False, "disable_git": True}
    if config.mode == "online":
        seconds = config.timeout_seconds
        patience: dict[str, Any] = {"init_timeout": seconds, "login_timeout": seconds}
        if "finish_timeout" in wandb.Settings.model_fields:  # without it a server that is gone is waited for
            patience["finish_timeout"] = FINISH
        try:
            return wandb.init(
                **described, mode="online", resume="allow", settings=wandb.Settings(**quiet, **patience)
            )
        except wandb.errors.Error as error:
            say(
                f"W&B does not answer ({first_line(error)}): this run is kept offline, in {described['dir']}/wandb; wandb "
                "sync sends it later"
            )
            wandb.teardown()  # its service would say that the run's id is in use
    try:
        return wandb.init(**described, mode="offline", settings=wandb.Settings(**quiet))
    except wandb.errors.Error as error:
        raise FlamingoError(
            f"W&B did not start ({first_line(error)}); wandb.mode=disabled goes without"
        ) from error


def code_version() -> dict[str, str | None]:
    return {"flamingo_lite": flamingo_lite.__version__, "git_sha": git_sha()}


def continue_run(directory: Path) -> tuple[Tracker, int]:
    """The W&B run that a training in `directory` began, and its first free step.

    Where there was none, a tracker that logs nothing.
    """
    path = directory / "config.yaml"
    if not path.is_file() or not (directory / "wandb" / RUN_ID).is_file():
        return Tracker(WandbConfig(mode="disabled"), directory), 0
    settings = OmegaConf.load(path)
    tracker = Tracker(WandbConfig(**settings.wandb), directory, group=settings.name)
    return tracker, _steps_taken(directory, int(settings.stage.steps)) + 1


def _steps_taken(directory: Path, planned: int) -> int:
    """Those of a finished run, which epochs may have decided; of another one, the steps that are `planned`."""
    path = directory / "training.json"
    found = json.loads(path.read_text()) if path.is_file() else {}
    return int(found.get("steps", planned))


def forget_run(directory: Path) -> None:
    """What is logged next into `directory` is a W&B run of its own."""
    (directory / "wandb" / RUN_ID).unlink(missing_ok=True)


def remember_run(directory: Path, run_id: str | None) -> None:
    """Goes on with the W&B run that a checkpoint names, where the folder no longer says which one it was."""
    path = directory / "wandb" / RUN_ID
    if run_id and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(run_id)


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
