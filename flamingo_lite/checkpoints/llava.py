"""LLaVA-1.5 as transformers keeps it (`LlavaForConditionalGeneration`), in and out: two linear layers between a CLIP
or SigLIP and a language model, whose `<image>` tokens the patches replace.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, cast

from torch import Tensor
from transformers import AutoConfig, CLIPImageProcessor, LlavaConfig, LlavaImageProcessor, LlavaProcessor

from flamingo_lite.checkpoints import parts
from flamingo_lite.checkpoints.foreign import Format, came_from, read_again, refuse
from flamingo_lite.checkpoints.keys import Rename, Rule, put_weights, take_weights
from flamingo_lite.checkpoints.tensors import read_directory, write_directory
from flamingo_lite.document import IMAGE_TOKEN
from flamingo_lite.errors import FlamingoError
from flamingo_lite.image_transform import ImageTransform
from flamingo_lite.models.configuration import VisionLanguageConfig
from flamingo_lite.models.connector import ConnectorConfig
from flamingo_lite.models.fusion import FusionConfig
from flamingo_lite.models.head import has_plain_head
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.models.vision import VisionConfig, VisionTower, tower_to_dict, vision_tower
from flamingo_lite.processing import VisionLanguageProcessor
from flamingo_lite.text.template import Template

NAME = "llava"

HAS_CLASS_TOKEN = {"clip_vision_model": True, "siglip_vision_model": False}
"""The vision encoders that are read, by type. The last of their hidden states is the one before their last norm."""

SPELLINGS = {
    "model.language_model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
    "model.vision_tower.": "vision_tower.",
    "model.multi_modal_projector.": "multi_modal_projector.",
    "vision_tower.vision_model.": "vision_tower.",
}
"""Beginnings of keys in files of other versions of transformers, and the ones that the rules know. In this order."""

CONSTANTS = ("vision_tower.embeddings.position_ids", "language_model.*.rotary_emb.inv_freq")
"""Keys of old files that hold what the code computes."""


def load_model(directory: Path) -> VisionLanguageModel:
    theirs = parts.read_config(directory, LlavaConfig)
    config = configuration(theirs, directory)
    model = parts.empty_model(config, theirs.dtype, directory)
    unread = {f"vision_tower.{key}" for key in parts.unread_weights(VisionTower(**config.vision_tower))}
    if config.tie_word_embeddings:
        unread.add("language_model.lm_head.weight")
    state = respelled(read_directory(directory))
    put_weights(model, state, rules(model), str(directory), unread=(*sorted(unread), *CONSTANTS))
    return model


def load_processor(directory: Path) -> VisionLanguageProcessor:
    config = configuration(parts.read_config(directory, LlavaConfig), directory)
    tokenizer = parts.read_tokenizer(directory)
    parts.check_image_token(tokenizer, config.image_token_id, directory)
    parts.check_vocabulary(tokenizer, config, directory)
    tower = VisionTower(**config.vision_tower)
    # LLaVA ends each answer with the end token.
    template = Template(
        begin=parts.writes_begin(tokenizer),
        image_tokens=parts.patches(tower),
        end_of_chunk=cast(str | None, tokenizer.eos_token),
    )
    transform = ImageTransform(**tower.preprocess)
    return VisionLanguageProcessor(
        tokenizer, transform, template, chat_template=parts.chat_template(directory)
    )


def configuration(theirs: Any, directory: Path) -> VisionLanguageConfig:
    """Our config of theirs. Raises FlamingoError, by field, for what is not LLaVA-1.5."""
    kind = theirs.vision_config.model_type
    if kind not in HAS_CLASS_TOKEN:
        raise FlamingoError(
            f"vision_config in {directory / 'config.json'} is of type {kind!r}; expected "
            f"{' or '.join(HAS_CLASS_TOKEN)}"
        )
    strategy = theirs.vision_feature_select_strategy
    if strategy == "default" and not HAS_CLASS_TOKEN[kind]:
        raise FlamingoError(
            f"vision_feature_select_strategy in {directory / 'config.json'} is 'default', which drops the first of the "
            f"tokens, and {kind} has no class token to drop; expected 'full'"
        )
    layer = _layer(theirs.vision_feature_layer, theirs.vision_config.num_hidden_layers, directory)
    text = parts.language_config(theirs, directory)
    text.tie_word_embeddings = theirs.tie_word_embeddings
    if not 0 <= theirs.image_token_index < text.vocab_size:
        raise FlamingoError(
            f"image_token_index in {directory / 'config.json'} is {theirs.image_token_index}; expected a token below "
            f"text_config.vocab_size, {text.vocab_size}"
        )
    vision = VisionConfig(
        name=str(directory),
        layer=layer,
        class_token=HAS_CLASS_TOKEN[kind] and strategy == "full",
    )
    connector = ConnectorConfig(
        name="mlp", activation=theirs.projector_hidden_act, bias=theirs.multimodal_projector_bias
    )
    return VisionLanguageConfig(
        text_config=text,
        vision_tower=tower_to_dict(vision_tower(vision)),
        connector=connector.complete(),
        fusion=FusionConfig(name="prefix").complete(),
        sources=came_from(directory, NAME),
        image_token_id=theirs.image_token_index,
        first_new_token=text.vocab_size,
    )


def rules(model: VisionLanguageModel) -> list[Rule]:
    """What transformers writes, and what it is called here."""
    projector = "multi_modal_projector.linear_"
    return [
        *parts.language_rules(model, "language_model.model.", "language_model.lm_head."),
        Rename(f"{projector}1.*", "connector.layers.0.*"),
        Rename(f"{projector}2.*", "connector.layers.1.*"),
        Rename("vision_tower.*", f"{parts.vision_prefix(model)}*"),
    ]


def respelled(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under the keys that the rules know, whichever version of transformers wrote them."""
    for before, after in SPELLINGS.items():
        state = {
            after + key.removeprefix(before) if key.startswith(before) else key: value
            for key, value in state.items()
        }
    return state


def export(model: VisionLanguageModel, processor: VisionLanguageProcessor | None, directory: Path) -> None:
    """A directory that `LlavaForConditionalGeneration` loads. What our encoder cut away as never read is that of the
    checkpoint that the model came from, or zeros where that is gone, so that the encoder keeps its depth.
    """
    theirs = their_config(model)
    state = take_weights(model, rules(model))
    tower = VisionTower(**model.config.vision_tower)
    unread = {f"vision_tower.{key}": value for key, value in parts.unread_weights(tower).items()}
    state |= read_again(model, unread, respelled)
    theirs.save_pretrained(directory)
    model.generation_config.save_pretrained(directory)
    write_directory(state, directory)
    if processor is not None:
        their_processor(processor, tower).save_pretrained(directory)


def their_config(model: VisionLanguageModel) -> LlavaConfig:
    """Their config of our model. Raises FlamingoError that names the field in the way."""
    config = cast(VisionLanguageConfig, model.config)
    tower, connector = VisionTower(**config.vision_tower), ConnectorConfig(**config.connector)
    vision = tower.transformers or {}
    kind = vision.get("model_type", "an encoder of open_clip")
    if kind not in HAS_CLASS_TOKEN:
        raise refuse(NAME, "vision", kind, f"the encoders {' and '.join(HAS_CLASS_TOKEN)} of transformers")
    if tower.final_norm:
        raise refuse(NAME, "vision.final_norm", True, "hidden states before the last norm")
    parts.check_prefix(model, NAME)
    _check_connector(connector, model)
    text = parts.exported_language_config(config)
    head: Any = model.language.get_output_embeddings()
    if not has_plain_head(model.language) or getattr(head, "bias", None) is not None:
        raise refuse(
            NAME, "language", text.model_type, "language models whose head is one matrix without a bias"
        )
    theirs = LlavaConfig(
        vision_config=AutoConfig.for_model(**vision),
        text_config=text,
        image_token_index=config.image_token_id,
        image_seq_length=model.connector.tokens,
        projector_hidden_act=cast(str, connector.activation),
        vision_feature_select_strategy=_strategy(tower),
        vision_feature_layer=tower.layer,
        multimodal_projector_bias=cast(bool, connector.bias),
        tie_word_embeddings=config.tie_word_embeddings,
    )
    theirs.architectures, theirs.dtype = ["LlavaForConditionalGeneration"], model.dtype
    return theirs


def _image_processor(transform: ImageTransform) -> CLIPImageProcessor | LlavaImageProcessor:
    if transform.resize_mode != "pad":
        return parts.image_processor(transform, NAME)
    size: Any = {"shortest_edge": transform.size[1]}
    return LlavaImageProcessor(do_pad=True, size=size, **parts.image_settings(transform))


def their_processor(processor: VisionLanguageProcessor, tower: VisionTower) -> LlavaProcessor:
    vision = cast(dict[str, Any], tower.transformers)
    return LlavaProcessor(
        image_processor=_image_processor(processor.image_transform),
        tokenizer=processor.tokenizer,
        patch_size=vision["patch_size"],
        vision_feature_select_strategy=_strategy(tower),
        image_token=IMAGE_TOKEN,
        num_additional_image_tokens=int(HAS_CLASS_TOKEN[vision["model_type"]]),
        chat_template=processor.chat_template,
    )


def _strategy(tower: VisionTower) -> Literal["default", "full"]:
    has_class_token = HAS_CLASS_TOKEN[cast(dict[str, Any], tower.transformers)["model_type"]]
    return "default" if has_class_token and not tower.class_token else "full"


def _check_connector(connector: ConnectorConfig, model: VisionLanguageModel) -> None:
    if connector.name != "mlp" or connector.depth != 2:
        found = connector.name if connector.name != "mlp" else f"an mlp of depth {connector.depth}"
        raise refuse(NAME, "connector", found, "an mlp of depth 2")
    if connector.hidden_width not in (None, model.connector.width):
        raise refuse(
            NAME, "connector.hidden_width", connector.hidden_width, f"null or {model.connector.width}"
        )
    if connector.input_norm:
        raise refuse(NAME, "connector.input_norm", True, "a projector without a norm")


def _layer(layer: Any, depth: int, directory: Path) -> int:
    """Their choice of hidden states, of which the first are the embeddings, as one counted from the last block."""
    layers = layer if isinstance(layer, list | tuple) else [layer]
    counted = [number if number < 0 else number - depth - 1 for number in layers]
    if len(counted) != 1 or not -depth <= counted[0] <= -1:
        raise FlamingoError(
            f"vision_feature_layer in {directory / 'config.json'} is {layer}; expected one of the {depth} blocks: -1 for "
            f"the last to {-depth} for the first, or 1 to {depth}"
        )
    return counted[0]


LLAVA = Format(load_model, load_processor, export, model_type="llava")
