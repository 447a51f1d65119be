"""The two models that `training.py` compares, each in a process of its own that times steps whenever it is asked.

ours: this package's model as it trains. theirs: OpenFlamingo's own `Flamingo` with our weights under its names, and the
step of its `train_one_epoch`. Both see the same rows, labels and images.
Shape letters: b rows, t text positions, m images of a row.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peers import GATE, open_flamingo
from torch import Tensor, nn

from flamingo_lite.batch import IGNORED
from flamingo_lite.config import load_config
from flamingo_lite.models.build import build
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.models.policy import apply_policy
from flamingo_lite.training.optim import OptimizerConfig, build_optimizer
from flamingo_lite.training.precision import prepare
from flamingo_lite.training.settings import TrainerConfig
from flamingo_lite.training.trial import StepShape, autocast, step_inputs

CLIP = 1.0  # of both recipes

Step = Callable[[], float]
"""One optimizer step; returns its loss, and so waits for the device."""


def model_and_inputs(options: argparse.Namespace) -> tuple[VisionLanguageModel, dict[str, Tensor]]:
    """Our model in float32 with random weights, and one batch, both from the seed and on the CPU."""
    torch.manual_seed(0)
    config = load_config([*options.model, f"model.language.name={options.tokenizer}"]).model
    model = build(config)
    for block in model.blocks.values():
        nn.init.constant_(block.attention_gate, GATE)
        nn.init.constant_(block.feed_forward_gate, GATE)
    apply_policy(model, config.policy)
    inputs = step_inputs(model, StepShape(options.length, options.images), options.rows)
    is_text = inputs["input_ids"] != model.config.image_token_id
    words = torch.randint(0, model.config.first_new_token, inputs["input_ids"].shape)
    inputs["input_ids"] = torch.where(is_text, words, inputs["input_ids"])
    inputs["labels"] = inputs["input_ids"].masked_fill(~is_text, IGNORED)
    inputs["pixel_values"] = torch.randn(inputs["pixel_values"].shape)
    return model, inputs


def ours(options: argparse.Namespace) -> tuple[Callable[[], float], Step]:
    model, inputs = model_and_inputs(options)
    model.to(options.device)
    inputs = {name: value.to(options.device) for name, value in inputs.items()}
    model.train()
    exact = loss_of(lambda: model(**inputs).loss)
    made: list[Trainer] = []

    def step() -> float:
        # The precision is set at the first step, once the losses have been compared in float32.
        if not made:
            made.append(our_trainer(model, options.precision, options.device))
        return made[0].step(inputs)

    return exact, step


def theirs(options: argparse.Namespace) -> tuple[Callable[[], float], Step]:
    source, inputs = model_and_inputs(options)
    model, marks = open_flamingo(source)
    del source
    model.to(options.device)
    inputs = {name: value.to(options.device) for name, value in inputs.items()}
    arguments = {
        "vision_x": inputs["pixel_values"].unflatten(0, (options.rows, options.images)).unsqueeze(2),
        "lang_x": inputs["input_ids"],
        "attention_mask": inputs["attention_mask"].long(),
        "labels": inputs["labels"],
    }
    model.train()
    trainer = their_trainer(model, marks, options.precision, options.device)
    return loss_of(lambda: model(**arguments)[0]), lambda: trainer.step(arguments)


@dataclass(frozen=True)
class Trainer:
    """`step`: one optimizer step on the arguments of a forward pass, whose loss it returns; so it waits for the device."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    step: Callable[[Mapping[str, Any]], float]


def our_trainer(model: VisionLanguageModel, precision: str, device: str) -> Trainer:
    """As `flamingo-lite train` sets up precision and optimizer; what trains is decided already."""
    frozen = {"bf16-mixed": "bfloat16", "32-true": None}[precision]
    prepare(model, TrainerConfig(precision=precision, frozen_dtype=frozen))
    optimizer = build_optimizer(model, OptimizerConfig(), steps=10**6)[0]

    def step(inputs: Mapping[str, Any]) -> float:
        with autocast(precision, device):
            loss = model(**inputs).loss
        loss.backward()
        nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return Trainer(model, optimizer, step)


def their_trainer(model: Any, marks: list[int], precision: str, device: str) -> Trainer:
    """The weights stay float32 under autocast (--precision amp_bf16), and the whole embedding trains, its gradient set
    to 0 but for the new rows, `marks`: `train_utils.py`, `train.py`."""
    embedding = model.lang_encoder.get_input_embeddings().weight
    kept = torch.zeros(len(embedding), 1, device=device)
    kept[marks] = 1.0
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    decayed = [p for name, p in named if "gated_cross_attn" in name]
    others = [p for name, p in named if "gated_cross_attn" not in name]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-4)

    def step(arguments: Mapping[str, Any]) -> float:
        with autocast(precision, device):
            loss = model(**arguments)[0]
        loss.backward()
        embedding.grad = embedding.grad * kept
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return Trainer(model, optimizer, step)


def loss_of(forward: Callable[[], Tensor]) -> Callable[[], float]:
    def exact() -> float:
        with torch.no_grad():
            return forward().item()

    return exact


def forget_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: str) -> int:
    """Of the device since `forget_peak`; on the CPU of the whole process (where Linux tells, since then)."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return 1024 * int(line.split()[1])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("side", choices=("ours", "theirs"))
    parser.add_argument("--model", nargs="+", required=True, help="overrides that describe the model")
    parser.add_argument("--tokenizer", required=True, help="its directory")
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--length", type=int, required=True)
    parser.add_argument("--images", type=int, required=True)
    parser.add_argument("--precision", required=True)
    parser.add_argument("--device", required=True)
    options = parser.parse_args()
    exact, step = {"ours": ours, "theirs": theirs}[options.side](options)
    torch.backends.cuda.matmul.allow_tf32 = False
    say({"exact": exact(), "losses": [step() for _ in range(2)]})  # and so everything is warm
    forget_peak(options.device)
    for line in sys.stdin:
        started, worked = time.perf_counter(), time.process_time()
        for _ in range(int(line)):
            loss = step()
        seconds, work = time.perf_counter() - started, time.process_time() - worked
        say({"seconds": seconds, "work": work, "loss": loss, "peak": peak_bytes(options.device)})


def say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
