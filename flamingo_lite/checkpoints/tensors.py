"""Tensors from the weight files of a directory, and into them: safetensors, or PyTorch files of tensors alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import save_torch_state_dict
from torch import Tensor

from flamingo_lite.errors import FlamingoError
from flamingo_lite.models.weights import read_file

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""The names of a whole weight file, the first one found is read; `.index.json` behind one names its shards."""


def read_directory(directory: Path) -> dict[str, Tensor]:
    """All tensors of a transformers directory, by their keys; large files are mapped, not read.

    Raises FlamingoError for weights that are not there, damaged, or a pickle of more than tensors.
    """
    for name in WEIGHTS:
        if (directory / name).is_file():
            return read_file(directory / name)
        if (directory / f"{name}.index.json").is_file():
            return _read_shards(directory / f"{name}.index.json")
    found = ", ".join(sorted(path.name for path in directory.iterdir())[:6]) or "nothing"
    raise FlamingoError(
        f"{directory} holds no weights (found: {found}); expected {' or '.join(WEIGHTS)}, or the index of its shards"
    )


def holds_weights(directory: Path) -> bool:
    """Does `directory` hold anything that `read_directory` reads?"""
    return any((directory / f"{name}{index}").is_file() for name in WEIGHTS for index in ("", ".index.json"))


def write_directory(state: Mapping[str, Tensor], directory: Path) -> None:
    """Writes model.safetensors, or shards of 5 GB and their index, as transformers reads them."""
    save_torch_state_dict(dict(state), directory, max_shard_size="5GB")


def _read_shards(index: Path) -> dict[str, Tensor]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FlamingoError(
            f"cannot read {index}: {type(error).__name__}: {error}; expected a weight_map from keys to files"
        ) from error
    state: dict[str, Tensor] = {}
    for name in names:
        if Path(name).name != name:
            raise FlamingoError(f"{index} names the shard {name!r}; expected files beside the index")
        state |= read_file(index.parent / name)
    return state
