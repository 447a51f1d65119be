"""Feed-forward branches: a norm, one wide hidden layer, and back; GELU as in Flamingo, SwiGLU as in IDEFICS.

Shape letters: b batch, t text positions, d width.
"""

from __future__ import annotations

from torch import Tensor, nn

from flamingo_lite.nn.activations import ACTIVATIONS


class FeedForward(nn.Module):
    """(b t d) -> (b t d): `norm`, then an activation between two linears without biases."""

    def __init__(self, norm: nn.Module, width: int, inner: int, activation: str = "gelu") -> None:
        super().__init__()
        self.norm = norm
        self.up = nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(self.norm(x))))


class SwiGLU(FeedForward):
    """A third linear, `swish`, scales each hidden unit (Shazeer 2020, "GLU variants improve transformer").

    Equal to transformers' `IdeficsMLP` (gate_proj is `swish`) behind its norm.
    """

    def __init__(self, norm: nn.Module, width: int, inner: int) -> None:
        super().__init__(norm, width, inner, "silu")
        self.swish = nn.Linear(width, inner, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return self.down(self.activation(self.swish(x)) * self.up(x))


FEED_FORWARDS: dict[str, type[FeedForward]] = {"gelu": FeedForward, "swiglu": SwiGLU}
