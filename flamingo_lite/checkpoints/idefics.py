"""IDEFICS as transformers keeps it (`IdeficsForVisionText2Text`), in and out: a CLIP whose tokens a resampler reads
(or none), and gated layers before every n-th layer of a Llama.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import (
    IdeficsConfig,
    IdeficsImageProcessor,
    IdeficsProcessor,
    LlamaConfig,
)

from flamingo_lite.checkpoints import parts
from flamingo_lite.checkpoints.foreign import Format, came_from, read_again, refuse
from flamingo_lite.checkpoints.keys import Join, Rename, Rule, put_weights, take_weights, under
from flamingo_lite.checkpoints.tensors import read_directory, write_directory
from flamingo_lite.document import IMAGE_TOKEN
from flamingo_lite.errors import FlamingoError
from flamingo_lite.image_transform import ImageTransform
from flamingo_lite.models.configuration import VisionLanguageConfig
from flamingo_lite.models.connector import ConnectorConfig
from flamingo_lite.models.fusion import FusionConfig
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.models.vision import VisionConfig, VisionTower, tower_to_dict, vision_tower
from flamingo_lite.processing import VisionLanguageProcessor
from flamingo_lite.text.template import Template

NAME = "idefics"
AROUND_IMAGES = "<fake_token_around_image>"
END_OF_UTTERANCE = "<end_of_utterance>"
"""Ends the turns of the instructed models; the others have no token at the end of a text."""

RESAMPLER_LAYER: tuple[Rule, ...] = (
    Rename("0.context_layer_norm.*", "attention.norm_media.*"),
    Rename("0.latents_layer_norm.*", "attention.norm_latents.*"),
    Rename("0.q_layer_norm.*", "attention.norm_query.*"),
    Rename("0.k_layer_norm.*", "attention.norm_key.*"),
    Rename("0.q_proj.weight", "attention.to_q.weight"),
    Join(("0.k_proj.weight", "0.v_proj.weight"), "attention.to_kv.weight"),
    Rename("0.output_proj.weight", "attention.to_out.weight"),
    Rename("1.ln.*", "feed_forward.norm.*"),
    Rename("1.fc.weight", "feed_forward.up.weight"),
    Rename("1.c_proj.weight", "feed_forward.down.weight"),
)
BLOCK: tuple[Rule, ...] = (
    Rename("input_layernorm.*", "attention.norm.*"),
    Rename("cross_attn.q_layer_norm.*", "attention.norm_query.*"),
    Rename("cross_attn.k_layer_norm.*", "attention.norm_key.*"),
    Rename("cross_attn.q_proj.weight", "attention.to_q.weight"),
    Join(("cross_attn.k_proj.weight", "cross_attn.v_proj.weight"), "attention.to_kv.weight"),
    Rename("cross_attn.o_proj.weight", "attention.to_out.weight"),
    Rename("post_attention_layernorm.*", "feed_forward.norm.*"),
    Rename("mlp.gate_proj.weight", "feed_forward.swish.weight"),
    Rename("mlp.up_proj.weight", "feed_forward.up.weight"),
    Rename("mlp.down_proj.weight", "feed_forward.down.weight"),
)
GATE_SHAPES = {"float": (1,), "vector": (1, 1, -1)}
"""Of `alpha_cross_attn` and `alpha_dense`, by `alpha_type`."""

GATES = {"float": "scalar", "vector": "vector"}
GATE_STARTS = {
    "zeros": (0.0, 0.0),
    "ones": (1.0, 0.0),
    "normal": (0.0, None),
    "gaussian": (0.0, None),
    "random": (0.0, None),
}
"""Mean and deviation of the gates at the start, by `alpha_initializer`; None is `alphas_initializer_range`."""

LANGUAGE: tuple[Rule, ...] = (
    Rename("model.layers.*", "language.model.layers.*"),
    Rename("model.norm.*", "language.model.norm.*"),
    Rename("model.embed_tokens.additional_embedding.weight", "language.model.embed_tokens.new_rows"),
    Rename("model.embed_tokens.weight", "language.model.embed_tokens.weight"),
    Rename("lm_head.additional_fc.weight", "language.lm_head.new_rows"),
    Rename("lm_head.weight", "language.lm_head.weight"),
)
UNREAD = (
    # Behind the tokens that the resampler reads.
    "model.vision_model.post_layernorm.*",
    # Tables that older files hold and the code computes.
    "model.vision_model.embeddings.position_ids",
    "*.rotary_emb.inv_freq",
)
TIED = ("lm_head.weight", "lm_head.additional_fc.weight")


def load_model(directory: Path) -> VisionLanguageModel:
    theirs = parts.read_config(directory, IdeficsConfig)
    config = configuration(theirs, directory)
    model = parts.empty_model(config, theirs.dtype, directory)
    unread = (*UNREAD, *TIED) if config.tie_word_embeddings else UNREAD
    put_weights(model, read_directory(directory), rules(model), str(directory), unread=unread)
    return model


def load_processor(directory: Path) -> VisionLanguageProcessor:
    config = configuration(parts.read_config(directory, IdeficsConfig), directory)
    tokenizer = parts.read_tokenizer(directory)
    parts.check_vocabulary(tokenizer, config, directory)
    known = tokenizer.get_vocab()
    if AROUND_IMAGES not in known:
        raise FlamingoError(
            f"the tokenizer in {directory} lacks the token {AROUND_IMAGES}; expected the tokenizer of an IDEFICS model"
        )
    template = Template(
        end_of_chunk=END_OF_UTTERANCE if END_OF_UTTERANCE in known else None, around_images=AROUND_IMAGES
    )
    return VisionLanguageProcessor(tokenizer, ImageTransform(**config.vision_tower["preprocess"]), template)


def configuration(theirs: Any, directory: Path) -> VisionLanguageConfig:
    """Our config of theirs. Raises FlamingoError, by field, for what their class or ours cannot run."""
    _check_readable(theirs, directory / "config.json")
    vision = VisionConfig(name=str(directory), layer=-1, class_token=True)
    mean, deviation = GATE_STARTS[theirs.alpha_initializer]
    return VisionLanguageConfig(
        text_config=_language_config(theirs),
        vision_tower=tower_to_dict(vision_tower(vision)),
        connector=_connector(theirs).complete(),
        fusion=FusionConfig(
            every=theirs.cross_layer_interval,
            place="start",
            heads=None,
            dim_head=None,
            gate=GATES[theirs.alpha_type],
            gate_mean=mean,
            gate_std=theirs.alphas_initializer_range if deviation is None else deviation,
            norm="rms",
            norm_eps=theirs.rms_norm_eps,
            qk_norm="rms" if theirs.qk_layer_norms else "none",
            feed_forward="swiglu",
            feed_forward_width=theirs.intermediate_size,
        ).complete(),
        sources=came_from(directory, NAME),
        image_token_id=_image_token_id(directory),
        first_new_token=theirs.vocab_size,
        new_tokens=theirs.additional_vocab_size,
    )


def rules(model: VisionLanguageModel) -> list[Rule]:
    """What transformers writes, and what it is called here."""
    config = model.config
    resampler = "model.perceiver_resampler."
    shape = next(GATE_SHAPES[theirs] for theirs, ours in GATES.items() if ours == model.fusion.gate)
    found: list[Rule] = [
        Rename(f"{resampler}latents", "connector.latents"),
        Rename(f"{resampler}layer_norm.*", "connector.norm.*"),
    ]
    for i in range(config.connector.get("depth", 0)):
        found += under(f"{resampler}blocks.{i}.", f"connector.layers.{i}.", RESAMPLER_LAYER)
    gates = (
        Rename("alpha_cross_attn", "attention_gate", shape),
        Rename("alpha_dense", "feed_forward_gate", shape),
    )
    for number, layer in enumerate(model.blocks):
        there, here = (
            f"model.gated_cross_attn_layers.{number}.",
            f"language.model.layers.{layer}.cross_attention.",
        )
        found += under(there, here, (*BLOCK, *gates))
    return [*found, *LANGUAGE, Rename("model.vision_model.*", f"{parts.vision_prefix(model)}*")]


def export(model: VisionLanguageModel, processor: VisionLanguageProcessor | None, directory: Path) -> None:
    """A directory that `IdeficsForVisionText2Text` loads. The encoder's last norm, which nothing reads, is that of the
    checkpoint that the model came from, or zeros where that is gone.
    """
    theirs = their_config(model)
    # Whether the processor can be expressed is known before anything is written.
    written = None if processor is None else their_processor(processor)
    state = take_weights(model, rules(model))
    unread = parts.unread_weights(VisionTower(**model.config.vision_tower))
    state |= read_again(model, {f"model.vision_model.{key}": value for key, value in unread.items()})
    theirs.save_pretrained(directory)
    model.generation_config.save_pretrained(directory)
    write_directory(state, directory)
    if written is not None:
        written.save_pretrained(directory)


IDEFICS = Format(load_model, load_processor, export, model_type="idefics")


def their_config(model: VisionLanguageModel) -> IdeficsConfig:
    """Their config of our model. Raises FlamingoError that names the field in the way."""
    config, text = model.config, model.config.language_config()
    _check_expressible(model, text)
    connector, fusion = ConnectorConfig(**config.connector), model.fusion
    starts = {0.0: "zeros", 1.0: "ones"}
    theirs = IdeficsConfig(
        vision_config=dict(config.vision_tower["transformers"]),
        vocab_size=config.base_vocab_size,
        additional_vocab_size=config.new_tokens,
        cross_layer_interval=fusion.every,
        qk_layer_norms=fusion.qk_norm == "rms",
        alpha_type=next(theirs for theirs, ours in GATES.items() if ours == fusion.gate),
        alpha_initializer=starts.get(fusion.gate_mean, "zeros") if fusion.gate_std == 0 else "normal",
        alphas_initializer_range=fusion.gate_std,
        **_their_resampler(connector),
        **{name: getattr(text, name) for name in SHARED},
    )
    theirs.architectures, theirs.dtype = ["IdeficsForVisionText2Text"], model.dtype
    return theirs


def their_processor(processor: VisionLanguageProcessor) -> IdeficsProcessor:
    transform = processor.image_transform
    square = len(set(transform.size)) == 1
    if transform.resize_mode != "squash" or transform.interpolation != "bicubic" or not square:
        raise FlamingoError(
            f"cannot export as {NAME}: images are prepared by resize_mode {transform.resize_mode!r}, interpolation "
            f"{transform.interpolation!r}, size {transform.size}, and the format has only squash, bicubic, squares"
        )
    images = IdeficsImageProcessor(
        image_size=transform.size[0], image_mean=list(transform.mean), image_std=list(transform.std)
    )
    return IdeficsProcessor(images, processor.tokenizer, image_size=transform.size[0])


SHARED = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act", "rms_norm_eps",
    "initializer_range", "max_position_embeddings", "rope_parameters", "pad_token_id", "bos_token_id",
    "eos_token_id", "tie_word_embeddings",
)  # fmt: skip
"""The fields of a Llama's config that theirs has under the same names."""


def _language_config(theirs: Any) -> LlamaConfig:
    # The IdeficsConfig of transformers 5.10 has no rope_parameters; its layers have a Llama's default base.
    shared = {name: getattr(theirs, name) for name in SHARED if hasattr(theirs, name)}
    return LlamaConfig(vocab_size=theirs.vocab_size, **shared)


def _connector(theirs: Any) -> ConnectorConfig:
    if not theirs.use_resampler:
        return ConnectorConfig(name="identity")
    resampler = theirs.perceiver_config
    return ConnectorConfig(
        name="perceiver",
        depth=resampler.resampler_depth,
        latents=resampler.resampler_n_latents,
        heads=resampler.resampler_n_heads,
        dim_head=resampler.resampler_head_dim,
        qk_norm=resampler.qk_layer_norms_perceiver,
        activation="relu",
    )


def _their_resampler(connector: ConnectorConfig) -> dict[str, Any]:
    if connector.name == "identity":
        return {"use_resampler": False}
    resampler = {
        "use_resampler": True,
        "resampler_depth": connector.depth,
        "resampler_n_latents": connector.latents,
        "resampler_n_heads": connector.heads,
        "resampler_head_dim": connector.dim_head,
        "qk_layer_norms_perceiver": connector.qk_norm,
    }
    return {"use_resampler": True, "perceiver_config": resampler}


def _image_token_id(directory: Path) -> int:
    """The id of `<image>`, which their config.json does not tell."""
    found = parts.read_tokenizer(directory).get_vocab().get(IMAGE_TOKEN)
    if found is None:
        raise FlamingoError(
            f"the tokenizer in {directory} lacks the token {IMAGE_TOKEN}; expected the tokenizer of an IDEFICS model"
        )
    return found


def _check_readable(theirs: Any, path: Path) -> None:
    depth, every = theirs.num_hidden_layers, theirs.cross_layer_interval
    rules = {
        "dropout": (theirs.dropout, 0),
        "hidden_act": (theirs.hidden_act, "silu"),
    }
    for name, (found, expected) in rules.items():
        if found != expected:
            raise FlamingoError(
                f"{name} in {path} is {found!r}; expected {expected!r}, the only one that is read"
            )
    for name, known in (("alpha_type", GATES), ("alpha_initializer", GATE_STARTS)):
        if getattr(theirs, name) not in known:
            raise FlamingoError(
                f"{name} in {path} is {getattr(theirs, name)!r}; expected {' or '.join(known)}"
            )
    if every < 1 or depth % every:
        raise FlamingoError(
            f"cross_layer_interval in {path} is {every}, which does not divide num_hidden_layers, {depth}: their class "
            "would look for a layer that is not there; expected a divisor"
        )


def _check_expressible(model: VisionLanguageModel, text: Any) -> None:
    config, fusion = model.config, model.fusion
    if text.model_type != "llama":
        raise refuse(NAME, "text_config.model_type", text.model_type, "'llama'")
    heads, width = text.num_attention_heads, text.hidden_size
    vision = config.vision_tower["transformers"] or {"model_type": "an encoder of open_clip"}
    connector = ConnectorConfig(**config.connector)
    inner = fusion.feed_forward_width or fusion.ff_mult * width
    allowed: dict[str, tuple[object, tuple[object, ...]]] = {
        "vision_tower.transformers.model_type": (vision["model_type"], ("idefics_vision",)),
        "vision_tower.layer": (config.vision_tower["layer"], (-1,)),
        "vision_tower.class_token": (config.vision_tower["class_token"], (True,)),
        "vision_tower.final_norm": (config.vision_tower["final_norm"], (False,)),
        "connector.name": (connector.name, ("perceiver", "identity")),
        "fusion.name": (fusion.name, ("cross_attention",)),
        "fusion.sees": (fusion.sees, ("immediate",)),
        "fusion.place": (fusion.place, ("start",)),
        "fusion.heads": (fusion.heads, (None, heads)),
        "fusion.dim_head": (fusion.dim_head, (None, width // heads)),
        "fusion.key_value_heads": (fusion.key_value_heads, (None, heads)),
        "fusion.norm": (fusion.norm, ("rms",)),
        "fusion.norm_eps": (fusion.norm_eps, (text.rms_norm_eps,)),
        "fusion.qk_norm": (fusion.qk_norm, ("none", "rms")),
        "fusion.feed_forward": (fusion.feed_forward, ("swiglu",)),
        "fusion.feed_forward_width": (inner, (text.intermediate_size,)),
        "text_config.num_key_value_heads": (text.num_key_value_heads, (heads,)),
        "text_config.head_dim": (text.head_dim, (width // heads,)),
        "text_config.hidden_act": (text.hidden_act, ("silu",)),
        "text_config.attention_bias": (text.attention_bias, (False,)),
        "text_config.mlp_bias": (text.mlp_bias, (False,)),
        "first_new_token": (config.first_new_token, (config.base_vocab_size,)),
    }
    if connector.name == "perceiver":
        allowed |= {
            "connector.width": (connector.width, (None, model.vision.width)),
            "connector.activation": (connector.activation, ("relu",)),
            "connector.ff_mult": (connector.ff_mult, (4,)),
        }
    for field, (found, expected) in allowed.items():
        if found not in expected:
            raise refuse(NAME, field, found, " or ".join(repr(value) for value in expected))
    if text.num_hidden_layers % fusion.every:
        raise refuse(NAME, "fusion.every", fusion.every, f"divisors of the {text.num_hidden_layers} layers")
