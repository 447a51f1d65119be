"""Tiny checkpoints of other people's models, made with transformers' own classes and random weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CLIPVisionConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

from tests.checkpoints.references import image_processor, randomised, tokenizer

TURNS = (
    "{% for m in messages %}{{ m['role'] | upper }}: {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}MARK{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "{% if m['role'] == 'assistant' %}</s>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
"""A chat template that keeps images where they stand. MARK: what stands for an image."""

TEXT = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip


def llava(directory: Path, chats: bool = True, **text: Any) -> Path:
    """LLaVA: a token for each of nine patches."""
    words = tokenizer("<image>")
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=12, patch_size=4,
        projection_dim=16,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(**{**TEXT, "vocab_size": len(words), **text}),
        image_token_index=len(words) - 1,
    )
    torch.manual_seed(0)
    randomised(LlavaForConditionalGeneration(config), 1).save_pretrained(directory)
    LlavaProcessor(
        image_processor(12), words, patch_size=4, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=TURNS.replace("MARK", "<image>") if chats else None,
    ).save_pretrained(directory)  # fmt: skip
    return directory


def idefics3(directory: Path) -> Path:
    """Idefics3 and SmolVLM: four tokens an image, set off by tokens of their own."""
    marks = ("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>")
    words = tokenizer(*marks)
    config = Idefics3Config(
        vision_config={
            "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16,
            "patch_size": 4,
        },
        text_config={"model_type": "llama", **TEXT, "vocab_size": len(words)},
        scale_factor=2,
        image_token_id=words.convert_tokens_to_ids("<image>"),
        pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    randomised(Idefics3ForConditionalGeneration(config), 1).save_pretrained(directory)
    images = Idefics3ImageProcessor(
        do_image_splitting=False, size={"longest_edge": 16}, max_image_size={"longest_edge": 16}
    )
    chat = TURNS.replace("MARK", "<image>").replace("</s>", "<end_of_utterance>")
    Idefics3Processor(images, words, image_seq_len=4, chat_template=chat).save_pretrained(directory)
    return directory


def qwen2_vl(directory: Path) -> Path:
    """Qwen2-VL: images in any size, positions in three dimensions, tokens around each image."""
    marks = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    words = tokenizer(*marks)
    ids = {name: words.convert_tokens_to_ids(mark) for name, mark in zip(
        ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id"), marks, strict=True
    )}  # fmt: skip
    config = Qwen2VLConfig(
        text_config={
            **TEXT, "vocab_size": len(words),
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4},
        },
        vision_config={
            "depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4,
            "spatial_merge_size": 2, "temporal_patch_size": 2,
        },
        **ids,
    )  # fmt: skip
    torch.manual_seed(0)
    randomised(Qwen2VLForConditionalGeneration(config), 1).save_pretrained(directory)
    sizes: dict[str, Any] = {"min_pixels": 256, "max_pixels": 1024, "patch_size": 4, "merge_size": 2}
    chat = TURNS.replace("MARK", "<|vision_start|><|image_pad|><|vision_end|>")
    Qwen2VLProcessor(
        Qwen2VLImageProcessor(**sizes), words, Qwen2VLVideoProcessor(**sizes), chat_template=chat
    ).save_pretrained(directory)
    return directory


PEERS: dict[str, Callable[[Path], Path]] = {"llava": llava, "idefics3": idefics3, "qwen2_vl": qwen2_vl}
