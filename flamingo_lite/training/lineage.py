"""What a run was made from and what it made, as W&B artifacts: shards go in, checkpoints and a model come out.

By default an artifact holds what identifies the files (sha256, sizes, where they lie), not the files: a checkpoint may be
as large as the disk, and who trains on a cluster keeps it there.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning

from flamingo_lite.data.manifest import Manifest
from flamingo_lite.evaluation.panels import column_part
from flamingo_lite.evaluation.results import sha256_of_json
from flamingo_lite.training.beside import Beside
from flamingo_lite.training.checkpointing import Record, VerifiedCheckpointIO
from flamingo_lite.training.tracking import Tracker


def used_data(tracker: Tracker, manifests: Mapping[str, Manifest]) -> None:
    """Says that the run trains on these shards, by the names of their sources."""
    if tracker.run is None or tracker.artifacts == "none":
        return
    for source, manifest in manifests.items():
        about = {
            "source": source,
            "location": str(manifest.directory),
            "sha256": sha256_of_json([shard.sha256 for shard in manifest.shards]),
            "shards": len(manifest.shards),
            "samples": manifest.samples,
            "images": manifest.images,
            "bytes": sum(shard.bytes for shard in manifest.shards),
        }
        whole = {"shards.json": manifest.to_json()} if tracker.artifacts == "all" else {}
        artifact = _artifact(f"data-{column_part(source)}", "dataset", about, whole)
        # What run.use_artifact does with an artifact that is not on the server yet, but offline too (it refuses there):
        # when the run is synced, the artifact is made, and marked as used by the run.
        tracker.run._log_artifact(artifact, is_user_created=True, use_after_commit=True)


def made_checkpoint(tracker: Tracker, path: Path, record: Record) -> None:
    """A checkpoint that was written, by what its record says."""
    if tracker.run is None or tracker.artifacts == "none":
        return
    about = {**dataclasses.asdict(record), "location": str(path.absolute())}
    artifact = _artifact(f"checkpoint-{tracker.run_id}", "checkpoint", about)
    if tracker.artifacts == "all":
        artifact.add_file(str(path))
    tracker.run.log_artifact(artifact, aliases=["latest", f"step-{record.step}"])


def made_model(tracker: Tracker, directory: Path, about: Mapping[str, Any]) -> None:
    """The trained model, as it was saved into `directory`."""
    if tracker.run is None or tracker.artifacts == "none":
        return
    config = {"config.json": (directory / "config.json").read_text("utf-8")}
    whole = tracker.artifacts == "all"
    about = {**about, "location": str(directory.absolute())}
    artifact = _artifact(f"model-{tracker.run_id}", "model", about, {} if whole else config)
    if whole:
        artifact.add_dir(str(directory))
    tracker.run.log_artifact(artifact)


class CheckpointLineage(lightning.Callback):
    """Tells W&B of each checkpoint; comes after the callback that writes them."""

    def __init__(self, tracker: Tracker, folder: Path, files: VerifiedCheckpointIO, beside: Beside) -> None:
        self.tracker, self.folder, self.files, self.beside = tracker, folder, files, beside
        self._told: Record | None = None

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        record = self.files.record
        if record is not None and record is not self._told:
            self._told = record
            with self.beside.writing("what W&B is told of checkpoints"):
                made_checkpoint(self.tracker, self.folder / f"step-{record.step:08d}.ckpt", record)


def _artifact(name: str, kind: str, about: Mapping[str, Any], files: Mapping[str, str] | None = None) -> Any:
    """An artifact whose contents follow from what it is about: the same data is the same version."""
    import wandb

    artifact = wandb.Artifact(name, type=kind, metadata=dict(about))
    for file_name, text in {"about.json": json.dumps(about, indent=1), **(files or {})}.items():
        with artifact.new_file(file_name, encoding="utf-8") as file:
            file.write(text)
    return artifact
