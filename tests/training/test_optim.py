"""The optimizer's groups and the schedule's shape."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from flamingo_lite.errors import FlamingoError
from flamingo_lite.training.optim import (
    DECAYS,
    OptimizerConfig,
    build_optimizer,
    learning_rate_factor,
    parameter_groups,
)
from flamingo_lite.training.settings import StageConfig, TrainerConfig, TrainingConfig


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        self.linear = nn.Linear(3, 3)
        self.norm = nn.LayerNorm(3)
        self.latents = nn.Parameter(torch.randn(4, 3))
        self.new_rows = nn.Parameter(torch.randn(2, 3))
        self.attention_gate = nn.Parameter(torch.zeros(1))


def groups_of(model: nn.Module, config: OptimizerConfig) -> dict[str, dict[str, object]]:
    names = {id(p): name for name, p in model.named_parameters()}
    return {
        str(group["name"]): {**group, "params": {names[id(p)] for p in group["params"]}}  # type: ignore[attr-defined]
        for group in parameter_groups(model, config)
    }


def test_only_matrices_decay_and_gates_have_their_own_rate() -> None:
    groups = groups_of(Toy(), OptimizerConfig(learning_rate=0.1, weight_decay=0.3, gate_factor=5.0))
    assert groups["matrices"]["params"] == {"linear.weight"}
    assert groups["matrices"]["weight_decay"] == 0.3
    assert groups["vectors"]["params"] == {"linear.bias", "norm.weight", "norm.bias", "latents", "new_rows"}
    assert groups["gates"]["params"] == {"attention_gate"}
    assert groups["vectors"]["weight_decay"] == groups["gates"]["weight_decay"] == 0.0
    assert groups["gates"]["lr"] == pytest.approx(0.5)


def test_a_model_that_trains_nothing_is_refused() -> None:
    with pytest.raises(FlamingoError, match="no parameter is trainable"):
        parameter_groups(Toy().requires_grad_(False), OptimizerConfig())


@given(st.integers(1, 200), st.integers(0, 50), st.floats(0, 1), st.sampled_from(DECAYS))
def test_the_rate_rises_then_falls_to_its_final_fraction(
    steps: int, warmup: int, final: float, decay: str
) -> None:
    total = steps + warmup
    factors = [learning_rate_factor(step, total, warmup, final, decay) for step in range(total)]
    assert factors[:warmup] == sorted(factors[:warmup])
    assert factors[warmup:] == sorted(factors[warmup:], reverse=True)
    assert all(min(final, 1 / max(1, warmup)) <= factor <= 1 for factor in factors)
    assert factors[warmup] == pytest.approx(1)
    if steps > 1:
        assert factors[-1] == pytest.approx(final)


def test_a_linear_decay_is_that_of_torch() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.6, total_iters=9)
    for step in range(10):
        assert learning_rate_factor(step, 10, 0, 0.6, "linear") == pytest.approx(
            optimizer.param_groups[0]["lr"]
        )
        optimizer.step()
        schedule.step()


def test_the_first_step_has_the_first_rate_of_the_warmup() -> None:
    optimizer, schedule = build_optimizer(Toy(), OptimizerConfig(learning_rate=1.0, warmup_steps=4), steps=10)
    rates = []
    for _ in range(5):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])


@pytest.mark.parametrize(
    "setting", [{"learning_rate": 0}, {"warmup_steps": -1}, {"final_fraction": 2}, {"betas": [0.9]}]
)
def test_a_value_out_of_range_is_refused_by_name(setting: dict[str, float]) -> None:
    with pytest.raises(FlamingoError, match=f"optimizer.{next(iter(setting))} is"):
        OptimizerConfig(**setting)  # type: ignore[arg-type]


class Layers(nn.Module):
    """A matrix inside, an embedding, a head and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(6, 8)
        self.layer = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.lm_head = nn.Linear(8, 6, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.lm_head(self.norm(self.layer(self.embed_tokens(ids))))


def trained(config: OptimizerConfig, steps: int, through_checkpoint: bool = False) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = Layers()
    optimizer, schedule = build_optimizer(model, config, steps=6)
    for step in range(steps):
        if step == 2 and through_checkpoint:
            kept = copy.deepcopy((optimizer.state_dict(), schedule.state_dict()))
            optimizer, schedule = build_optimizer(model, config, steps=6)
            optimizer.load_state_dict(kept[0])
            schedule.load_state_dict(kept[1])
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(torch.arange(6)), torch.arange(6)).backward()
        optimizer.step()
        schedule.step()
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_muon_trains_the_matrices_inside_at_its_own_rate_and_adamw_the_rest() -> None:
    config = OptimizerConfig(learning_rate=0.1, weight_decay=0.3, muon_factor=4.0)
    groups = groups_of(Layers(), config)
    assert groups["matrices by Muon"]["params"] == {"layer.weight"}
    assert groups["matrices by Muon"]["lr"] == pytest.approx(0.4)
    assert groups["matrices by Muon"]["weight_decay"] == 0.3
    assert groups["matrices"]["params"] == {"lm_head.weight"}
    assert {"embed_tokens.weight", "norm.weight"} <= groups["vectors"]["params"]  # type: ignore[operator]


def test_each_part_moves_its_parameters_as_torchs_own_optimizer_does() -> None:
    config = OptimizerConfig(learning_rate=0.01, warmup_steps=0, final_fraction=1.0, muon_factor=2.0)
    found = trained(config, steps=1)
    torch.manual_seed(0)
    model = Layers()
    nn.functional.cross_entropy(model(torch.arange(6)), torch.arange(6)).backward()
    torch.optim.Muon([model.layer.weight], lr=0.02, weight_decay=0.05, adjust_lr_fn="match_rms_adamw").step()
    torch.optim.AdamW([model.lm_head.weight], lr=0.01, weight_decay=0.05, betas=(0.9, 0.95)).step()
    wanted = dict(model.named_parameters())
    torch.testing.assert_close(found["lm_head.weight"], wanted["lm_head.weight"].detach())
    # Torch's Muon iterates in bfloat16.
    torch.testing.assert_close(found["layer.weight"], wanted["layer.weight"].detach(), atol=2e-3, rtol=0)


def test_muon_leaves_kernels_of_convolutions_to_adamw() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 2), nn.Flatten(), nn.Linear(4, 2))
    config = OptimizerConfig(learning_rate=0.01, muon_factor=2.0)
    groups = groups_of(model, config)
    assert groups["matrices by Muon"]["params"] == {"2.weight"}
    assert groups["matrices"]["params"] == {"0.weight"}
    optimizer, _ = build_optimizer(model, config, steps=2)
    model(torch.ones(1, 3, 2, 2)).sum().backward()
    optimizer.step()


def test_muon_and_adamw_go_on_from_a_checkpoint_as_if_nothing_had_happened() -> None:
    config = OptimizerConfig(learning_rate=0.01, warmup_steps=2, muon_factor=2.0)
    whole, parts = trained(config, steps=5), trained(config, steps=5, through_checkpoint=True)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_fraction_of_the_steps_can_be_the_warm_up() -> None:
    assert OptimizerConfig(warmup_steps=7).warmup(100) == 7
    assert OptimizerConfig(warmup_fraction=0.03).warmup(100) == 3
    assert OptimizerConfig(warmup_fraction=0.03).warmup(101) == 4
    with pytest.raises(FlamingoError, match=r"optimizer\.warmup_fraction is 1\.5"):
        OptimizerConfig(warmup_fraction=1.5)


def test_muon_does_not_go_with_shares_of_matrices() -> None:
    with pytest.raises(
        FlamingoError, match=r"stage\.optimizer\.muon_factor does not go with trainer\.strategy=fsdp2"
    ):
        TrainingConfig(
            stage=StageConfig(optimizer=OptimizerConfig(muon_factor=4.0)),
            trainer=TrainerConfig(strategy="fsdp2"),
        )
