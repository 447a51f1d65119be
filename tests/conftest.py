"""Shared fixtures: backbones of random weights that cost milliseconds, in the directories' real layouts."""

from __future__ import annotations

import copy
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from flamingo_lite.document import Image
from flamingo_lite.models.build import build, build_processor
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.processing import VisionLanguageProcessor

torch.set_num_threads(1)

MEMORY = Path("/dev/shm")
ENOUGH = 4 * 2**30

VISION = {
    "embed_dim": 16,
    "vision_cfg": {
        "image_size": 16,
        "patch_size": 8,
        "width": 24,
        "layers": 2,
        "head_width": 12,
        "mlp_ratio": 2.0,
    },
    "text_cfg": {"context_length": 8, "vocab_size": 32, "width": 16, "heads": 2, "layers": 1},
}
PREPROCESS = {
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "interpolation": "bicubic",
    "resize_mode": "squash",
    "size": 16,
}


def pytest_configure(config: pytest.Config) -> None:
    """Puts temporary files into memory where there are 4 GiB for them, until the end: what is kept on a disk is synced to
    it file by file, and thousands of waits add up. `--basetemp` or PYTEST_DEBUG_TEMPROOT choose a place that stays.
    """
    chosen = hasattr(config, "workerinput") or config.option.basetemp or "PYTEST_DEBUG_TEMPROOT" in os.environ
    if chosen or not MEMORY.is_dir() or not os.access(MEMORY, os.W_OK):
        return
    if shutil.disk_usage(MEMORY).free >= ENOUGH:
        root = tempfile.mkdtemp(prefix="flamingo_lite-", dir=MEMORY)
        os.environ["PYTEST_DEBUG_TEMPROOT"] = root
        config.add_cleanup(lambda: shutil.rmtree(root, ignore_errors=True))


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Every byte a token, then the special ones that the packaged language model has; `<image>` is not among
    them.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: i for i, character in enumerate(alphabet)}
    for token in ("<|endoftext|>", "<|endofchunk|>", "<|pad|>"):
        vocabulary[token] = len(vocabulary)
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<|endoftext|>", "<|endofchunk|>", "<|pad|>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<|endoftext|>", eos_token="<|endoftext|>", pad_token="<|pad|>"
    )


def tiny_llama(**changes: Any) -> LlamaConfig:
    sizes: dict[str, Any] = {
        "vocab_size": 259, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 256,
        "tie_word_embeddings": True, "bos_token_id": 256, "eos_token_id": 256, "pad_token_id": 258,
    }  # fmt: skip
    return LlamaConfig(**{**sizes, **changes})


@pytest.fixture(scope="session")
def language_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random causal LM of two layers with its tokenizer."""
    directory = tmp_path_factory.mktemp("backbones") / "language"
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_llama())
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            # The stock 0.02 leaves logits so flat that a leak between positions would hide below the
            # tolerance.
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def vision_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random open_clip image encoder: 16 x 16 pixels, four patches of width 24."""
    import open_clip
    from safetensors.torch import save_file

    directory = tmp_path_factory.mktemp("backbones") / "clip"
    directory.mkdir()
    torch.manual_seed(1)
    clip = open_clip.CLIP(**VISION)
    save_file(
        {k: v.contiguous() for k, v in clip.state_dict().items()}, directory / "open_clip_model.safetensors"
    )
    (directory / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": VISION, "preprocess_cfg": PREPROCESS}), encoding="utf-8"
    )
    return directory


@pytest.fixture(scope="session")
def model_config(language_directory: Path, vision_directory: Path) -> dict[str, Any]:
    return {
        "vision": {"name": str(vision_directory)},
        "language": {"name": str(language_directory)},
        "connector": {"depth": 1, "latents": 3, "heads": 2, "dim_head": 8, "ff_mult": 2},
        "fusion": {"every": 1, "heads": 2, "dim_head": 8, "ff_mult": 2},
    }


@pytest.fixture(scope="session")
def set_gates() -> Callable[[VisionLanguageModel, float], VisionLanguageModel]:
    """Sets all gates; away from 0, images matter."""

    def to(model: VisionLanguageModel, value: float) -> VisionLanguageModel:
        with torch.no_grad():
            for block in model.blocks.values():
                block.attention_gate.fill_(value)
                block.feed_forward_gate.fill_(value)
        return model

    return to


@dataclass(frozen=True)
class Built:
    """A model of a configuration that stays the same, built once: each test gets a copy, and the generator of random
    numbers as building leaves it.
    """

    model: VisionLanguageModel
    random_state: torch.Tensor

    @classmethod
    def of(cls, config: dict[str, Any]) -> Built:
        torch.manual_seed(2)
        return cls(build(config).eval(), torch.get_rng_state())

    def copied(self) -> VisionLanguageModel:
        torch.set_rng_state(self.random_state)
        return copy.deepcopy(self.model)


@pytest.fixture(scope="session")
def built(model_config: dict[str, Any]) -> Built:
    return Built.of(model_config)


@pytest.fixture
def model(
    built: Built, set_gates: Callable[[VisionLanguageModel, float], VisionLanguageModel]
) -> VisionLanguageModel:
    """A model whose images matter, in evaluation mode."""
    return set_gates(built.copied(), 0.7)


@pytest.fixture(scope="session")
def processor(model_config: dict[str, Any]) -> VisionLanguageProcessor:
    return build_processor(model_config)


@pytest.fixture(scope="session")
def prefix_config(model_config: dict[str, Any]) -> dict[str, Any]:
    """The same parts under prefix fusion: three media tokens per image, as wide as the embeddings."""
    return {
        **model_config,
        "connector": {**model_config["connector"], "width": 32},
        "fusion": {"name": "prefix"},
    }


@pytest.fixture(scope="session")
def built_prefix(prefix_config: dict[str, Any]) -> Built:
    return Built.of(prefix_config)


@pytest.fixture
def prefix_model(built_prefix: Built) -> VisionLanguageModel:
    """A model under prefix fusion, in evaluation mode."""
    return built_prefix.copied()


@pytest.fixture(scope="session")
def prefix_processor(prefix_config: dict[str, Any]) -> VisionLanguageProcessor:
    return build_processor(prefix_config)


@pytest.fixture(params=["cross_attention", "prefix"])
def joined(request: pytest.FixtureRequest) -> tuple[VisionLanguageModel, VisionLanguageProcessor]:
    """A model in evaluation mode and its processor, under either fusion."""
    names = {"cross_attention": ("model", "processor"), "prefix": ("prefix_model", "prefix_processor")}
    model, processor = names[request.param]
    return request.getfixturevalue(model), request.getfixturevalue(processor)


@pytest.fixture(scope="session")
def image_of() -> Callable[[int], Image]:
    """Distinct small PNG images by number."""

    def make(number: int) -> Image:
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        PIL.Image.fromarray(pixels).save(buffer, format="PNG")
        return Image(buffer.getvalue(), words=f"image {number}")

    return make
