"""Feed-forward branches: a norm, one wide hidden layer, and back; GELU as in Flamingo, SwiGLU as in IDEFICS.

Shape letters: b batch, t text positions, d width.
"""

from __future__ import annotations

from torch import Tensor, nn

from flamingo_lite.nn.activations import ACTIVATIONS
from flamingo_lite.nn.recompute import recomputed


class FeedForward(nn.Module):
    """(b t d) -> (b t d): `norm`, then an activation between two linears without biases."""

    def __init__(self, norm: nn.Module, width: int, inner: int, activation: str = "gelu") -> None:
        super().__init__()
        self.norm = norm
        self.up = nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        hidden = recomputed(lambda x: self.up(self.norm(x)), x)
        return recomputed(lambda hidden: self.down(self.activation(hidden)), hidden)


class SwiGLU(FeedForward):
    """A third linear, `swish`, scales each hidden unit (Shazeer 2020, "GLU variants improve transformer").

    Equal to transformers' `IdeficsMLP` (gate_proj is `swish`) behind its norm.
    """

    def __init__(self, norm: nn.Module, width: int, inner: int) -> None:
        super().__init__(norm, width, inner, "silu")
        self.swish = nn.Linear(width, inner, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        scale = recomputed(lambda x: self.swish(self.norm(x)), x)
        hidden = recomputed(lambda x: self.up(self.norm(x)), x)
        return recomputed(lambda scale, hidden: self.down(self.activation(scale) * hidden), scale, hidden)


FEED_FORWARDS: dict[str, type[FeedForward]] = {"gelu": FeedForward, "swiglu": SwiGLU}
