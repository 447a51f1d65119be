"""What the transformers formats of prefix fusion share: a directory's config, its tokenizer, the parts of a vision
encoder that are never read, an image processor written out again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    CLIPImageProcessor,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)

from flamingo_lite.checkpoints.foreign import refuse
from flamingo_lite.checkpoints.keys import NewRows, Rename, Rule
from flamingo_lite.document import IMAGE_TOKEN
from flamingo_lite.errors import FlamingoError, first_line
from flamingo_lite.image_transform import RESAMPLING, ImageTransform
from flamingo_lite.models.configuration import VisionLanguageConfig
from flamingo_lite.models.language import LOADING_ERRORS, LanguageConfig, load_tokenizer, refuse_other_models
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.models.tower import VisionTower
from flamingo_lite.models.vision import VisionEncoder
from flamingo_lite.models.vision_transformers import type_of
from flamingo_lite.processing import VisionLanguageProcessor


def read_config(directory: Path, kind: type[PretrainedConfig]) -> Any:
    """The config.json of a directory as its own class reads it. Raises FlamingoError where it cannot."""
    try:
        return kind.from_pretrained(directory)
    except (*LOADING_ERRORS, AttributeError) as error:
        raise FlamingoError(
            f"cannot read {directory / 'config.json'}: {first_line(error)}; expected a {kind.__name__}"
        ) from error


def read_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """The directory's tokenizer, with a token to pad with that the language model knows."""
    tokenizer = load_tokenizer(LanguageConfig(name=str(directory)))
    if tokenizer.pad_token is None:
        # A token of its own would lie behind the embeddings; padding is masked, so any known one will do.
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return tokenizer


def writes_begin(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Does this tokenizer put its begin token before a text, as its model was trained with?"""
    return tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]


def chat_template(directory: Path) -> str | None:
    """How the directory's processor writes a conversation, the default one where it knows several ways."""
    values, _ = VisionLanguageProcessor.get_processor_dict(directory)
    found = values.get("chat_template")
    return found.get("default") if isinstance(found, dict) else found


def check_image_token(tokenizer: PreTrainedTokenizerBase, image_token_id: int, directory: Path) -> None:
    """Raises FlamingoError unless `<image>` is the token that config.json counts on."""
    found = tokenizer.get_vocab().get(IMAGE_TOKEN)
    if found != image_token_id:
        raise FlamingoError(
            f"the tokenizer in {directory} "
            + (
                f"has {IMAGE_TOKEN} as token {found}"
                if found is not None
                else f"lacks the token {IMAGE_TOKEN}"
            )
            + f", but image_token_index in config.json is {image_token_id}; expected the tokenizer of this model"
        )


def check_vocabulary(
    tokenizer: PreTrainedTokenizerBase, config: VisionLanguageConfig, directory: Path
) -> None:
    """Raises FlamingoError for a tokenizer with more tokens than the language model has embeddings."""
    if len(tokenizer) > config.text_config.vocab_size:
        raise FlamingoError(
            f"the tokenizer in {directory} has {len(tokenizer)} tokens, but vocab_size in config.json is "
            f"{config.text_config.vocab_size}; expected the tokenizer of this model"
        )


def empty_model(
    config: VisionLanguageConfig,
    dtype: torch.dtype | str | None,
    directory: Path,
    vision: VisionEncoder | None = None,
) -> VisionLanguageModel:
    """The model, in the type of the checkpoint's weights, that these are then put into; with the directory's own
    settings for generation. `vision`: an encoder that is loaded already.
    """
    known = getattr(torch, dtype) if isinstance(dtype, str) else dtype or torch.float32
    encoder = None if vision is None else vision.to(known)
    model = AutoModelForImageTextToText.from_config(config, dtype=known, vision=encoder)
    if (directory / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(directory)
        model.generation_config.use_cache = True
    return model


def language_config(theirs: Any, directory: Path) -> PretrainedConfig:
    """The config of the language model inside. Raises FlamingoError for an encoder-decoder."""
    config = theirs.text_config
    if config.is_encoder_decoder:
        raise FlamingoError(
            f"text_config in {directory / 'config.json'} is of type {config.model_type!r}, an encoder-decoder; expected "
            "a decoder-only language model, such as opt or llama"
        )
    refuse_other_models(config, f"text_config in {directory / 'config.json'}")
    return config


def exported_language_config(config: VisionLanguageConfig) -> PretrainedConfig:
    """The language model's config with the new tokens in its vocabulary, as a format has them."""
    text = config.language_config()
    if config.new_tokens:
        text.vocab_size = config.first_new_token + config.new_tokens
    text.dtype = None  # the outer config has it
    return text


def check_prefix(model: VisionLanguageModel, format_name: str) -> None:
    """Raises FlamingoError for a model that joins its parts in another way."""
    if model.fusion.name != "prefix":
        raise refuse(format_name, "fusion.name", model.fusion.name, "prefix")
    if model.fusion.bidirectional:
        raise refuse(format_name, "fusion.bidirectional", True, "false")


def quiet_new_rows(model: VisionLanguageModel) -> None:
    """Sets the rows of tokens that the checkpoint lacks to the mean of the others, the same at every loading."""
    parts = (model.language.get_input_embeddings(), model.language.get_output_embeddings())
    with torch.no_grad():
        for part in cast(tuple[Any, ...], parts):
            if hasattr(part, "new_rows"):
                part.new_rows.copy_(part.weight.mean(0).expand_as(part.new_rows))


def language_rules(model: VisionLanguageModel, base: str, head: str, has_new_rows: bool = True) -> list[Rule]:
    """The language model's body under `base` and its head under `head` there; new tokens' rows, if theirs has them,
    behind the others.
    """
    names = {id(module): name for name, module in model.named_modules()}
    own_base = f"language.{model.language.base_model_prefix}."
    embedding = f"{names[id(model.language.get_input_embeddings())]}."
    own_head = f"{names[id(model.language.get_output_embeddings())]}."
    rules: list[Rule] = [Rename(f"{base}*", f"{own_base}*"), Rename(f"{head}*", f"{own_head}*")]
    if not (model.config.new_tokens and has_new_rows):
        return rules
    places = {embedding: base + embedding.removeprefix(own_base), own_head: head}
    first = model.config.first_new_token
    return [
        *(
            NewRows(f"{theirs}weight", f"{ours}weight", f"{ours}new_rows", first)
            for ours, theirs in places.items()
        ),
        *rules,
    ]


def vision_prefix(model: VisionLanguageModel) -> str:
    """What stands before the encoder's parts: its classes had one level more before transformers 5.20 or so."""
    inner = "vision_model." if hasattr(model.vision.tower, "vision_model") else ""
    return f"vision.tower.{inner}"


def unread_weights(tower: VisionTower) -> dict[str, Tensor]:
    """The weights of the whole encoder that have no effect on what is read of it, without numbers (meta)."""
    values = dict(tower.transformers or {})
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    with torch.device("meta"):
        whole = type_of(config)(config).state_dict()
        read = VisionEncoder(tower).tower.state_dict()
    return {key.removeprefix("vision_model."): value for key, value in whole.items() if key not in read}


def patches(tower: VisionTower) -> int:
    """How many features the encoder gives of an image."""
    with torch.device("meta"):
        return VisionEncoder(tower).patches


def image_processor(transform: ImageTransform, format_name: str) -> CLIPImageProcessor:
    """The image processor of transformers that does what `transform` does. Raises FlamingoError if none does."""
    height, width = transform.size
    is_squashed = transform.resize_mode == "squash"
    if not is_squashed and transform.shortest_edge is None:
        raise FlamingoError(
            f"cannot export as {format_name}: image_transform.resize_mode is {transform.resize_mode!r} without a "
            "shortest_edge, which is open_clip's way; expected squash, or a shortest_edge that is then cropped"
        )
    size: Any = (
        {"height": height, "width": width} if is_squashed else {"shortest_edge": transform.shortest_edge}
    )
    return CLIPImageProcessor(size=size, do_center_crop=not is_squashed, **image_settings(transform))


def image_settings(transform: ImageTransform) -> dict[str, Any]:
    """What every image processor of transformers is told in the same words: the size, the interpolation, the colours."""
    height, width = transform.size
    return {
        "crop_size": {"height": height, "width": width},
        "resample": RESAMPLING[transform.interpolation],
        "image_mean": list(transform.mean),
        "image_std": list(transform.std),
    }
