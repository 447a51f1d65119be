"""Everyone's checkpoints: the foreign formats by name, which of them a directory holds, and export."""

from __future__ import annotations

import copy
from pathlib import Path

from flamingo_lite.checkpoints.atomic import whole_directory
from flamingo_lite.checkpoints.blip2 import BLIP_FORMATS
from flamingo_lite.checkpoints.foreign import Format, read_json
from flamingo_lite.checkpoints.idefics import IDEFICS
from flamingo_lite.checkpoints.llava import LLAVA
from flamingo_lite.checkpoints.llava_original import LLAVA_ORIGINAL
from flamingo_lite.checkpoints.openflamingo import OPENFLAMINGO
from flamingo_lite.errors import FlamingoError
from flamingo_lite.models.adapters import adapters_of, merge_adapters
from flamingo_lite.models.configuration import VisionLanguageConfig
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.names import check_choice
from flamingo_lite.processing import VisionLanguageProcessor

FORMATS: dict[str, Format] = {
    "openflamingo": OPENFLAMINGO,
    "idefics": IDEFICS,
    "llava_original": LLAVA_ORIGINAL,
    "llava": LLAVA,
    **BLIP_FORMATS,
}
"""What a directory is compared with, in this order."""

CANNOT_BE_READ = {
    "mllama": "where no image stands before a text, its blocks read every vision token, and those here read none; choose "
    f"a checkpoint of {', '.join(FORMATS)}"
}
"""Formats that the axes do not express, by model type, and why."""


def format_of(directory: Path) -> str | None:
    """The name of the format that `directory` holds, None if it is none of these.

    Raises FlamingoError for a format that other people have and that cannot be read here, and says why.
    """
    path = directory / "config.json"
    config = read_json(path, "the config of a model") if path.is_file() else {}
    if config.get("model_type") == VisionLanguageConfig.model_type:
        return None
    reason = CANNOT_BE_READ.get(str(config.get("model_type")))
    if reason is not None:
        raise FlamingoError(
            f"{path} is of a model of type {config['model_type']!r}, which cannot be read here: {reason}"
        )
    return next((name for name, known in FORMATS.items() if known.is_in(directory, config)), None)


def export(
    model: VisionLanguageModel,
    processor: VisionLanguageProcessor | None,
    directory: str | Path,
    format: str,
) -> Path:
    """Writes `directory` in one step, so that the format's own class loads it; replaces one that is there. Adapters
    are merged into the weights, in a copy.

    Raises FlamingoError that names the field in the way where the format cannot express the model's config.
    """
    check_choice("format", format, [name for name, known in FORMATS.items() if known.export is not None])
    write = FORMATS[format].export
    if write is None:
        raise FlamingoError(f"{format} can be read, not written")
    if adapters_of(model):
        model = copy.deepcopy(model)
        merge_adapters(model)
    with whole_directory(Path(directory)) as temporary:
        write(model, processor, temporary)
    return Path(directory)
