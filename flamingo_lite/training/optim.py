"""AdamW over the trainable parameters, or Muon for their matrices, with linear warmup and cosine or linear decay in
optimizer steps.

Schedule lengths come from the config alone: asking the trainer for its estimate builds the data loader too
early, and a restored loader state would be lost.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from flamingo_lite.errors import FlamingoError
from flamingo_lite.models.policy import decide
from flamingo_lite.names import check_choice
from flamingo_lite.training.muon import Muon

# Learned vectors that stand for something (queries, embeddings, positions) have no reason to shrink to 0.
UNDECAYED = ("latents", "new_rows", "embed", "position")

# Words go in and out there one row at a time, which Muon would mix. Kernels of convolutions are no matrices to it.
WORDS = ("embed", "lm_head")

DECAYS = ("cosine", "linear")
MUON = "matrices by Muon"
KINDS = (MUON, "matrices", "vectors", "gates")


@dataclass
class OptimizerConfig:
    """AdamW and its schedule. `gate_factor` multiplies the learning rate of the tanh gates alone. `muon_factor`: matrices,
    the embeddings and the head excepted, are trained by Muon, at so many times the learning rate; null: by AdamW.

    After `warmup_steps`, or `warmup_fraction` of all steps in place of them, the rate falls by `decay` ("cosine" or
    "linear") to `final_fraction` of its peak, and stays constant where that is 1.
    """

    learning_rate: float = 1e-3
    final_fraction: float = 0.1
    decay: str = "cosine"
    warmup_steps: int = 50
    warmup_fraction: float | None = None
    weight_decay: float = 0.05
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    epsilon: float = 1e-8
    gate_factor: float = 1.0
    muon_factor: float | None = None
    gradient_clip: float = 1.0

    def __post_init__(self) -> None:
        check_choice("value of optimizer.decay:", self.decay, DECAYS)
        for name in ("learning_rate", "epsilon", "gate_factor", "muon_factor"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise FlamingoError(f"optimizer.{name} is {getattr(self, name)}; expected a number above 0")
        for name in ("weight_decay", "warmup_steps", "gradient_clip"):
            if not getattr(self, name) >= 0:
                raise FlamingoError(f"optimizer.{name} is {getattr(self, name)}; expected 0 or more")
        if self.warmup_fraction is not None and not 0 <= self.warmup_fraction <= 1:
            raise FlamingoError(
                f"optimizer.warmup_fraction is {self.warmup_fraction}; expected 0 to 1, or null for warmup_steps"
            )
        if not 0 <= self.final_fraction <= 1:
            raise FlamingoError(f"optimizer.final_fraction is {self.final_fraction}; expected 0 to 1")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise FlamingoError(f"optimizer.betas is {list(self.betas)}; expected two numbers in [0, 1)")

    def warmup(self, steps: int) -> int:
        """The steps of the warm-up, of `steps` in all; a fraction is rounded up."""
        return self.warmup_steps if self.warmup_fraction is None else math.ceil(steps * self.warmup_fraction)


def learning_rate_factor(
    step: int, steps: int, warmup_steps: int, final_fraction: float, decay: str = "cosine"
) -> float:
    """The share of the peak learning rate at `step` (0-based) of `steps`: linear up, then a half cosine or a line.

    The first step is not wasted on a rate of 0, and the last one runs at `final_fraction`.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = min(1.0, (step - warmup_steps) / max(1, steps - 1 - warmup_steps))
    left = 1 - done if decay == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return final_fraction + (1 - final_fraction) * left


def parameter_groups(
    model: nn.Module, config: OptimizerConfig, policy: Mapping[str, Any] | None = None
) -> list[dict[str, object]]:
    """The trainable parameters in groups: decayed matrices, undecayed rest, gates, and these again for each entry of
    the policy that has a learning rate or a weight decay of its own.

    Norms, biases and gates are vectors or scalars; latents and embedding rows are matrices and go by name.
    Errors: `FlamingoError` when nothing is trainable.
    """
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not trainable:
        raise FlamingoError(
            "no parameter is trainable under this policy; expected at least one: see model.policy"
        )
    decisions = decide(model, policy) if policy else {}
    groups: dict[tuple[str, str], dict[str, Any]] = {}
    for name, parameter in trainable:
        kind = "gates" if _is_gate(name, parameter) else "matrices" if _decays(name, parameter) else "vectors"
        decision = decisions.get(name)
        rate, decay, owner = config.learning_rate, config.weight_decay, ""
        if decision is not None and (decision.entry.learning_rate, decision.entry.weight_decay) != (
            None,
            None,
        ):
            owner = f"{decision.pattern} "
            rate = rate if decision.entry.learning_rate is None else decision.entry.learning_rate
            decay = decay if decision.entry.weight_decay is None else decision.entry.weight_decay
        rate *= config.gate_factor if kind == "gates" else 1.0
        group = {"params": [], "lr": rate, "weight_decay": decay if kind == "matrices" else 0.0}
        if config.muon_factor is not None and kind == "matrices" and _is_inner(name, parameter):
            kind = MUON
            group["lr"] *= config.muon_factor
        groups.setdefault((owner, kind), {"name": f"{owner}{kind}", **group})["params"].append(parameter)
    return [groups[key] for key in sorted(groups, key=lambda key: (key[0], KINDS.index(key[1])))]


def build_optimizer(
    model: nn.Module, config: OptimizerConfig, steps: int, policy: Mapping[str, Any] | None = None
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW, and Muon where it is wanted, over `parameter_groups`, and the schedule, to be stepped once per optimizer
    step."""
    groups = parameter_groups(model, config, policy)
    betas = (config.betas[0], config.betas[1])
    adamw = partial(torch.optim.AdamW, lr=config.learning_rate, betas=betas, eps=config.epsilon)
    muon = [group for group in groups if str(group["name"]).endswith(MUON)]
    others = [group for group in groups if not str(group["name"]).endswith(MUON)]
    optimizer: torch.optim.Optimizer = adamw(groups)
    if muon:
        # Its updates are as large as AdamW's, so that one learning rate says the same of both.
        by_muon = Muon(muon, lr=config.learning_rate)
        optimizer = Together([by_muon, *([adamw(others)] if others else [])])
    factor = partial(
        learning_rate_factor,
        steps=steps,
        warmup_steps=config.warmup(steps),
        final_fraction=config.final_fraction,
        decay=config.decay,
    )
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


class Together(torch.optim.Optimizer):
    """Several optimizers as one, over the groups of all: one state, one schedule, one checkpoint."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self.parts = list(parts)
        groups = [{**group, PART: i} for i, part in enumerate(parts) for group in part.param_groups]
        super().__init__(groups, {})
        self._share()

    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()

    def _share(self) -> None:
        for i, part in enumerate(self.parts):
            part.param_groups = [group for group in self.param_groups if group[PART] == i]
            part.state = self.state


PART = "part"


def _is_gate(name: str, parameter: nn.Parameter) -> bool:
    return "gate" in name.rsplit(".", 1)[-1] and parameter.ndim <= 1


def _decays(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim >= 2 and not any(word in name for word in UNDECAYED)


def _is_inner(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim == 2 and not any(word in name for word in WORDS)
