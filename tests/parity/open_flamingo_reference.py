"""OpenFlamingo's own model on tiny random parts, and the directories and checkpoints that belong to it."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    GPTNeoXConfig,
    LlamaConfig,
    MptConfig,
    OPTConfig,
    PretrainedConfig,
)

from flamingo_lite.batch import Batch
from tests.conftest import PREPROCESS, byte_tokenizer

WORDS = 259
"""The vocabulary of `byte_tokenizer`, in which `<image>` is new."""


def llama(width: int, depth: int, heads: int) -> PretrainedConfig:
    return LlamaConfig(
        vocab_size=WORDS, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=depth,
        num_attention_heads=heads, max_position_embeddings=128,
    )  # fmt: skip


def opt(width: int, depth: int, heads: int) -> PretrainedConfig:
    return OPTConfig(
        # Padded beyond the tokenizer, as the released ones are.
        vocab_size=WORDS + 5, hidden_size=width, word_embed_proj_dim=width, ffn_dim=2 * width,
        num_hidden_layers=depth, num_attention_heads=heads, max_position_embeddings=128, dropout=0.0,
    )  # fmt: skip


def gpt_neox(width: int, depth: int, heads: int) -> PretrainedConfig:
    return GPTNeoXConfig(
        vocab_size=WORDS + 5, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=depth,
        num_attention_heads=heads, max_position_embeddings=128,
    )  # fmt: skip


def mpt(width: int, depth: int, heads: int) -> PretrainedConfig:
    return MptConfig(
        vocab_size=WORDS, d_model=width, n_layers=depth, n_heads=heads, expansion_ratio=2, max_seq_len=128
    )


FAMILIES = {"llama": llama, "opt": opt, "gpt_neox": gpt_neox, "mpt": mpt}
LAYERS = {
    "llama": "model.layers", "opt": "model.decoder.layers", "gpt_neox": "gpt_neox.layers",
    "mpt": "transformer.blocks",
}  # fmt: skip


@dataclass
class Case:
    """One random configuration. `heads`, `latents`, `resampler_depth`: None takes the class's own default."""

    family: str = "llama"
    width: int = 32
    depth: int = 2
    heads: int = 2
    every: int = 1
    vision_width: int = 24
    final_norm: bool = False
    latents: int | None = None
    resampler_depth: int | None = None
    resampler_heads: int | None = None
    seed: int = 0


def source(name: str) -> ModuleType:
    """A module of `open_flamingo/src`: the package itself imports what need not be installed here."""
    package = importlib.util.find_spec("open_flamingo")
    if package is None or package.origin is None or importlib.util.find_spec("einops_exts") is None:
        pytest.skip("open-flamingo 2.0.1 and einops-exts are not installed")
    if "open_flamingo_src" not in sys.modules:
        parent = ModuleType("open_flamingo_src")
        parent.__path__ = [str(Path(package.origin).parent / "src")]
        sys.modules["open_flamingo_src"] = parent
    return importlib.import_module(f"open_flamingo_src.{name}")


def make_parts(case: Case, directory: Path) -> None:
    """The vision encoder in `clip`, the language model and its tokenizer in `language`, and openflamingo.json."""
    import open_clip

    torch.manual_seed(case.seed)
    vision = {
        "embed_dim": 16,
        "vision_cfg": {
            "image_size": 16, "patch_size": 8, "width": case.vision_width, "layers": 2,
            "head_width": case.vision_width // 2, "mlp_ratio": 2.0,
        },
        "text_cfg": {"context_length": 8, "vocab_size": 32, "width": 16, "heads": 2, "layers": 1},
    }  # fmt: skip
    (directory / "clip").mkdir()
    clip = open_clip.CLIP(**vision)
    randomise(clip)
    tensors = {key: value.contiguous() for key, value in clip.state_dict().items()}
    save_file(tensors, directory / "clip" / "open_clip_model.safetensors")
    written = json.dumps({"model_cfg": vision, "preprocess_cfg": PREPROCESS})
    (directory / "clip" / "open_clip_config.json").write_text(written, encoding="utf-8")
    language = AutoModelForCausalLM.from_config(FAMILIES[case.family](case.width, case.depth, case.heads))
    randomise(language)
    language.save_pretrained(directory / "language")
    byte_tokenizer().save_pretrained(directory / "language")
    parts = {
        "clip_vision_encoder_path": "clip",
        "lang_encoder_path": "language",
        "cross_attn_every_n_layers": case.every,
        "final_norm": case.final_norm,
    }
    (directory / "openflamingo.json").write_text(json.dumps(parts), encoding="utf-8")


def reference(case: Case, directory: Path, randomised: bool = True) -> Any:
    """Their `Flamingo` on the parts in `directory`, put together as their factory does."""
    import open_clip
    from safetensors.torch import load_file

    torch.manual_seed(case.seed + 1)
    config = json.loads((directory / "clip" / "open_clip_config.json").read_text())["model_cfg"]
    clip = open_clip.CLIP(**config)
    clip.load_state_dict(load_file(directory / "clip" / "open_clip_model.safetensors"))
    clip.visual.output_tokens = True
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|endofchunk|>", "<image>"]})
    language: Any = AutoModelForCausalLM.from_pretrained(directory / "language")
    source("utils").extend_instance(language, source("flamingo_lm").FlamingoLMMixin)
    language.set_decoder_layers_attr_name(LAYERS[case.family])
    language.resize_token_embeddings(len(tokenizer))
    eoc, image = tokenizer.convert_tokens_to_ids(["<|endofchunk|>", "<image>"])
    model = source("flamingo").Flamingo(
        clip, language, eoc, image, vis_dim=case.vision_width, cross_attn_every_n_layers=case.every
    )
    if not case.final_norm:
        model.vision_encoder = TokensBeforeTheNorm(clip.visual)
    if case.latents or case.resampler_depth or case.resampler_heads:
        model.perceiver = source("helpers").PerceiverResampler(
            dim=case.vision_width,
            depth=case.resampler_depth or 6,
            heads=case.resampler_heads or 8,
            num_latents=case.latents or 64,
        )
    if randomised:
        randomise(model.perceiver)
        randomise(model.lang_encoder.gated_cross_attn_layers)
        randomise(model.lang_encoder.get_input_embeddings())
        model.requires_grad_(False)
    return model.eval()


class TokensBeforeTheNorm(nn.Module):
    """What an image tower of open_clip <= 2.20 returns: the pooled feature, and the tokens before `ln_post`."""

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = [visual]  # in a list, its weights stay out of the state dict

    def forward(self, pixels: Tensor) -> tuple[None, Tensor]:
        found: Any = self.visual[0]
        tokens = found.forward_intermediates(
            pixels, indices=1, normalize_intermediates=False, intermediates_only=True, output_fmt="NLC"
        )
        return None, tokens["image_intermediates"][-1]


def randomise(module: nn.Module) -> None:
    # Stock norms are 1 and 0, gates 0, and stock weights so small that a leak would hide below the tolerance.
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


def published(model: Any) -> dict[str, Tensor]:
    """What their training leaves of the state dict for a checkpoint: what it trains, embeddings, and tied heads.

    GPT-NeoX's head is among the embeddings, by the name that it had.
    """
    language = model.lang_encoder
    state = {
        key.replace("lang_encoder.lm_head.", head_name(language)): v for key, v in model.state_dict().items()
    }
    frozen = {
        name.replace("lang_encoder.lm_head.", head_name(language))
        for name, parameter in model.named_parameters()
        if ".gated_cross_attn_layer." not in name
        and not name.startswith("perceiver.")
        and parameter is not language.get_input_embeddings().weight
    }
    repeated = ("lang_encoder.old_decoder_blocks", "lang_encoder.gated_cross_attn_layers", "vision_encoder")
    return {
        key: value
        for key, value in state.items()
        if (key not in frozen or "embed" in key) and not key.startswith(repeated)
    }


def head_name(language: Any) -> str:
    return "lang_encoder.embed_out." if language.config.model_type == "gpt_neox" else "lang_encoder.lm_head."


def their_inputs(batch: Batch) -> dict[str, Tensor]:
    """A batch as their forward takes it: (b T 1 c h w) images, every row padded to the most images of a row."""
    counts = [len({i for i in row.tolist() if i >= 0}) for row in batch.media_index]
    size = batch.pixel_values.shape[1:]
    vision_x = torch.zeros(len(counts), max(1, *counts), 1, *size)
    start = 0
    for row, count in enumerate(counts):
        vision_x[row, :count, 0] = batch.pixel_values[start : start + count]
        start += count
    return {"vision_x": vision_x, "lang_x": batch.input_ids, "attention_mask": batch.attention_mask.long()}
