"""OpenFlamingo: a directory with checkpoint.pt, and openflamingo.json that names the parts it was trained on.

The checkpoint holds the resampler, the gated blocks and the embeddings; vision encoder and language model come from
where the parts say. Keys and sizes are those of `open_flamingo/src` (mlfoundations/open_flamingo).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from flamingo_lite.checkpoints.foreign import Format, came_from, refuse
from flamingo_lite.checkpoints.keys import (
    NewRows,
    Rename,
    Rule,
    expected_by,
    put_weights,
    take_weights,
    under,
)
from flamingo_lite.checkpoints.openflamingo_parts import CHECKPOINT, PARTS, Parts, parts_to_dict, read_parts
from flamingo_lite.document import IMAGE_TOKEN
from flamingo_lite.errors import FlamingoError
from flamingo_lite.image_transform import ImageTransform
from flamingo_lite.models.configuration import VisionLanguageConfig
from flamingo_lite.models.connector import ConnectorConfig
from flamingo_lite.models.language import decoder_layers, load_language
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.models.parts import backbone_directory
from flamingo_lite.models.vision import load_vision, tower_to_dict, vision_tower
from flamingo_lite.models.weights import read_file
from flamingo_lite.nn.gated import GatedConfig
from flamingo_lite.nn.resampler import ResamplerConfig
from flamingo_lite.processing import VisionLanguageProcessor
from flamingo_lite.text.template import Template

HEAD_WIDTH = 64
"""Of the resampler's and the blocks' heads: no field of theirs changes it, and no tensor tells it."""

RESAMPLER_LAYER: tuple[Rule, ...] = (
    Rename("0.*", "attention.*"),
    Rename("1.0.*", "feed_forward.norm.*"),
    Rename("1.1.weight", "feed_forward.up.weight"),
    Rename("1.3.weight", "feed_forward.down.weight"),
)
BLOCK: tuple[Rule, ...] = (
    Rename("attn_gate", "attention_gate"),
    Rename("ff_gate", "feed_forward_gate"),
    Rename("attn.*", "attention.*"),
    Rename("ff.0.*", "feed_forward.norm.*"),
    Rename("ff.1.weight", "feed_forward.up.weight"),
    Rename("ff.3.weight", "feed_forward.down.weight"),
)
FORMER_HEAD = "lang_encoder.embed_out."
"""GPT-NeoX's head in the published checkpoints; releases of transformers call it that or `lm_head`."""
UNREAD = (
    # The same tensors once more: the first LLaMA release has them, and so has a whole state dict.
    "lang_encoder.gated_cross_attn_layers.*",
    "lang_encoder.old_decoder_blocks.*",
    # Tables that older releases of transformers saved and newer ones compute.
    "lang_encoder.*.rotary_emb.inv_freq",
    "lang_encoder.*.attention.bias",
    "lang_encoder.*.attention.masked_bias",
    "lang_encoder.*.attn.bias",
    "lang_encoder.*.attn.masked_bias",
    # Behind the features that the resampler reads.
    "vision_encoder.ln_post.*",
    "vision_encoder.proj",
)


def load_model(directory: Path) -> VisionLanguageModel:
    """The parts that the directory names, joined by its weights; float32, in training mode.

    New tokens' output rows that are not in the checkpoint (untied heads: never trained there) are the mean row.
    """
    parts, path = read_parts(directory), directory / CHECKPOINT
    theirs = {key.removeprefix("module."): value for key, value in read_file(path).items()}
    tokenizer, first = parts.tokenizer(directory)
    tower, vision = load_vision(parts.vision(directory))
    language = load_language(parts.language(directory))
    # Theirs has no rows beyond the tokenizer's: padding of the vocabulary is cut off.
    language.resize_token_embeddings(first, mean_resizing=False)
    names = LanguageNames(language)
    theirs = {key.replace(FORMER_HEAD, f"lang_encoder.{names.head}."): theirs[key] for key in theirs}
    config = VisionLanguageConfig(
        text_config=language.config,
        vision_tower=tower_to_dict(tower),
        connector=_connector(theirs, vision.width, path, parts).complete(),
        fusion=asdict(_fusion(theirs, names, path, parts)),
        sources={
            "vision": asdict(parts.vision(directory)),
            "language": asdict(parts.language(directory)),
            **came_from(directory, "openflamingo"),
        },
        image_token_id=cast(int, tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)),  # one token, one id
        first_new_token=first,
        new_tokens=len(tokenizer) - first,
        dtype=language.dtype,
    )
    model = VisionLanguageModel(config, vision=vision, language=language)
    rules = key_map(model)
    frozen = [key for key in expected_by(model, rules) if not names.is_trained(key)]
    put_weights(model, theirs, rules, str(path), unread=(*UNREAD, *names.again), optional=frozen)
    head: Any = language.get_output_embeddings()
    if hasattr(head, "new_rows") and f"lang_encoder.{names.head}.weight" not in theirs:
        with torch.no_grad():
            head.new_rows.copy_(head.weight.mean(0).expand_as(head.new_rows))
    return model


def load_processor(directory: Path) -> VisionLanguageProcessor:
    """The language model's tokenizer with their tokens, and the encoder's transform."""
    parts = read_parts(directory)
    tokenizer, _ = parts.tokenizer(directory)
    begins = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    return VisionLanguageProcessor(
        tokenizer,
        image_transform=ImageTransform.from_open_clip(vision_tower(parts.vision(directory)).preprocess),
        template=Template(begin=begins),
    )


def export(model: VisionLanguageModel, processor: VisionLanguageProcessor | None, directory: Path) -> None:
    """checkpoint.pt, whole (but for what the encoder has behind its features), and openflamingo.json."""
    parts = _expressible(model)
    state = take_weights(model, key_map(model))
    torch.save(state, directory / CHECKPOINT)
    (directory / PARTS[0]).write_text(json.dumps(parts_to_dict(parts), indent=2) + "\n", encoding="utf-8")


OPENFLAMINGO = Format(load_model, load_processor, export, file=CHECKPOINT)


class LanguageNames:
    """What a language model calls its decoder layers, its embedding and its head.

    `again`: their key of a tied head, the embedding once more.
    """

    def __init__(self, language: PreTrainedModel) -> None:
        self.layers = _name_of(language, decoder_layers(language))
        self.embedding = _name_of(language, language.get_input_embeddings())
        head = language.get_output_embeddings()
        self.head = None if head is None else _name_of(language, head)
        is_tied = head is not None and head.weight is language.get_input_embeddings().weight
        self.again = (f"lang_encoder.{self.head}.weight",) if is_tied else ()
        self.width: int = language.config.get_text_config().hidden_size
        self.depth: int = language.config.get_text_config().num_hidden_layers

    def is_trained(self, key: str) -> bool:
        """Is their `key` one that every checkpoint has?"""
        parts = key.split(".")
        return (
            parts[0] == "perceiver"
            or "gated_cross_attn_layer" in parts
            or key == f"lang_encoder.{self.embedding}.weight"
        )


def key_map(model: VisionLanguageModel) -> list[Rule]:
    """Their names of every weight of `model`, for any language model: its own names stand inside theirs."""
    names, config = LanguageNames(model.language), model.config
    rules: list[Rule] = [
        Rename("perceiver.latents", "connector.latents"),
        Rename("perceiver.norm.*", "connector.norm.*"),
    ]
    for i in range(config.connector["depth"]):
        rules += under(f"perceiver.layers.{i}.", f"connector.layers.{i}.", RESAMPLER_LAYER)
    there, here = f"lang_encoder.{names.layers}", f"language.{names.layers}"
    for i in model.blocks:
        rules += under(f"{there}.{i}.gated_cross_attn_layer.", f"{here}.{i}.cross_attention.", BLOCK)
    rules += [Rename(f"{there}.{i}.decoder_layer.*", f"{here}.{i}.*") for i in range(names.depth)]
    for name in dict.fromkeys((names.embedding, names.head)):
        if name is not None and config.new_tokens:
            rules += under("lang_encoder.", "language.", [_rows(name, config.first_new_token)])
    rules += [Rename("lang_encoder.*", "language.*"), Rename("vision_encoder.*", "vision.tower.*")]
    return rules


def _rows(name: str, first: int) -> Rule:
    return NewRows(f"{name}.weight", f"{name}.weight", f"{name}.new_rows", first)


def _name_of(language: nn.Module, part: nn.Module) -> str:
    return next(name for name, module in language.named_modules() if module is part)


def _connector(theirs: Mapping[str, Tensor], width: int, path: Path, parts: Parts) -> ConnectorConfig:
    latents = _wanted(theirs, "perceiver.latents", path)
    query = _wanted(theirs, "perceiver.layers.0.0.to_q.weight", path)
    inner = _wanted(theirs, "perceiver.layers.0.1.1.weight", path)
    if latents.shape[1] != width:
        raise FlamingoError(
            f"perceiver.latents in {path} has width {latents.shape[1]}, the patches of clip_vision_encoder_path "
            f"{parts.clip_vision_encoder_path!r} have {width}; name the encoder that the checkpoint was trained on"
        )
    layers = [re.match(r"perceiver\.layers\.(\d+)\.", key) for key in theirs]
    return ConnectorConfig(
        depth=1 + max(int(found[1]) for found in layers if found),
        latents=latents.shape[0],
        heads=_heads(query, "perceiver.layers.0.0.to_q.weight", path),
        dim_head=HEAD_WIDTH,
        ff_mult=inner.shape[0] // width,
    )


def _fusion(theirs: Mapping[str, Tensor], names: LanguageNames, path: Path, parts: Parts) -> GatedConfig:
    stem = f"lang_encoder.{names.layers}"
    pattern = re.compile(re.escape(stem) + r"\.(\d+)\.gated_cross_attn_layer\.attn\.to_q\.weight")
    found = {int(hit[1]): key for key in theirs if (hit := pattern.fullmatch(key))}
    every = parts.cross_attn_every_n_layers
    expected = [i for i in range(names.depth) if GatedConfig(every=every).stands_before(i)]
    if sorted(found) != expected:
        raise FlamingoError(
            f"{path} has gated blocks at {sorted(found) or 'none'} of {stem}, but cross_attn_every_n_layers {every} in "
            f"the {names.depth} layers of lang_encoder_path {parts.lang_encoder_path!r} means {expected}; correct them"
        )
    key = found[expected[0]]
    query = theirs[key]
    if query.shape[1] != names.width:
        raise FlamingoError(
            f"{key} in {path} takes width {query.shape[1]}, lang_encoder_path {parts.lang_encoder_path!r} has "
            f"{names.width}; name the language model that the checkpoint was trained on"
        )
    inner = _wanted(theirs, key.replace("attn.to_q", "ff.1"), path)
    heads = _heads(query, key, path)
    return GatedConfig(every=every, heads=heads, dim_head=HEAD_WIDTH, ff_mult=inner.shape[0] // names.width)


def _wanted(theirs: Mapping[str, Tensor], key: str, path: Path) -> Tensor:
    if key not in theirs:
        first = ", ".join(list(theirs)[:3]) or "nothing"
        raise FlamingoError(
            f"{path} holds no {key} (found: {first}, ...); expected an OpenFlamingo checkpoint"
        )
    return theirs[key]


def _heads(query: Tensor, key: str, path: Path) -> int:
    if query.shape[0] % HEAD_WIDTH:
        raise FlamingoError(
            f"{key} in {path} has {query.shape[0]} rows; expected a multiple of {HEAD_WIDTH}, the width of a head"
        )
    return query.shape[0] // HEAD_WIDTH


def _expressible(model: VisionLanguageModel) -> Parts:
    """The parts to name in openflamingo.json. Raises FlamingoError for what `create_model_and_transforms` lacks."""
    config = model.config
    same = {"gate_mean", "gate_std", "every"}  # how gates begin is over; the interval is theirs to choose
    fixed = {
        "connector": {"name": "perceiver", **asdict(ResamplerConfig())},
        "fusion": {"name": "cross_attention", **asdict(GatedConfig())},
        "vision_tower": {"transformers": None, "layer": -1, "class_token": False},
    }
    for part, values in fixed.items():
        own = getattr(config, part)
        for name, value in values.items():
            if name not in same and own.get(name, value) != value:
                raise refuse("openflamingo", f"{part}.{name}", own[name], repr(value))
    head: Any = model.language.get_output_embeddings()
    if getattr(head, "bias", None) is not None:
        kind = config.text_config.model_type
        raise refuse("openflamingo", "text_config.model_type", kind, "language models whose head has no bias")
    for part in ("vision", "language"):
        if not config.sources.get(part, {}).get("name"):
            raise refuse("openflamingo", f"sources.{part}.name", None, "names of parts that it can load")
    vision, language = config.sources["vision"], config.sources["language"]
    return Parts(
        clip_vision_encoder_path=_absolute(backbone_directory(vision["name"], "clip")) or vision["name"],
        clip_vision_encoder_pretrained=vision.get("pretrained"),
        lang_encoder_path=_absolute(backbone_directory(language["name"], "language")) or language["name"],
        cross_attn_every_n_layers=config.fusion["every"],
        final_norm=bool(config.vision_tower.get("final_norm")),
    )


def _absolute(directory: Path | None) -> str | None:
    """A relative name would be looked for beside the file that holds it."""
    return None if directory is None else str(directory.resolve())
