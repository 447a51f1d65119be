"""BLIP-2 and InstructBLIP as transformers keeps them, in and out: a ViT, a Q-Former, and a causal language model
whose `<image>` tokens the Q-Former's queries replace. InstructBLIP's Q-Former reads the instruction too.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

from transformers import (
    AutoTokenizer,
    Blip2Config,
    Blip2Processor,
    InstructBlipConfig,
    InstructBlipProcessor,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from flamingo_lite.checkpoints import parts
from flamingo_lite.checkpoints.foreign import Format, came_from, refuse
from flamingo_lite.checkpoints.keys import Rename, Rule, State, put_weights, take_weights
from flamingo_lite.checkpoints.tensors import read_directory, write_directory
from flamingo_lite.document import IMAGE_TOKEN
from flamingo_lite.errors import FlamingoError, first_line
from flamingo_lite.image_transform import ImageTransform
from flamingo_lite.models.configuration import VisionLanguageConfig
from flamingo_lite.models.connector import ConnectorConfig
from flamingo_lite.models.fusion import FusionConfig
from flamingo_lite.models.language import LOADING_ERRORS
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.models.vision import VisionConfig, VisionTower, tower_to_dict, vision_tower
from flamingo_lite.processing import VisionLanguageProcessor
from flamingo_lite.text.template import Template

QFORMER_TOKENIZER = "qformer_tokenizer"
"""The folder of the Q-Former's tokenizer in an InstructBLIP directory."""

SIZES = {
    "hidden_size": "hidden_width",
    "num_hidden_layers": "depth",
    "num_attention_heads": "heads",
    "intermediate_size": "ff_width",
    "hidden_act": "activation",
    "cross_attention_frequency": "every",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
    "layer_norm_eps": "norm_eps",
    "vocab_size": "vocabulary",
    "max_position_embeddings": "positions",
}
"""Fields of their Q-Former's config, and of our connector's."""

ATTENTION = {
    "attention.query": "to_q",
    "attention.key": "to_k",
    "attention.value": "to_v",
    "output.dense": "to_out",
    "output.LayerNorm": "norm",
}
LAYER = {
    **{f"attention.{theirs}": f"attention.{ours}" for theirs, ours in ATTENTION.items()},
    **{f"crossattention.{theirs}": f"patch_attention.{ours}" for theirs, ours in ATTENTION.items()},
    "intermediate_query.dense": "feed_forward.up",
    "output_query.dense": "feed_forward.down",
    "output_query.LayerNorm": "feed_forward.norm",
    "intermediate.dense": "text_feed_forward.up",
    "output.dense": "text_feed_forward.down",
    "output.LayerNorm": "text_feed_forward.norm",
}
"""What a layer of the Q-Former holds."""

CONSTANTS = ("qformer.embeddings.position_ids", "language_model.*.rotary_emb.inv_freq")
"""Keys of old files that hold what the code computes."""


@dataclass(frozen=True)
class Family:
    """What sets the two apart. `norm`: where the norm before the Q-Former's layers stands."""

    name: str
    model_type: str
    architecture: str
    config: type[PretrainedConfig]
    vision_type: str
    reads_text: bool
    norm: str


@dataclass(frozen=True)
class Single:
    """One tensor under two names; theirs has a first dimension of 1 more."""

    theirs: str
    ours: str

    def to_ours(self, theirs: State) -> State:
        return {self.ours: theirs.pop(self.theirs)[0]} if self.theirs in theirs else {}

    def to_theirs(self, ours: State) -> State:
        return {self.theirs: ours.pop(self.ours)[None]} if self.ours in ours else {}


def load_model(family: Family, directory: Path) -> VisionLanguageModel:
    theirs = parts.read_config(directory, family.config)
    config = configuration(family, theirs, directory)
    model = parts.empty_model(config, theirs.dtype, directory)
    unread = (*CONSTANTS, "language_model.lm_head.weight") if config.tie_word_embeddings else CONSTANTS
    put_weights(
        model,
        read_directory(directory),
        rules(family, model, has_new_rows=False),
        str(directory),
        unread=unread,
        optional=("language_model.*.new_rows",),
    )
    parts.quiet_new_rows(model)
    return model


def load_processor(family: Family, directory: Path) -> VisionLanguageProcessor:
    config = configuration(family, parts.read_config(directory, family.config), directory)
    tokenizer = parts.read_tokenizer(directory)
    begin = parts.writes_begin(tokenizer)
    tokenizer.add_tokens([IMAGE_TOKEN], special_tokens=True)
    parts.check_image_token(tokenizer, config.image_token_id, directory)
    parts.check_vocabulary(tokenizer, config, directory)
    template = Template(
        begin=begin, begin_after_images=True, image_tokens=config.connector["latents"], end_of_chunk=None
    )
    preprocess = config.vision_tower["preprocess"]
    processor = VisionLanguageProcessor(tokenizer, ImageTransform(**preprocess), template)
    if family.reads_text:
        processor.connector_tokenizer = _qformer_tokenizer(config, directory)
    return processor


def configuration(family: Family, theirs: Any, directory: Path) -> VisionLanguageConfig:
    """Our config of theirs. Raises FlamingoError, by field, for what cannot be read here."""
    text = parts.language_config(theirs, directory)
    former = theirs.qformer_config
    if getattr(former, "use_qformer_text_input", False):
        raise FlamingoError(
            f"use_qformer_text_input in {directory / 'config.json'} is true, which is for image-text retrieval; expected "
            "a checkpoint that writes text"
        )
    names = {
        theirs: ours
        for theirs, ours in SIZES.items()
        if family.reads_text or ours not in ("vocabulary", "positions")
    }
    connector = ConnectorConfig(
        name="qformer",
        latents=theirs.num_query_tokens,
        text=family.reads_text,
        **{ours: getattr(former, name) for name, ours in names.items()},
    )
    vision = VisionConfig(name=str(directory), layer=-1, class_token=True, final_norm=True)
    image_token_id = _image_token_id(theirs, directory)
    return VisionLanguageConfig(
        text_config=text,
        vision_tower=tower_to_dict(vision_tower(vision)),
        connector=connector.complete(),
        fusion=FusionConfig(name="prefix").complete(),
        sources=came_from(directory, family.name),
        image_token_id=image_token_id,
        first_new_token=text.vocab_size,
        # A token behind the matrix is a row of its own, which is never read: media tokens take its place.
        new_tokens=int(image_token_id == text.vocab_size),
    )


def rules(family: Family, model: VisionLanguageModel, has_new_rows: bool = True) -> list[Rule]:
    """What transformers writes, and what it is called here. `has_new_rows`: new tokens stand in their matrices."""
    body = f"language_model.{model.language.base_model_prefix}."
    layer = "qformer.encoder.layer"
    layers = [
        Rename(f"{layer}.*.{theirs}.{kind}", f"connector.layers.*.{ours}.{kind}")
        for theirs, ours in LAYER.items()
        for kind in ("weight", "bias")
    ]
    return [
        *parts.language_rules(model, body, "language_model.lm_head.", has_new_rows),
        Single("query_tokens", "connector.latents"),
        Rename(f"qformer.{family.norm}.*", "connector.norm.*"),
        Rename("qformer.embeddings.word_embeddings.weight", "connector.word_embedding.weight"),
        Rename("qformer.embeddings.position_embeddings.weight", "connector.position_embedding.weight"),
        *layers,
        Rename("language_projection.*", "connector.projection.*"),
        Rename("vision_model.*", f"{parts.vision_prefix(model)}*"),
    ]


def export(
    family: Family, model: VisionLanguageModel, processor: VisionLanguageProcessor | None, directory: Path
) -> None:
    theirs = their_config(family, model)
    state = take_weights(model, rules(family, model))
    theirs.save_pretrained(directory)
    model.generation_config.save_pretrained(directory)
    write_directory(state, directory)
    if processor is not None:
        their_processor(family, model, processor).save_pretrained(directory)


def their_config(family: Family, model: VisionLanguageModel) -> PretrainedConfig:
    """Their config of our model. Raises FlamingoError that names the field in the way."""
    config = cast(VisionLanguageConfig, model.config)
    tower, connector = VisionTower(**config.vision_tower), ConnectorConfig(**config.connector)
    vision = tower.transformers or {}
    if vision.get("model_type") != family.vision_type:
        found = vision.get("model_type", "an encoder of open_clip")
        raise refuse(family.name, "vision", found, f"the encoder {family.vision_type} of transformers")
    for name, only in {"layer": -1, "class_token": True, "final_norm": True}.items():
        if getattr(tower, name) != only:
            raise refuse(family.name, f"vision.{name}", getattr(tower, name), str(only))
    parts.check_prefix(model, family.name)
    if connector.name != "qformer" or connector.text != family.reads_text:
        found = connector.name if connector.name != "qformer" else f"a qformer with text={connector.text}"
        raise refuse(family.name, "connector", found, f"a qformer with text={family.reads_text}")
    if config.new_tokens > 1:
        raise refuse(
            family.name, "new_tokens", config.new_tokens, f"{IMAGE_TOKEN} beside the language model's own"
        )
    former = {
        name: getattr(connector, ours) for name, ours in SIZES.items() if getattr(connector, ours) is not None
    }
    former.setdefault("intermediate_size", 4 * former["hidden_size"])
    theirs = cast(Any, family.config)(
        vision_config=vision,
        qformer_config=former,
        text_config=parts.exported_language_config(config),
        num_query_tokens=connector.latents,
        image_token_index=config.image_token_id,
    )
    theirs.architectures, theirs.dtype = [family.architecture], model.dtype
    return theirs


def their_processor(
    family: Family, model: VisionLanguageModel, processor: VisionLanguageProcessor
) -> ProcessorMixin:
    images = parts.image_processor(processor.image_transform, family.name)
    queries = model.connector.tokens
    if not family.reads_text:
        return Blip2Processor(images, processor.tokenizer, num_query_tokens=queries)
    if processor.connector_tokenizer is None:
        raise refuse(
            family.name, "connector_tokenizer of the processor", None, "a tokenizer for the Q-Former's text"
        )
    return InstructBlipProcessor(
        images, processor.tokenizer, processor.connector_tokenizer, num_query_tokens=queries
    )


def _image_token_id(theirs: Any, directory: Path) -> int:
    """Theirs, or the one that `<image>` gets where their config was written before there was one."""
    known, size = theirs.image_token_index, theirs.text_config.vocab_size
    if known is None:
        tokenizer = parts.read_tokenizer(directory)
        found = tokenizer.get_vocab().get(IMAGE_TOKEN, len(tokenizer))
        if found <= size:
            return found
        raise FlamingoError(
            f"{IMAGE_TOKEN} is token {found} of the tokenizer in {directory}, but text_config.vocab_size in config.json is "
            f"{size}; expected the tokenizer of this model"
        )
    if known >= size:
        raise FlamingoError(
            f"image_token_index in {directory / 'config.json'} is {known}; expected a token below "
            f"text_config.vocab_size, {size}"
        )
    return known


def _qformer_tokenizer(config: VisionLanguageConfig, directory: Path) -> PreTrainedTokenizerBase:
    try:
        found = cast(
            PreTrainedTokenizerBase,
            AutoTokenizer.from_pretrained(directory / QFORMER_TOKENIZER, trust_remote_code=False),
        )
    except LOADING_ERRORS as error:
        raise FlamingoError(
            f"cannot load the Q-Former's tokenizer from {directory / QFORMER_TOKENIZER}: {first_line(error)}; expected "
            "the folder of the InstructBLIP processor"
        ) from error
    if len(found) > config.connector["vocabulary"]:
        raise FlamingoError(
            f"the tokenizer in {directory / QFORMER_TOKENIZER} has {len(found)} tokens, but qformer_config.vocab_size is "
            f"{config.connector['vocabulary']}; expected the tokenizer of this model"
        )
    return found


BLIP_2 = Family(
    name="blip2",
    model_type="blip-2",
    architecture="Blip2ForConditionalGeneration",
    config=Blip2Config,
    vision_type="blip_2_vision_model",
    reads_text=False,
    norm="layernorm",
)
INSTRUCT_BLIP = Family(
    name="instructblip",
    model_type="instructblip",
    architecture="InstructBlipForConditionalGeneration",
    config=InstructBlipConfig,
    vision_type="instructblip_vision_model",
    reads_text=True,
    norm="embeddings.layernorm",
)


def _format(family: Family) -> Format:
    return Format(
        partial(load_model, family),
        partial(load_processor, family),
        partial(export, family),
        model_type=family.model_type,
    )


BLIP_FORMATS = {family.name: _format(family) for family in (BLIP_2, INSTRUCT_BLIP)}
