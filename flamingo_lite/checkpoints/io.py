"""Save and load models: a whole directory, or a training checkpoint of the trained parameters alone.

A training checkpoint names every frozen part with its revision and sha256, and loading checks them. A
directory appears under its final name only when it is complete. Only safetensors and json are ever read.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from flamingo_lite.errors import FlamingoError
from flamingo_lite.models.build import build, model_config_from
from flamingo_lite.models.configuration import VisionLanguageConfig
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.models.policy import frozen_sha256, load_trainable_state_dict, trainable_state_dict
from flamingo_lite.processing import VisionLanguageProcessor

TRAINED = "trained.safetensors"
MANIFEST = "training_checkpoint.json"
FORMAT = "flamingo_lite training checkpoint, version 1"


def load(path: str | Path) -> tuple[VisionLanguageModel, VisionLanguageProcessor]:
    """Model (in evaluation mode) and processor of a directory that `save` wrote, whole or training
    checkpoint.

    Raises FlamingoError in one line for what is missing, damaged, or of another kind.
    """
    return load_model(path), load_processor(path)


def load_model(path: str | Path) -> VisionLanguageModel:
    """The model alone, in evaluation mode; see `load`."""
    directory = _existing(path)
    if (directory / MANIFEST).is_file():
        return _load_training_checkpoint(directory).eval()
    config = _read_json(directory / "config.json", "a model directory")
    if config.get("model_type") != VisionLanguageConfig.model_type:
        raise FlamingoError(
            f"{directory} holds a model of type {config.get('model_type')!r}, expected "
            f"{VisionLanguageConfig.model_type!r}"
        )
    try:
        return VisionLanguageModel.from_pretrained(directory).eval()
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise FlamingoError(
            f"cannot load {directory}: {type(error).__name__}: {error}; it may be cut short"
        ) from error


def load_processor(path: str | Path) -> VisionLanguageProcessor:
    """The processor alone; see `load`."""
    return VisionLanguageProcessor.from_pretrained(_existing(path))


def save(
    model: VisionLanguageModel,
    processor: VisionLanguageProcessor | None,
    path: str | Path,
    whole: bool = True,
    notes: dict[str, Any] | None = None,
) -> Path:
    """Write model and processor to the directory `path` in one step, replacing a directory that is there.

    `whole` False writes a training checkpoint: the parameters that train, and the name, revision and sha256
    of every frozen part, which must have a source to come from again. `notes` (step, metrics, ...) go into
    its manifest. Raises FlamingoError when the disk refuses, leaving nothing under `path` that was not there
    before.
    """
    path = Path(path)
    manifest = None if whole else {**_manifest(model), "notes": notes or {}}
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        if manifest is None:
            model.save_pretrained(temporary)
        else:
            state = {name: tensor.cpu().contiguous() for name, tensor in trainable_state_dict(model).items()}
            save_file(state, temporary / TRAINED)
            (temporary / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        if processor is not None:
            processor.save_pretrained(temporary)
        _put_in_place(temporary, path)
    except (OSError, SafetensorError) as error:
        raise FlamingoError(f"cannot write {path}: {error}; nothing was left there half-written") from error
    finally:
        if temporary is not None and temporary.exists():
            shutil.rmtree(temporary, ignore_errors=True)
    return path


def _put_in_place(temporary: Path, path: Path) -> None:
    # mkdtemp makes a private directory; the result should be as readable as any other.
    mask = os.umask(0)
    os.umask(mask)
    temporary.chmod(0o777 & ~mask)
    if path.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
        os.replace(path, old / path.name)
        os.replace(temporary, path)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.replace(temporary, path)


def _manifest(model: VisionLanguageModel) -> dict[str, Any]:
    sources = model.config.sources
    frozen = {}
    for part, sha256 in frozen_sha256(model).items():
        source = sources.get(part)
        if source is None or source.get("pretrained") is False:
            raise FlamingoError(
                f"{part} is frozen, but its weights have no source to load them from again; "
                "save the whole model"
            )
        frozen[part] = {**source, "sha256": sha256}
    return {"format": FORMAT, "model": sources, "policy": model.config.policy, "frozen": frozen}


def _load_training_checkpoint(directory: Path) -> VisionLanguageModel:
    manifest = _read_json(directory / MANIFEST, "a training checkpoint")
    if manifest.get("format") != FORMAT or "model" not in manifest:
        raise FlamingoError(
            f"{directory / MANIFEST} is of format {manifest.get('format')!r}, expected {FORMAT!r}"
        )
    model = build(model_config_from({**manifest["model"], "policy": manifest.get("policy", {})}))
    found = frozen_sha256(model)
    for part, recorded in manifest.get("frozen", {}).items():
        if found.get(part) != recorded["sha256"]:
            raise FlamingoError(
                f"the frozen {part} {recorded.get('name')!r} is not the one that {directory} was trained "
                "with "
                f"(sha256 {str(found.get(part))[:12]}, recorded {recorded['sha256'][:12]}); restore that "
                "version"
            )
    try:
        state = load_file(directory / TRAINED)
    except (OSError, SafetensorError) as error:
        raise FlamingoError(
            f"cannot read {directory / TRAINED}: {error}; expected a whole safetensors file"
        ) from error
    load_trainable_state_dict(model, state)
    return model


def _existing(path: str | Path) -> Path:
    directory = Path(path)
    if not directory.is_dir():
        raise FlamingoError(f"no model directory {directory}; expected one that flamingo_lite saved")
    return directory


def _read_json(path: Path, what: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FlamingoError(
            f"cannot read {path}: {error}; expected {what} that flamingo_lite saved"
        ) from error
    if not isinstance(value, dict):
        raise FlamingoError(
            f"{path} holds a {type(value).__name__}, expected {what} that flamingo_lite saved"
        )
    return value
