"""Encoders by which examples are told to be alike: an image, or a text, to one vector of length 1.

Shape letters: m images, s texts, t text positions, p patches, d width.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from flamingo_lite.document import Image
from flamingo_lite.errors import FlamingoError, first_line
from flamingo_lite.image_transform import ImageTransform
from flamingo_lite.models import vision_open_clip
from flamingo_lite.models.language import LOADING_ERRORS, LanguageConfig, load_tokenizer
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.models.parts import backbone_directory
from flamingo_lite.models.policy import sha256_of_module
from flamingo_lite.models.vision import VisionConfig, vision_tower
from flamingo_lite.names import unknown
from flamingo_lite.processing import VisionLanguageProcessor

Kind = Literal["image", "text"]

POOLING = "1_Pooling/config.json"
"""Where a directory of sentence-transformers says how tokens become a sentence."""


@dataclass(frozen=True)
class SimilarityEncoder:
    """`encode`: images, or texts, to vectors of length 1, float32 on the CPU. `key`: all that these depend on."""

    key: str
    encode: Callable[[Sequence[Any]], Tensor]


def own_encoder(
    model: VisionLanguageModel, processor: VisionLanguageProcessor, key: str
) -> SimilarityEncoder:
    """The vision encoder of a model: its class token where the model reads one, otherwise the mean over its patches.
    `key`: of the patch features."""
    is_class_token = bool(model.config.vision_tower.get("class_token"))

    def pooled(pixels: Tensor) -> Tensor:
        features = model.patch_features(pixels.to(model.device)).float()  # (m p d)
        return features[:, 0] if is_class_token else features.mean(1)

    return SimilarityEncoder(f"{key}-pooled", _of_images(processor.image_transform, pooled))


def load_encoder(name: str, kind: Kind, device: torch.device | str = "cpu") -> SimilarityEncoder:
    """The encoder of images or texts that `name` means.

    "tiny" is the packaged CLIP; "ViT-L-14:openai" a model of open_clip with its weights; a directory, or a hub name,
    is of open_clip or transformers. Of CLIP and its kin both give what their own classes compare images and texts by;
    other transformers models give the pooled image, or the mean over a text's tokens (the first token where a
    sentence-transformers directory says so). Errors: `FlamingoError` for what is no such encoder.
    """
    directory = None if ":" in name else backbone_directory(name, "clip")
    if ":" in name or (directory is not None and (directory / vision_open_clip.CONFIG).is_file()):
        return _open_clip(name, directory, kind, device)
    return _transformers(str(directory or name), kind, device)


def _of_images(transform: ImageTransform, features: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    def encode(images: Sequence[Image]) -> Tensor:
        with torch.no_grad():
            return _unit(features(torch.stack([transform(image) for image in images])))

    return encode


def _unit(features: Tensor) -> Tensor:
    return normalize(features.float(), dim=-1).cpu()


def _key(module: nn.Module, *rest: object) -> str:
    # Its layers as well: the same weights give other features with another kind of GELU.
    layers = [type(layer).__name__ for layer in module.modules()]
    return hashlib.sha256(repr((sha256_of_module(module), layers, rest)).encode()).hexdigest()[:32]


def _open_clip(
    name: str, directory: Path | None, kind: Kind, device: torch.device | str
) -> SimilarityEncoder:
    import open_clip

    architecture, _, tag = name.partition(":")
    if directory is None and architecture not in open_clip.list_models():
        raise unknown("open_clip model", architecture, open_clip.list_models())
    if directory is None and not tag:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(architecture)) or "none"
        raise FlamingoError(f"{name!r} names no weights; choose a tag behind the colon ({tags}), or a file")
    source = architecture if directory is None else f"local-dir:{directory}"
    try:
        model = cast(Any, open_clip.create_model(source, pretrained=tag or None))
        transform = ImageTransform.from_open_clip(dict(open_clip.get_model_preprocess_cfg(model)))
        tokenize = _tiny_ids if name == "tiny" else open_clip.get_tokenizer(source)
    except (*LOADING_ERRORS, AssertionError, AttributeError, pickle.UnpicklingError) as error:
        raise FlamingoError(_cannot_load(name, error)) from error
    model = model.eval().requires_grad_(False).to(device)
    if kind == "image":
        key = _key(model.visual, asdict(transform))
        return SimilarityEncoder(
            key, _of_images(transform, lambda pixels: model.encode_image(pixels.to(device)))
        )
    return SimilarityEncoder(
        _key(model, kind, name), _of_texts(lambda texts: model.encode_text(tokenize(texts).to(device)))
    )


def _of_texts(features: Callable[[list[str]], Tensor]) -> Callable[..., Tensor]:
    def encode(texts: Sequence[str]) -> Tensor:
        with torch.no_grad():
            return _unit(features(list(texts)))

    return encode


def _tiny_ids(texts: Sequence[str]) -> Tensor:
    """(s t): the ids of the packaged language model, closed by one more, as the packaged CLIP was trained on."""
    tokenizer = load_tokenizer(LanguageConfig())
    length, end = 24, len(tokenizer)
    ids = torch.full((len(texts), length), cast(int, tokenizer.pad_token_id))
    for row, text in enumerate(texts):
        found = tokenizer(text, add_special_tokens=False)["input_ids"][: length - 1]
        ids[row, : len(found) + 1] = torch.tensor([*found, end])
    return ids


def _transformers(name: str, kind: Kind, device: torch.device | str) -> SimilarityEncoder:
    from transformers import AutoModel, AutoTokenizer

    try:
        model: Any = AutoModel.from_pretrained(name, trust_remote_code=False, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False) if kind == "text" else None
    except LOADING_ERRORS as error:
        raise FlamingoError(_cannot_load(name, error)) from error
    model = model.eval().requires_grad_(False).to(device)
    if tokenizer is not None:
        if model.config.is_encoder_decoder:
            model = model.get_encoder()
        backend = getattr(tokenizer, "backend_tokenizer", None)
        words = sorted(tokenizer.get_vocab().items()) if backend is None else backend.to_str()
        key = _key(model, kind, words, _takes_first(name))
        return SimilarityEncoder(key, _of_texts(lambda texts: _text_features(model, tokenizer, texts, name)))
    transform = ImageTransform.from_open_clip(vision_tower(VisionConfig(name=name)).preprocess)
    return SimilarityEncoder(
        _key(model, asdict(transform)),
        _of_images(transform, lambda pixels: _image_features(model, pixels.to(device), name)),
    )


def _image_features(model: Any, pixels: Tensor, name: str) -> Tensor:
    if hasattr(model, "get_image_features"):
        return _pooled(model.get_image_features(pixel_values=pixels))
    found = model(pixel_values=pixels)
    if getattr(found, "pooler_output", None) is None:
        raise FlamingoError(
            f"{name}: {type(model).__name__} gives no pooled feature of an image; expected a CLIP, or an encoder with one"
        )
    return found.pooler_output


def _text_features(model: Any, tokenizer: Any, texts: list[str], name: str) -> Tensor:
    if hasattr(model, "get_text_features"):
        length = model.config.text_config.max_position_embeddings
        tokens = tokenizer(
            texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        return _pooled(model.get_text_features(**tokens.to(model.device)))
    # Positions of an encoder may begin behind those of padding.
    most = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", 512) - 2)
    tokens = tokenizer(texts, padding=True, truncation=True, max_length=most, return_tensors="pt")
    states = model(**tokens.to(model.device)).last_hidden_state  # (s t d)
    if _takes_first(name):
        return states[:, 0]
    weights = tokens["attention_mask"][:, :, None].to(states)
    return (states * weights).sum(1) / weights.sum(1)


def _takes_first(name: str) -> bool:
    path = Path(name) / POOLING
    return path.is_file() and bool(json.loads(path.read_text()).get("pooling_mode_cls_token"))


def _pooled(found: Any) -> Tensor:
    # transformers 5 gives the output of the tower, with the projected feature in its place.
    return found if isinstance(found, Tensor) else found.pooler_output


def _cannot_load(name: str, error: Exception) -> str:
    return (
        f"cannot load {name!r} to compare examples by: {first_line(error)}; expected 'tiny', an open_clip model with its "
        "weights (ViT-L-14:openai), or a directory or hub name of a CLIP or another encoder"
    )
