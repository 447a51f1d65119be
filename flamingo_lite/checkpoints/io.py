"""Save and load models: a whole directory, or a training checkpoint of the trained parameters alone.

A training checkpoint names every frozen part with its revision and sha256, and loading checks them. A
directory appears under its final name only when it is complete. Only safetensors and json are ever read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from flamingo_lite.checkpoints.atomic import whole_directory
from flamingo_lite.checkpoints.foreign import one_line, read_json
from flamingo_lite.checkpoints.formats import FORMATS, format_of
from flamingo_lite.checkpoints.openflamingo_parts import download
from flamingo_lite.errors import FlamingoError
from flamingo_lite.models.adapters import adapters_of, insert_adapters
from flamingo_lite.models.build import build, model_config_from
from flamingo_lite.models.configuration import VisionLanguageConfig
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.models.policy import (
    apply_policy,
    frozen_sha256,
    load_trainable_state_dict,
    trainable_state_dict,
)
from flamingo_lite.processing import VisionLanguageProcessor

TRAINED = "trained.safetensors"
MANIFEST = "training_checkpoint.json"
FORMAT = "flamingo_lite training checkpoint, version 1"
EXPECTED = "the config of a model that flamingo_lite saved, or of a format that it reads"


def load(path: str | Path) -> tuple[VisionLanguageModel, VisionLanguageProcessor]:
    """Model (in evaluation mode) and processor of a directory that `save` wrote, whole or training
    checkpoint, or of a foreign one: the formats are those of `checkpoints.formats.FORMATS`.

    Raises FlamingoError in one line for what is missing, damaged, or of another kind.
    """
    return load_model(path), load_processor(path)


def load_model(path: str | Path) -> VisionLanguageModel:
    """The model alone, in evaluation mode; see `load`."""
    directory = _existing(path)
    if (directory / MANIFEST).is_file():
        return _load_training_checkpoint(directory).eval()
    foreign = format_of(directory)
    if foreign is not None:
        with one_line(directory, foreign):
            return FORMATS[foreign].load_model(directory).eval()
    config = read_json(directory / "config.json", EXPECTED)
    if config.get("model_type") != VisionLanguageConfig.model_type:
        raise FlamingoError(
            f"{directory / 'config.json'} is of a model of type {config.get('model_type')!r}, expected "
            f"{VisionLanguageConfig.model_type!r}, or one of the formats {', '.join(FORMATS)}"
        )
    try:
        return VisionLanguageModel.from_pretrained(directory, use_safetensors=True).eval()
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise FlamingoError(
            f"cannot load {directory}: {type(error).__name__}: {error}; it may be cut short"
        ) from error


def load_processor(path: str | Path) -> VisionLanguageProcessor:
    """The processor alone; see `load`."""
    directory = _existing(path)
    foreign = None if (directory / MANIFEST).is_file() else format_of(directory)
    if foreign is not None:
        with one_line(directory, foreign):
            return FORMATS[foreign].load_processor(directory)
    return VisionLanguageProcessor.from_pretrained(directory)


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
    with whole_directory(path) as temporary:
        if manifest is None:
            model.save_pretrained(temporary)
        else:
            state = {name: tensor.cpu().contiguous() for name, tensor in trainable_state_dict(model).items()}
            save_file(state, temporary / TRAINED)
            (temporary / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        if processor is not None:
            processor.save_pretrained(temporary)
    return path


def _manifest(model: VisionLanguageModel) -> dict[str, Any]:
    sources = model.config.sources
    frozen = {}
    for part, sha256 in frozen_sha256(model).items():
        source = sources.get("checkpoint") or sources.get(part)
        if source is None or source.get("pretrained") is False:
            raise FlamingoError(
                f"{part} is frozen, but its weights have no source to load them from again; "
                "save the whole model"
            )
        frozen[part] = {**source, "sha256": sha256}
    trains = {"policy": model.config.policy, "adapters": model.config.adapters}
    return {"format": FORMAT, "model": sources, **trains, "frozen": frozen}


def _load_training_checkpoint(directory: Path) -> VisionLanguageModel:
    manifest = read_json(directory / MANIFEST, "a training checkpoint that flamingo_lite saved")
    if manifest.get("format") != FORMAT or "model" not in manifest:
        raise FlamingoError(
            f"{directory / MANIFEST} is of format {manifest.get('format')!r}, expected {FORMAT!r}"
        )
    model = _rebuild(manifest["model"], manifest.get("policy", {}), manifest.get("adapters", []))
    found = frozen_sha256(model)
    for part, recorded in manifest.get("frozen", {}).items():
        if found.get(part) != recorded.get("sha256"):
            raise FlamingoError(
                f"the frozen {part} {recorded.get('name')!r} is not the one that {directory} was trained "
                "with "
                f"(sha256 {str(found.get(part))[:12]}, recorded {str(recorded.get('sha256'))[:12]}); restore that "
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


def _rebuild(
    sources: dict[str, Any], policy: dict[str, Any], adapters: list[dict[str, Any]]
) -> VisionLanguageModel:
    """The model before training: of the foreign checkpoint that it was read from, or built from its parts."""
    if "checkpoint" in sources:
        model = load_model(sources["checkpoint"]["name"])
    else:
        model = build(model_config_from({**sources, "policy": {}}))
    model.config.policy, model.config.adapters = policy, adapters
    insert_adapters(model, adapters_of(model))
    apply_policy(model, policy)
    return model


def _existing(path: str | Path) -> Path:
    directory = Path(path)
    if not directory.is_dir():
        directory = download(str(path)) or directory
    if not directory.is_dir():
        raise FlamingoError(
            f"no model directory {directory}; expected one that flamingo_lite or another project saved"
        )
    return directory
