"""from_pretrained with a device map, a dtype, a quantization config, in shards; and the Auto classes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import infer_auto_device_map
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    BitsAndBytesConfig,
)
from transformers.quantizers.quantizers_utils import should_convert_module
from transformers.utils import is_bitsandbytes_available

import flamingo_lite as fl
from flamingo_lite.batch import Batch
from flamingo_lite.document import Document, Image
from flamingo_lite.errors import FlamingoError
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.models.parts import without_the_join
from flamingo_lite.models.vision import VisionEncoder, VisionTower, tower_to_dict
from flamingo_lite.processing import VisionLanguageProcessor

Joined = tuple[VisionLanguageModel, VisionLanguageProcessor]


@pytest.fixture
def directory(joined: Joined, tmp_path: Path) -> Path:
    return fl.save(*joined, tmp_path / "model")


@pytest.fixture
def batch(joined: Joined, image_of: Callable[[int], Image]) -> Batch:
    documents = [Document([image_of(0), "ab", image_of(1)]), Document(["no image"])]
    batch = joined[1](documents)
    assert isinstance(batch, Batch)
    return batch


def logits(model: Any, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**batch).logits


@pytest.mark.parametrize("auto", [AutoModelForImageTextToText, AutoModelForCausalLM, AutoModel])
def test_the_auto_classes_load_the_same_model(
    auto: Any, joined: Joined, directory: Path, batch: Batch
) -> None:
    loaded = auto.from_pretrained(directory)
    assert type(loaded) is VisionLanguageModel
    assert torch.equal(logits(loaded, batch), logits(joined[0], batch))


def test_the_auto_classes_load_the_same_processor_and_config(
    joined: Joined, directory: Path, batch: Batch, image_of: Callable[[int], Image]
) -> None:
    loaded = AutoProcessor.from_pretrained(directory)
    assert type(loaded) is VisionLanguageProcessor
    again = loaded([Document([image_of(0), "ab", image_of(1)]), Document(["no image"])])
    assert all(torch.equal(again[name], batch[name]) for name in list(batch.keys()))
    assert AutoConfig.from_pretrained(directory).to_dict() == {
        **joined[0].config.to_dict(),
        "_name_or_path": str(directory),
    }


def test_the_auto_classes_know_us_when_transformers_is_imported_later(
    model: VisionLanguageModel, processor: VisionLanguageProcessor, tmp_path: Path
) -> None:
    # The other order is that of every other test here.
    fl.save(model, processor, tmp_path / "model")
    code = (
        "import flamingo_lite; from transformers import AutoProcessor, AutoModelForImageTextToText; "
        "print(type(AutoProcessor.from_pretrained('model')).__name__, "
        "type(AutoModelForImageTextToText.from_pretrained('model')).__name__)"
    )
    environment = {"PYTHONPATH": str(Path(fl.__file__).parent.parent)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["VisionLanguageProcessor", "VisionLanguageModel"]


@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}])
def test_a_device_map_changes_no_logit(
    joined: Joined, directory: Path, batch: Batch, device_map: Any
) -> None:
    loaded = AutoModelForImageTextToText.from_pretrained(directory, device_map=device_map)
    assert torch.equal(logits(loaded, batch), logits(joined[0], batch))


def test_a_layer_and_its_block_may_lie_on_disk(
    joined: Joined, directory: Path, batch: Batch, tmp_path: Path
) -> None:
    names = [name for name, _ in joined[0].named_children() if name != "language"]
    names += [f"language.model.{part}" for part in ("embed_tokens", "norm", "rotary_emb", "layers.0")]
    device_map = {**dict.fromkeys([*names, "language.lm_head"], "cpu"), "language.model.layers.1": "disk"}
    loaded = AutoModelForImageTextToText.from_pretrained(
        directory, device_map=device_map, offload_folder=str(tmp_path / "offload")
    )
    away = [name for name, p in loaded.named_parameters() if p.device.type == "meta"]
    assert away and all(name.startswith("language.model.layers.1.") for name in away)
    assert torch.equal(logits(loaded, batch), logits(joined[0], batch))
    options = {"max_new_tokens": 3, "do_sample": False}
    assert torch.equal(loaded.generate(**batch, **options), joined[0].generate(**batch, **options))


@pytest.mark.parametrize("share", [0.2, 0.4, 0.6, 0.8])
def test_an_automatic_map_cuts_no_layer_block_encoder_or_connector(joined: Joined, share: float) -> None:
    model = joined[0]
    room = int(share * sum(4 * p.numel() for p in model.parameters()))
    placed = infer_auto_device_map(
        model, max_memory={0: room, "cpu": 10**9}, no_split_module_classes=list(model._no_split_modules)
    )
    whole = [f"language.model.layers.{i}" for i in range(2)] + ["vision", "connector"]
    for name in placed:
        assert not any(name.startswith(f"{part}.") for part in whole), name


def test_shards_are_put_together(joined: Joined, batch: Batch, tmp_path: Path) -> None:
    joined[0].save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path, device_map="auto")
    expected = dict(joined[0].named_parameters())
    assert all(torch.equal(parameter, expected[name]) for name, parameter in loaded.named_parameters())
    torch.testing.assert_close(logits(loaded, batch), logits(joined[0], batch), atol=1e-5, rtol=1e-5)


def test_bfloat16_is_asked_for_saved_and_found_again(
    joined: Joined, directory: Path, batch: Batch, tmp_path: Path
) -> None:
    loaded = AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.bfloat16)
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    found = logits(loaded, batch)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), logits(joined[0], batch), atol=0.3, rtol=0.05)
    loaded.save_pretrained(tmp_path / "half")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "half")
    assert torch.equal(logits(again, batch), found)
    wide = AutoModelForImageTextToText.from_pretrained(tmp_path / "half", dtype=torch.float32)
    assert {p.dtype for p in wide.parameters()} == {torch.float32}


def test_buffers_that_no_file_holds_are_computed_again(model: VisionLanguageModel, tmp_path: Path) -> None:
    # EVA's rotary tables are such buffers; by way of the meta device they come out as whatever memory held.
    tower = VisionTower(
        embed_dim=16, vision_cfg={"timm_model_name": "eva02_tiny_patch14_224", "image_size": 224}
    )
    config = model.config
    config.vision_tower, config.sources = tower_to_dict(tower), {}
    torch.manual_seed(0)
    saved = VisionLanguageModel(config, vision=VisionEncoder(tower))
    saved.save_pretrained(tmp_path)
    loaded = VisionLanguageModel.from_pretrained(tmp_path)
    expected = dict(saved.vision.named_buffers())
    assert any("rope" in name for name in expected)
    assert all(torch.equal(buffer, expected[name]) for name, buffer in loaded.vision.named_buffers())


def test_neither_the_join_nor_the_encoder_nor_the_head_is_quantized(joined: Joined) -> None:
    patterns = without_the_join(BitsAndBytesConfig(load_in_4bit=True)).llm_int8_skip_modules
    linear = [name for name, module in joined[0].named_modules() if isinstance(module, torch.nn.Linear)]
    quantized = {name for name in linear if should_convert_module(name, patterns)}
    layers = (".self_attn.", ".layers.0.mlp.", ".layers.1.mlp.")
    assert quantized == {n for n in linear if n.startswith("language.") and any(part in n for part in layers)}
    assert len(quantized) == 2 * 7
    own = BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=["lm_head"])
    assert without_the_join(own) is own


def test_quantized_weights_without_their_library_are_one_line(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # transformers asks once whether it is there, and remembers.
    is_bitsandbytes_available.cache_clear()
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    try:
        with pytest.raises(FlamingoError, match=r"cannot load .*bitsandbytes.*flamingo_lite\[quantized\]"):
            AutoModelForImageTextToText.from_pretrained(
                directory, quantization_config=BitsAndBytesConfig(load_in_4bit=True)
            )
    finally:
        is_bitsandbytes_available.cache_clear()


def test_four_bits_give_the_logits_of_the_weights_that_they_read_back_to(
    directory: Path, batch: Batch
) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    loaded = AutoModelForImageTextToText.from_pretrained(
        directory, quantization_config=config, device_map={"": device}
    )
    quantized = {name: m for name, m in loaded.named_modules() if isinstance(m, Linear4bit)}
    assert quantized and all(".layers." in name and ".cross_attention." not in name for name in quantized)
    plain = fl.load_model(directory)
    for name, layer in quantized.items():
        layer.support_avx512bf16_for_cpu = False  # some CPUs have a kernel of their own, for widths from 64
        read_back = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        plain.get_submodule(name).weight.data = read_back.float().cpu()
    torch.testing.assert_close(
        logits(loaded, batch.to(device)).cpu(), logits(plain, batch), atol=1e-4, rtol=1e-3
    )
