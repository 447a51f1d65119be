"""Losses by source and norms by group against sums over the parts, one by one."""

import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import nn

from flamingo_lite.batch import IGNORED
from flamingo_lite.training.norms import GroupNorms, learning_rates
from flamingo_lite.training.source_losses import SourceLosses, sums_by_source


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Losses, labels and sources (3 7): packed rows of several sources, padding, and labels that are not trained on."""
    generator = torch.Generator().manual_seed(0)
    losses = torch.rand(3, 7, generator=generator)
    labels = torch.randint(0, 9, (3, 7), generator=generator)
    labels = labels.masked_fill(torch.rand(3, 7, generator=generator) < 0.3, IGNORED)
    return losses, labels, torch.randint(-1, 3, (3, 7), generator=generator)


def test_sums_are_those_over_the_trained_positions_of_each_source(batch: tuple[torch.Tensor, ...]) -> None:
    losses, labels, sources = batch
    found = sums_by_source(losses, labels, sources, 4)
    is_trained = labels != IGNORED
    is_trained[:, 0] = False
    for source in range(4):
        own = losses[is_trained & (sources == source)]
        assert found[0, source].item() == pytest.approx(own.sum().item())
        assert found[1, source] == len(own)


def test_losses_are_per_token_and_start_anew_with_each_row(batch: tuple[torch.Tensor, ...]) -> None:
    strategy = SingleDeviceStrategy(torch.device("cpu"))
    losses = SourceLosses(["web pages", "captions", "books", "none"])
    losses.add(*batch), losses.add(*batch)
    twice = losses.columns(strategy)
    losses.add(*batch)
    assert list(twice) == ["loss/web_pages", "loss/captions", "loss/books", "loss/none"]
    torch.testing.assert_close(twice, losses.columns(strategy), equal_nan=True)
    assert twice["loss/none"].isnan()


def test_norms_are_those_of_gradient_weights_and_what_the_step_did() -> None:
    torch.manual_seed(0)
    layers = {"low": nn.Linear(3, 4), "* high": nn.Linear(4, 2)}
    groups = [
        {"params": list(layer.parameters()), "lr": 10.0**-number, "name": name}
        for number, (name, layer) in enumerate(layers.items())
    ]
    optimizer = torch.optim.AdamW(groups)
    layers["* high"](layers["low"](torch.randn(5, 3))).square().sum().backward()
    norms = GroupNorms()
    before = {name: nn.utils.parameters_to_vector(layer.parameters()) for name, layer in layers.items()}
    norms.before(optimizer)
    optimizer.step()
    norms.after()
    found = norms.columns(SingleDeviceStrategy(torch.device("cpu")))
    for name, column in (("low", "low"), ("* high", "high")):
        now = nn.utils.parameters_to_vector(layers[name].parameters())
        gradient = torch.cat([p.grad.flatten() for p in layers[name].parameters() if p.grad is not None])
        expected = {"gradient": gradient, "weight": now, "update": now - before[name]}
        for kind, vector in expected.items():
            torch.testing.assert_close(found[f"{kind}_norm/{column}"], vector.norm())
    assert learning_rates(optimizer) == {"learning_rate/low": 1.0, "learning_rate/high": 0.1}
    assert norms.columns(SingleDeviceStrategy(torch.device("cpu"))) == {}
