"""Everyone's checkpoints: the foreign formats by name, which of them a directory holds, and export."""

from __future__ import annotations

from pathlib import Path

from flamingo_lite.checkpoints.atomic import whole_directory
from flamingo_lite.checkpoints.blip2 import BLIP_FORMATS
from flamingo_lite.checkpoints.foreign import Format, read_json
from flamingo_lite.checkpoints.llava import LLAVA
from flamingo_lite.checkpoints.openflamingo import OPENFLAMINGO
from flamingo_lite.errors import FlamingoError
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.names import check_choice
from flamingo_lite.processing import VisionLanguageProcessor

FORMATS: dict[str, Format] = {"openflamingo": OPENFLAMINGO, "llava": LLAVA, **BLIP_FORMATS}
"""What a directory is compared with, in this order."""


def format_of(directory: Path) -> str | None:
    """The name of the format that `directory` holds, None if it is none of these."""
    path = directory / "config.json"
    model_type = read_json(path, "the config of a model").get("model_type") if path.is_file() else None
    return next((name for name, known in FORMATS.items() if known.is_in(directory, model_type)), None)


def export(
    model: VisionLanguageModel,
    processor: VisionLanguageProcessor | None,
    directory: str | Path,
    format: str,
) -> Path:
    """Writes `directory` in one step, so that the format's own class loads it; replaces one that is there.

    Raises FlamingoError that names the field in the way where the format cannot express the model's config.
    """
    check_choice("format", format, [name for name, known in FORMATS.items() if known.export is not None])
    write = FORMATS[format].export
    if write is None:
        raise FlamingoError(f"{format} can be read, not written")
    with whole_directory(Path(directory)) as temporary:
        write(model, processor, temporary)
    return Path(directory)
