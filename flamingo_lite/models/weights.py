"""The tensors of one weight file: safetensors, or what PyTorch saved of tensors alone; nothing is ever unpickled."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from flamingo_lite.errors import FlamingoError, first_line


def read_file(path: Path, what: str = "") -> dict[str, Tensor]:
    """The tensors by their keys; large files are mapped, not read. `what` stands before the path in messages.

    Raises FlamingoError for a file that is not there, damaged, or a pickle of more than tensors.
    """
    name = f"{what} {path}".strip()
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # Files of PyTorch before 1.6 are no archives and cannot be mapped.
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise FlamingoError(
            f"{name} holds a pickle of more than tensors, which is never run; expected safetensors, or tensors alone"
        ) from error
    except (OSError, SafetensorError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise FlamingoError(
            f"cannot read {name}: {first_line(error)}; expected a whole file of tensors"
        ) from error
    return _tensors(found, name)


def _tensors(found: Any, name: str) -> dict[str, Tensor]:
    if isinstance(found, dict):
        # Training checkpoints keep the weights beside the optimizer's state.
        found = found.get("model_state_dict", found.get("state_dict", found))
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise FlamingoError(f"{name} holds a {type(found).__name__}; expected tensors by their keys")
    return found
