"""Key maps: what goes out comes back, and what does not fit is said by group."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from flamingo_lite.checkpoints.keys import (
    Join,
    NewRows,
    Rename,
    Rule,
    put_weights,
    take_weights,
    to_ours,
    to_theirs,
    under,
)
from flamingo_lite.errors import FlamingoError

RULES: list[Rule] = [
    NewRows("embed", "table.weight", "table.new_rows", first=4),
    Rename("alpha", "gate", shape=(1, 1, -1)),
    *under("their.", "our.", (Rename("deep.*", "*"), Join(("k.*", "v.*"), "kv.*"))),
]


def ours(width: int, layers: int) -> dict[str, Tensor]:
    state = {
        "table.weight": torch.randn(4, width),
        "table.new_rows": torch.randn(2, width),
        "gate": torch.randn(width),
    }
    for i in range(layers):
        state |= {f"our.kv.{i}.weight": torch.randn(6, width), f"our.{i}.bias": torch.randn(width)}
    return state


@settings(max_examples=25, deadline=None)
@given(width=st.integers(1, 4), layers=st.integers(0, 3))
def test_a_state_comes_back_as_it_went_out(width: int, layers: int) -> None:
    state = ours(width, layers)
    rules = [*RULES[:2], *reversed(RULES[2:])]  # the narrower pattern first: the first rule has a key
    theirs = to_theirs(rules, state)
    again = to_ours(rules, theirs)
    assert again.keys() == state.keys() and all(torch.equal(again[key], state[key]) for key in state)
    assert theirs["embed"].shape == (6, width) and theirs["alpha"].shape == (1, 1, width)


def test_rows_beyond_the_new_ones_are_not_theirs() -> None:
    state = {"table.weight": torch.randn(7, 2), "table.new_rows": torch.randn(2, 2)}
    theirs = to_theirs(RULES, state)
    assert torch.equal(theirs["embed"], torch.cat((state["table.weight"][:4], state["table.new_rows"])))


def test_a_weight_that_no_rule_knows_has_no_place() -> None:
    with pytest.raises(FlamingoError, match="the format has no place for other of this model"):
        to_theirs(RULES, {"other": torch.zeros(1)})


LINEAR = [Rename("w.*", "*")]


def test_keys_that_do_not_fit_are_listed_by_group() -> None:
    found = {"w.weight": torch.zeros(2, 2), "x": torch.zeros(1), "y": torch.zeros(1)}
    expected = (
        r"the weights in here do not fit its config: 1 missing: w.bias; 2 superfluous: x, y; 1 of another shape: "
        r"w.weight \(2, 2\) \(expected \(3, 2\)\)"
    )
    with pytest.raises(FlamingoError, match=expected):
        put_weights(nn.Linear(2, 3), found, LINEAR, "here")


def test_of_many_keys_a_few_are_named_and_the_others_counted() -> None:
    many = {f"x{i}": torch.zeros(1) for i in range(9)}
    with pytest.raises(FlamingoError, match="9 superfluous: x0, x1, x2 and 6 more"):
        put_weights(nn.Linear(2, 3), many, LINEAR, "here", optional=["w.*"])


def test_unread_keys_are_handed_back_and_optional_ones_may_be_missing() -> None:
    model = nn.Linear(2, 3)
    before = model.bias.detach().clone()
    found = {"w.weight": torch.ones(3, 2), "table.0": torch.zeros(1)}
    assert set(put_weights(model, found, LINEAR, "here", unread=["table.*"], optional=["w.bias"])) == {
        "table.0"
    }
    assert torch.equal(model.weight, torch.ones(3, 2)) and torch.equal(model.bias, before)


def test_a_key_that_the_model_has_is_read_whatever_unread_says() -> None:
    model = nn.Linear(2, 3)
    put_weights(
        model, {"w.weight": torch.ones(3, 2), "w.bias": torch.ones(3)}, LINEAR, "here", unread=["w.*"]
    )
    assert torch.equal(model.bias, torch.ones(3))


def test_a_tied_weight_is_taken_once() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[1].weight = model[0].weight
    assert set(take_weights(model, LINEAR)) == {"w.0.weight"}
