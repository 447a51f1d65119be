"""AdamW over the trainable parameters, with linear warmup and cosine decay in optimizer steps.

Schedule lengths come from the config alone: asking the trainer for its estimate builds the data loader too
early, and a restored loader state would be lost.
"""

import math
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import nn

from flamingo_lite.errors import FlamingoError

# Learned vectors that stand for something (queries, embeddings, positions) have no reason to shrink to 0.
UNDECAYED = ("latents", "new_rows", "embed", "position")


@dataclass
class OptimizerConfig:
    """AdamW and its schedule. `gate_factor` multiplies the learning rate of the tanh gates alone."""

    learning_rate: float = 1e-3
    final_fraction: float = 0.1
    warmup_steps: int = 50
    weight_decay: float = 0.05
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    epsilon: float = 1e-8
    gate_factor: float = 1.0
    gradient_clip: float = 1.0

    def __post_init__(self) -> None:
        for name in ("learning_rate", "epsilon", "gate_factor"):
            if not getattr(self, name) > 0:
                raise FlamingoError(f"optimizer.{name} is {getattr(self, name)}; expected a number above 0")
        for name in ("weight_decay", "warmup_steps", "gradient_clip"):
            if not getattr(self, name) >= 0:
                raise FlamingoError(f"optimizer.{name} is {getattr(self, name)}; expected 0 or more")
        if not 0 <= self.final_fraction <= 1:
            raise FlamingoError(f"optimizer.final_fraction is {self.final_fraction}; expected 0 to 1")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise FlamingoError(f"optimizer.betas is {list(self.betas)}; expected two numbers in [0, 1)")


def learning_rate_factor(step: int, steps: int, warmup_steps: int, final_fraction: float) -> float:
    """The share of the peak learning rate at `step` (0-based) of `steps`: linear up, then a half cosine.

    The first step is not wasted on a rate of 0, and the last one runs at `final_fraction`.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = min(1.0, (step - warmup_steps) / max(1, steps - 1 - warmup_steps))
    return final_fraction + (1 - final_fraction) * 0.5 * (1 + math.cos(math.pi * done))


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, object]]:
    """The trainable parameters in three groups: decayed matrices, undecayed rest, gates.

    Norms, biases and gates are vectors or scalars; latents and embedding rows are matrices and go by name.
    Errors: `FlamingoError` when nothing is trainable.
    """
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not trainable:
        raise FlamingoError(
            "no parameter is trainable under this policy; expected at least one: see model.policy"
        )
    gates = [p for name, p in trainable if _is_gate(name, p)]
    matrices = [p for name, p in trainable if not _is_gate(name, p) and _decays(name, p)]
    vectors = [p for name, p in trainable if not _is_gate(name, p) and not _decays(name, p)]
    rate = config.learning_rate
    groups: list[dict[str, object]] = [
        {"name": "matrices", "params": matrices, "lr": rate, "weight_decay": config.weight_decay},
        {"name": "vectors", "params": vectors, "lr": rate, "weight_decay": 0.0},
        {"name": "gates", "params": gates, "lr": rate * config.gate_factor, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(
    model: nn.Module, config: OptimizerConfig, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW over `parameter_groups` and its schedule, to be stepped once per optimizer step."""
    first, second = config.betas
    optimizer = torch.optim.AdamW(
        parameter_groups(model, config), lr=config.learning_rate, betas=(first, second), eps=config.epsilon
    )
    factor = partial(
        learning_rate_factor,
        steps=steps,
        warmup_steps=config.warmup_steps,
        final_fraction=config.final_fraction,
    )
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def _is_gate(name: str, parameter: nn.Parameter) -> bool:
    return "gate" in name.rsplit(".", 1)[-1] and parameter.ndim <= 1


def _decays(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim >= 2 and not any(word in name for word in UNDECAYED)
