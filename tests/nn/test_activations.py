"""Activations against transformers' functions of the same names."""

from __future__ import annotations

import pytest
import torch
from transformers.activations import ACT2FN

from flamingo_lite.errors import FlamingoError
from flamingo_lite.nn.activations import ACTIVATIONS, check_activation


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_is_transformers_function_of_that_name(name: str) -> None:
    x = torch.linspace(-6, 6, 101)
    torch.testing.assert_close(ACTIVATIONS[name](x), ACT2FN[name](x), atol=1e-6, rtol=1e-6)


def test_an_unknown_activation_is_answered_with_the_nearest() -> None:
    with pytest.raises(FlamingoError, match="connector.activation: 'gleu'; did you mean 'gelu'"):
        check_activation("connector.activation", "gleu")
