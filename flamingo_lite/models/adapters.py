"""Low-rank adapters on the linear maps of a model (LoRA), over weights of four bits if wanted (QLoRA).

PEFT makes the adapters, bitsandbytes the four bits. What was put in is written into the model's config, so a saved
model is whole: it comes back with its adapters, to train on, and `merge_adapters` makes it a plain one.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from flamingo_lite.errors import FlamingoError
from flamingo_lite.models.parts import keep_weights

NAME = "default"
MARK = ".lora_"
BASE = ".base_layer"


@dataclass(frozen=True)
class Adapter:
    """B A x * alpha / rank beside W x, dropout on its x; `quantized`: W is held in four bits (nf4)."""

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    quantized: bool = False


def insert_adapters(model: nn.Module, wanted: Mapping[str, Adapter]) -> None:
    """Puts an adapter beside each of the linear maps named; one that is there already must be the one wanted.

    Weights of four bits are made by `quantize_adapted`, once there are weights. Raises FlamingoError where a library
    is missing, and for another adapter than the one that is there.
    """
    known = adapters_of(model)
    for name in wanted.keys() & known.keys():
        if wanted[name] != known[name]:
            raise FlamingoError(
                f"{name} has an adapter with {asdict(known[name])}, and the policy wants {asdict(wanted[name])}; give "
                "the same, or merge the model's adapters first (flamingo_lite.models.adapters.merge_adapters)"
            )
    new = {name: its for name, its in wanted.items() if not hasattr(model.get_submodule(name), "lora_A")}
    for adapter in dict.fromkeys(new.values()):
        _insert(model, [name for name, its in new.items() if its == adapter], adapter)
    if hasattr(model, "config"):
        config: Any = model.config
        config.adapters = _to_groups({**known, **new})


def adapters_of(model: nn.Module) -> dict[str, Adapter]:
    """The adapters by the names of the maps beside which they stand, as the model's config has them."""
    groups = getattr(getattr(model, "config", None), "adapters", None) or []
    return {
        name: Adapter(**{key: value for key, value in group.items() if key != "modules"})
        for group in groups
        for name in group["modules"]
    }


def quantize_adapted(model: nn.Module) -> None:
    """Weights beside adapters that want it become four bits; idempotent, and nothing on the meta device.

    To quantize what four bits were read back to gives the same four bits, so a saved model stays what it was.
    """
    for name, adapter in adapters_of(model).items():
        layer: Any = model.get_submodule(name)
        if (
            adapter.quantized
            and not _is_quantized(layer.base_layer)
            and layer.base_layer.weight.device.type != "meta"
        ):
            layer.base_layer = _in_four_bits(layer.base_layer)


def whole_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The state of a model in which weights of four bits are read back, under the keys of the plain weights."""
    state = model.state_dict()
    for name, layer in model.named_modules():
        if _is_quantized(layer):
            inside = [key for key in state if key.startswith(f"{name}.weight.")]
            for key in inside:
                del state[key]
            state[f"{name}.weight"] = _dequantized(layer)
    return state


def is_packed(module: nn.Module) -> bool:
    """Is it a linear layer whose weight is held in fewer bits, as bytes?"""
    weight = getattr(module, "weight", None)
    return hasattr(module, "in_features") and isinstance(weight, Tensor) and weight.dtype == torch.uint8


def packed_numbers(model: nn.Module) -> dict[str, int]:
    """How many numbers the packed weights stand for, by their names; as bytes there are fewer."""
    layers: Iterator[tuple[str, Any]] = (named for named in model.named_modules() if is_packed(named[1]))
    return {f"{name}.weight": layer.in_features * layer.out_features for name, layer in layers}


def has_quantized(model: nn.Module) -> bool:
    return any(adapter.quantized for adapter in adapters_of(model).values())


def merge_adapters(model: nn.Module) -> None:
    """Adds every adapter to the weight beside which it stands, in place, and leaves a plain model.

    Logits stay the same to rounding. The policy's entries for adapters go too.
    """
    for name in adapters_of(model):
        layer: Any = model.get_submodule(name)
        if _is_quantized(layer.base_layer):
            layer.base_layer = _plain(layer.base_layer)
        layer.merge()
        owner, _, last = name.rpartition(".")
        setattr(model.get_submodule(owner), last, layer.get_base_layer())
    if hasattr(model, "config"):
        config: Any = model.config
        config.adapters = []
        config.policy = {
            pattern: value
            for pattern, value in (config.policy or {}).items()
            if not (isinstance(value, Mapping) and value.get("mode") in ("lora", "qlora"))
            and value not in ("lora", "qlora")
        }


def adaptable(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The maps beside which an adapter has its effect, with their names, those that have one already among them.

    Not the head, which computes the columns of new tokens itself, nor what torch's own attention holds: it reads
    weights without calling their layers.
    """
    from transformers.pytorch_utils import Conv1D

    head = getattr(model, "get_output_embeddings", lambda: None)()
    inside = {
        id(part) for m in model.modules() if isinstance(m, nn.MultiheadAttention) for part in m.modules()
    }
    known = adapters_of(model)
    for name, module in model.named_modules():
        is_inside = id(module) in inside or any(name.startswith(f"{adapted}.") for adapted in known)
        is_plain = isinstance(module, nn.Linear | Conv1D) and module is not head and not is_inside
        if name in known or is_plain:
            yield name, module


def _insert(model: nn.Module, names: list[str], adapter: Adapter) -> None:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise FlamingoError(
            "the policy has adapters, and peft is not installed; install flamingo_lite[lora]"
        ) from error
    trains = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    config = LoraConfig(
        r=adapter.rank,
        lora_alpha=cast(int, adapter.alpha),
        lora_dropout=adapter.dropout,
        target_modules=names,
    )
    with warnings.catch_warnings():
        # It warns of GPT-2's transposed weights, which it sees and handles.
        warnings.simplefilter("ignore")
        inject_adapter_in_model(config, model, adapter_name=NAME)
    # It sets `requires_grad` of the whole model, and leaves its config on it: both are the policy's.
    del model.peft_config
    for name, parameter in model.named_parameters():
        plain = name.replace(BASE, "")
        parameter.requires_grad_(trains.get(plain, MARK in name))
    for name in names:
        keep_weights(model.get_submodule(name))


def _to_groups(adapters: Mapping[str, Adapter]) -> list[dict[str, Any]]:
    return [
        {"modules": sorted(name for name, its in adapters.items() if its == adapter), **asdict(adapter)}
        for adapter in dict.fromkeys(adapters.values())
    ]


def _bitsandbytes() -> Any:
    try:
        import bitsandbytes
    except ImportError as error:
        raise FlamingoError(
            "the policy has weights of four bits, and bitsandbytes is not installed; install flamingo_lite[quantized]"
        ) from error
    return bitsandbytes


def _is_quantized(layer: nn.Module) -> bool:
    return type(layer).__name__ == "Linear4bit"


def _in_four_bits(layer: nn.Linear) -> nn.Module:
    library = _bitsandbytes()
    # Scales are not quantized in their turn: four bits would not come back as the same four bits.
    options = {"compress_statistics": False, "quant_type": "nf4"}
    made = library.nn.Linear4bit(
        layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta", **options
    )
    weight = layer.weight.detach()
    made.weight = library.nn.Params4bit(weight, requires_grad=False, module=made, **options)
    made.bias = layer.bias
    # Where the CPU has bfloat16, evaluation would round the scales for good: other logits, and a frozen weight changed.
    made.support_avx512bf16_for_cpu = False
    return made.to(weight.device)


def _dequantized(layer: Any) -> Tensor:
    return _bitsandbytes().functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)


def _plain(layer: Any) -> nn.Linear:
    plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
    plain.weight, plain.bias = nn.Parameter(_dequantized(layer), requires_grad=False), layer.bias
    return plain
