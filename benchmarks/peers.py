"""The peers, each with the same weights as a model of ours: OpenFlamingo's with ours under its names, transformers' IDEFICS
and LLaVA with their own, from which ours is loaded.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    CLIPImageProcessor,
    CLIPVisionConfig,
    IdeficsConfig,
    IdeficsForVisionText2Text,
    IdeficsImageProcessor,
    IdeficsProcessor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from flamingo_lite.checkpoints.io import load_model
from flamingo_lite.checkpoints.keys import take_weights
from flamingo_lite.checkpoints.openflamingo import key_map
from flamingo_lite.models.build import build
from flamingo_lite.models.model import VisionLanguageModel

GATE = 0.5  # shut, the gates would hide a difference in what images do

LAYERS = {"mpt": "transformer.blocks", "gpt_neox": "gpt_neox.layers", "llama": "model.layers"}
"""Where their code finds the decoder layers of a language model."""


def open_flamingo(source: VisionLanguageModel) -> tuple[Any, list[int]]:
    """Their model with the weights of `source`, frozen as their factory does, and the ids of the new tokens."""
    import open_clip

    found = source.config
    size = found.first_new_token + found.new_tokens
    text = type(found.text_config)(**{**found.text_config.to_dict(), "vocab_size": size})
    language: Any = AutoModelForCausalLM.from_config(text, dtype=torch.float32)
    package("utils").extend_instance(language, package("flamingo_lm").FlamingoLMMixin)
    language.set_decoder_layers_attr_name(LAYERS[text.model_type])
    tower = found.vision_tower
    text_tower = {"context_length": 8, "vocab_size": 32, "width": 64, "heads": 1, "layers": 1}
    clip = open_clip.CLIP(
        tower["embed_dim"],
        vision_cfg=tower["vision_cfg"],
        text_cfg=text_tower,
        quick_gelu=tower["quick_gelu"],
    )
    clip.visual.output_tokens = True
    clip.visual.ln_post = nn.Identity()  # their releases of open_clip gave the tokens without it
    model = package("flamingo").Flamingo(
        clip, language, -1, found.image_token_id, vis_dim=tower["vision_cfg"]["width"],
        cross_attn_every_n_layers=found.fusion["every"],
    )  # fmt: skip
    put(model, take_weights(source, key_map(source)))
    model.requires_grad_(False)
    model.perceiver.requires_grad_(True)
    model.lang_encoder.gated_cross_attn_layers.requires_grad_(True)
    model.lang_encoder.get_input_embeddings().requires_grad_(True)
    return model, list(range(found.first_new_token, size))


def put(model: Any, weights: dict[str, Tensor]) -> None:
    """Every parameter that their forward reads, each from a weight of ours."""
    names = {name for name, _ in model.named_parameters()}
    repeated = ("lang_encoder.old_decoder_blocks.", "lang_encoder.gated_cross_attn_layers.")
    given = model.load_state_dict(weights, strict=False)
    again = {id(p) for name, p in model.named_parameters(remove_duplicate=False) if name in weights}
    left = [
        name for name, p in model.named_parameters(remove_duplicate=False)
        if id(p) not in again and name != "vision_encoder.proj" and not name.startswith(repeated)
    ]  # fmt: skip
    if left or given.unexpected_keys:
        raise SystemExit(
            f"weights that do not match: {left[:3]} of {len(names)}, {given.unexpected_keys[:3]}"
        )


def package(name: str) -> ModuleType:
    """A module of `open_flamingo/src`: the package itself imports what need not be installed."""
    found = importlib.util.find_spec("open_flamingo")
    if found is None or found.origin is None:
        raise SystemExit("open-flamingo is not installed; expected open-flamingo==2.0.1 (make setup)")
    if "open_flamingo_src" not in sys.modules:
        parent = ModuleType("open_flamingo_src")
        parent.__path__ = [str(Path(found.origin).parent / "src")]
        sys.modules["open_flamingo_src"] = parent
    return importlib.import_module(f"open_flamingo_src.{name}")


def write_tokenizer(directory: Path, words: int, special: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """A tokenizer of as many words as the language model has rows: no text is ever read, but new tokens follow it."""
    core = Tokenizer(WordLevel({f"w{number}": number for number in range(words)}, unk_token="w0"))
    made = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="w1", pad_token="w2")
    made.add_special_tokens({"additional_special_tokens": list(special)})
    made.save_pretrained(directory)
    return made


def build_ours(config: dict[str, Any]) -> VisionLanguageModel:
    """From the seed, with random weights and open gates; `language` needs no name."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder), config["language"]["config"]["vocab_size"])
        model = build({**config, "language": {**config["language"], "name": folder}})
    for block in model.blocks.values():
        nn.init.constant_(block.attention_gate, GATE)
        nn.init.constant_(block.feed_forward_gate, GATE)
    return model.eval().requires_grad_(False)


def bare_language(model: VisionLanguageModel) -> Any:
    """The language model alone, of the same size: the rows of new tokens are among the others."""
    found = model.config
    size = found.first_new_token + found.new_tokens
    text = type(found.text_config)(**{**found.text_config.to_dict(), "vocab_size": size})
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(text, dtype=torch.float32).eval().requires_grad_(False)


def idefics(text: dict[str, int], vision: dict[str, int]) -> tuple[Any, VisionLanguageModel]:
    """`IdeficsForVisionText2Text` with a layer that reads images before every layer, and ours with its weights."""
    torch.manual_seed(0)
    config = IdeficsConfig(
        **text, additional_vocab_size=2, qk_layer_norms=True, cross_layer_interval=1, use_resampler=True,
        alpha_initializer="ones", tie_word_embeddings=False, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        vision_config=vision,
        perceiver_config={"use_resampler": True, "resampler_n_latents": 64, "resampler_depth": 6,
                          "resampler_n_heads": 8, "resampler_head_dim": 64, "qk_layer_norms_perceiver": True},
    )  # fmt: skip
    theirs = IdeficsForVisionText2Text(config).eval().requires_grad_(False)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = write_tokenizer(Path(folder), config.vocab_size, ("<fake_token_around_image>", "<image>"))
        size = vision["image_size"]
        IdeficsProcessor(IdeficsImageProcessor(image_size=size), tokenizer, image_size=size).save_pretrained(
            folder
        )
        theirs.save_pretrained(folder)
        return theirs, load_model(folder).eval().requires_grad_(False)


def llava(text: dict[str, int], vision: dict[str, int]) -> tuple[Any, VisionLanguageModel]:
    """`LlavaForConditionalGeneration`, and ours with its weights. `<image>` is the last id."""
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**vision),
        text_config=LlamaConfig(**text, tie_word_embeddings=False, pad_token_id=0, bos_token_id=1, eos_token_id=2),
        image_token_index=text["vocab_size"] - 1, image_token_id=text["vocab_size"] - 1,
    )  # fmt: skip
    theirs = LlavaForConditionalGeneration(config).eval().requires_grad_(False)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = write_tokenizer(Path(folder), config.image_token_index, ("<image>",))
        square = {"height": vision["image_size"], "width": vision["image_size"]}
        images = CLIPImageProcessor(size={"shortest_edge": vision["image_size"]}, crop_size=square)
        LlavaProcessor(images, tokenizer, patch_size=vision["patch_size"]).save_pretrained(folder)
        theirs.save_pretrained(folder)
        return theirs, load_model(folder).eval().requires_grad_(False)
