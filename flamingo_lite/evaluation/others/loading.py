"""An image-text-to-text model of transformers with its processor. No code of a checkpoint is run, nothing is unpickled."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from flamingo_lite.checkpoints.foreign import read_json
from flamingo_lite.checkpoints.formats import format_of
from flamingo_lite.checkpoints.hub import snapshot
from flamingo_lite.checkpoints.io import MANIFEST
from flamingo_lite.errors import FlamingoError, first_line
from flamingo_lite.models.configuration import VisionLanguageConfig

FILES = ("*.json", "*.jinja", "*.model", "*.txt", "*.safetensors", "*.tiktoken")
"""What of a repository is fetched: no code, and no pickled weights."""
CANNOT_LOAD = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    RuntimeError,
    ImportError,
    SafetensorError,
)


def is_of_transformers(directory: Path) -> bool:
    """Does it hold a model that transformers reads and we do not?"""
    if (directory / MANIFEST).is_file() or not (directory / "config.json").is_file():
        return False
    if not is_image_text_to_text(directory):
        return False
    try:
        return format_of(directory) is None
    except FlamingoError:
        return True  # we know the format, and why we cannot read it


def is_image_text_to_text(directory: Path) -> bool:
    """Is its config that of one of transformers' image-text-to-text models?"""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as KNOWN

    kind = read_json(directory / "config.json", "the config of a model").get("model_type")
    return kind in KNOWN and kind != VisionLanguageConfig.model_type


def fetched(name: str, revision: str | None) -> Path:
    """The local copy of a model on the hub, fetched if need be and if there is a network (HF_HUB_OFFLINE=1 forbids it).

    Errors: `FlamingoError` for one that is neither here nor to be had.
    """
    return snapshot(name, FILES, name if revision is None else f"{name} at {revision}", revision)


def load_processor(directory: Path) -> Any:
    """Its tokenizer pads on the left. Errors: `FlamingoError` for a directory without a whole processor."""
    from transformers import AutoProcessor

    if not is_image_text_to_text(directory):
        raise FlamingoError(
            f"{directory / 'config.json'} is of no image-text-to-text model of transformers; expected one that "
            "AutoModelForImageTextToText knows, or a model of ours"
        )
    try:
        processor: Any = AutoProcessor.from_pretrained(directory, trust_remote_code=False)
    except CANNOT_LOAD as error:
        raise FlamingoError(f"{directory}: its processor cannot be loaded ({first_line(error)})") from error
    if getattr(processor, "tokenizer", None) is None or getattr(processor, "image_processor", None) is None:
        raise FlamingoError(
            f"{directory}: its processor has no tokenizer, or none for images; expected the processor that the model was "
            "published with (preprocessor_config.json, tokenizer.json)"
        )
    tokenizer = processor.tokenizer
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return processor


def load_model(directory: Path, dtype: str, device: torch.device) -> Any:
    """The model in evaluation mode. Errors: `FlamingoError` for weights that are missing or damaged, another dtype than
    torch has, and a model that reads and writes apart (an encoder-decoder)."""
    from transformers import AutoModelForImageTextToText

    if dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise FlamingoError(f"dtype is {dtype!r}; expected auto, float32, bfloat16 or float16")
    try:
        model: Any = AutoModelForImageTextToText.from_pretrained(
            directory, trust_remote_code=False, use_safetensors=True, dtype=dtype
        )
    except CANNOT_LOAD as error:
        raise FlamingoError(f"{directory}: the model cannot be loaded ({first_line(error)})") from error
    if model.config.is_encoder_decoder:
        raise FlamingoError(f"{directory}: an encoder-decoder; expected a model that continues its prompt")
    return model.to(device).eval()
