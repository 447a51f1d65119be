"""What a foreign format is: how it is recognised, and what reads and writes a directory of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flamingo_lite.checkpoints.tensors import holds_weights, read_directory
from flamingo_lite.errors import FlamingoError, first_line
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.processing import VisionLanguageProcessor


@dataclass(frozen=True)
class Format:
    """One foreign format. `load_model` and `load_processor` read a directory that it recognises.

    `model_type`: that of its config.json; `field`: what its config.json must have; `file`: what else such a directory
    holds. None: any, or nothing.
    `export(model, processor, directory)` writes into an empty directory what the reference class loads; None where
    that is not supported. All raise FlamingoError, in one line that names the file or field.
    """

    load_model: Callable[[Path], VisionLanguageModel]
    load_processor: Callable[[Path], VisionLanguageProcessor]
    export: Callable[[VisionLanguageModel, VisionLanguageProcessor | None, Path], None] | None = None
    model_type: str | None = None
    file: str | None = None
    field: str | None = None

    def is_in(self, directory: Path, config: Mapping[str, Any]) -> bool:
        """Is this the format of `directory`, whose config.json holds `config`?"""
        return (
            self.model_type in (None, config.get("model_type"))
            and (self.field is None or self.field in config)
            and (self.file is None or (directory / self.file).is_file())
        )


def came_from(directory: Path, format_name: str) -> dict[str, Any]:
    """What `config.sources` says of an imported model, so that a training checkpoint can be laid over it again."""
    return {"checkpoint": {"name": str(directory.resolve()), "format": format_name}}


def read_again(
    model: VisionLanguageModel,
    wanted: Mapping[str, Tensor],
    respelled: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict,
) -> dict[str, Tensor]:
    """The tensors `wanted` (keys and shapes), which nothing here reads, as the checkpoint that the model came from has
    them; zeros where that is gone or of another shape. An export needs them so that the reference class is whole.
    `respelled` gives the file's tensors the keys of `wanted`.
    """
    source = model.config.sources.get("checkpoint", {}).get("name")
    found = read_directory(Path(source)) if wanted and source and holds_weights(Path(source)) else {}
    found = respelled(found)
    return {
        key: found[key]
        if key in found and found[key].shape == value.shape
        else torch.zeros(value.shape, dtype=model.dtype)
        for key, value in wanted.items()
    }


def read_json(path: Path, what: str) -> dict[str, Any]:
    """The object in a json file. Raises FlamingoError that says what was expected there."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FlamingoError(f"cannot read {path}: {error}; expected {what}") from error
    if not isinstance(value, dict):
        raise FlamingoError(f"{path} holds a {type(value).__name__}; expected {what}")
    return value


def refuse(format_name: str, field: str, found: object, expected: str) -> FlamingoError:
    """The error for a model whose config the format cannot express."""
    return FlamingoError(
        f"cannot export as {format_name}: {field} is {found!r}, and the format has only {expected}"
    )


@contextmanager
def one_line(directory: Path, format_name: str) -> Iterator[None]:
    """A value of the wrong kind in a file of `directory`, wherever it is met, as a FlamingoError."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FlamingoError(
            f"cannot read {directory} as {format_name}: {type(error).__name__}: {first_line(error)}; a value in its json "
            "files is missing or of the wrong kind"
        ) from error
