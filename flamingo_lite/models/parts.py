"""Where the parts of a model come from: the packaged tiny pair, a directory, or a name to look up
elsewhere.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Literal

from torch import nn
from transformers import GenerationMixin

from flamingo_lite.errors import FlamingoError

BACKBONES = Path(__file__).parent.parent / "backbones"

INITIALISED = "_is_hf_initialized"
"""transformers' own mark on a module whose weights it must not draw."""

CACHE = (
    "cache"
    if "cache" in inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
    else "past_key_values"
)
"""transformers' name for the keys and values of earlier tokens, another from 5.24 on.

Models are handed it under exactly one name: of the two, the old one would be ignored, and every token decoded as if
it were the first.
"""


def backbone_directory(name: str, kind: Literal["clip", "language"]) -> Path | None:
    """The directory that `name` means ("tiny" is the packaged backbone), or None if it is a name to look up.

    Raises FlamingoError for what looks like a path but is no directory.
    """
    directory = BACKBONES / kind if name == "tiny" else Path(name).expanduser()
    if directory.is_dir():
        return directory
    if name == "tiny" or name.startswith((".", "/", "~")):
        raise FlamingoError(
            f"no directory {directory} for the {kind} backbone {name!r}; check the path or reinstall"
        )
    return None


def keep_weights(module: nn.Module) -> None:
    """Mark `module` and all in it, so that transformers' `post_init` does not draw their weights anew."""
    for part in module.modules():
        setattr(part, INITIALISED, True)
