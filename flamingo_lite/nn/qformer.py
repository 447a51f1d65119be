"""The Q-Former: learned queries pass through BERT's layers and read the patches in every k-th of them; a text
may go along beside them, which they attend to and which sees no patch itself.

Equal to `Blip2QFormerModel` and `InstructBlipQFormerModel` (transformers; BLIP-2, section 3.1; InstructBLIP,
section 2.3) with BLIP-2's projection to the language model behind it.
Shape letters: m images, p patches, n latents (the queries), t text positions, s = n + t, h heads, e head width,
d width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from flamingo_lite.errors import FlamingoError
from flamingo_lite.nn.activations import ACTIVATIONS, check_activation
from flamingo_lite.nn.sizes import check_optional_sizes, check_sizes

INITIAL_STD = 0.02
PADDING_ID = 0
"""BERT's padding token: its embedding starts at zero and is never trained."""


@dataclass
class QFormerConfig:
    """The sizes of a Q-Former; the defaults are BLIP-2's. `width`: of the media tokens, None means that of the
    language model. `hidden_width`: inside; `ff_width`: of the feed-forward, None means four times that.

    Layer i reads the patches if i % every == 0. `text`: a text may go along, of up to `positions` tokens out of
    `vocabulary`. `dropout` is after every sublayer, `attention_dropout` on attention weights.
    """

    depth: int = 12
    latents: int = 32
    heads: int = 12
    hidden_width: int = 768
    ff_width: int | None = None
    width: int | None = None
    every: int = 2
    activation: str = "gelu"
    dropout: float = 0.1
    attention_dropout: float = 0.1
    norm_eps: float = 1e-12
    text: bool = False
    vocabulary: int = 30522
    positions: int = 512

    def __post_init__(self) -> None:
        sizes = ("depth", "latents", "heads", "hidden_width", "every", "vocabulary", "positions")
        check_sizes("connector", self, sizes)
        check_optional_sizes("connector", self, ("ff_width", "width"))
        check_activation("connector.activation", self.activation)
        if self.hidden_width % self.heads:
            raise FlamingoError(
                f"connector.hidden_width is {self.hidden_width}; it must be a multiple of connector.heads, "
                f"{self.heads}"
            )
        for name in ("dropout", "attention_dropout"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 <= value < 1:
                raise FlamingoError(f"connector.{name} is {value!r}; expected a probability below 1")
        if not isinstance(self.norm_eps, int | float) or self.norm_eps <= 0:
            raise FlamingoError(f"connector.norm_eps is {self.norm_eps!r}; expected a number above 0")


class QFormer(nn.Module):
    """Patch features (m p d_patch), and a text for each image if the config says so -> media tokens (m n d)."""

    def __init__(self, patch_width: int, language_width: int, config: QFormerConfig) -> None:
        super().__init__()
        self.config = config
        self.tokens = config.latents
        self.reads_text = config.text
        self.width = config.width or language_width
        inner = config.hidden_width
        self.latents = nn.Parameter(torch.empty(config.latents, inner))
        if config.text:
            self.word_embedding = nn.Embedding(config.vocabulary, inner, padding_idx=PADDING_ID)
            self.position_embedding = nn.Embedding(config.positions, inner)
        self.norm = nn.LayerNorm(inner, eps=config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)
        layers = (QFormerLayer(patch_width, config, i % config.every == 0) for i in range(config.depth))
        self.layers = nn.ModuleList(layers)
        self._initialise()
        # After the rest is drawn as BERT's: BLIP-2's projection keeps torch's own initialisation.
        self.projection = nn.Linear(inner, self.width)

    def forward(
        self, patches: Tensor, text_ids: Tensor | None = None, text_mask: Tensor | None = None
    ) -> Tensor:
        """(m p d_patch) -> (m n d). `text_ids` (m t), ids of the Q-Former's own tokenizer; `text_mask` (m t),
        False (or 0) on padding, None for no padding. Raises FlamingoError for a text that cannot be read.
        """
        x = self.latents.expand(len(patches), -1, -1)
        visible = None
        if self.config.text:
            text_ids, text_mask = self._text(patches, text_ids, text_mask)
            x = torch.cat((x, self._embed(text_ids)), dim=1)
            queries = text_mask.new_ones(len(patches), self.tokens)
            visible = rearrange(torch.cat((queries, text_mask), dim=1), "m s -> m 1 1 s")
        elif text_ids is not None:
            raise FlamingoError(
                "a text was given to a Q-Former without a text stream; build it with connector.text=true"
            )
        x = self.dropout(self.norm(x))
        for layer in self.layers:
            x = layer(x, patches, self.tokens, visible)
        return self.projection(x[:, : self.tokens])

    def _text(
        self, patches: Tensor, text_ids: Tensor | None, text_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if text_ids is None:
            # One position that nobody sees: outputs are those of the queries alone, and yet every parameter
            # is reached by the gradient, which distributed training insists on.
            text_ids = torch.full((len(patches), 1), PADDING_ID, device=patches.device)
            return text_ids, torch.zeros_like(text_ids, dtype=torch.bool)
        if text_ids.dim() != 2 or len(text_ids) != len(patches):
            raise FlamingoError(
                f"text_ids is of shape {tuple(text_ids.shape)}; expected (m t) with a text for each of the "
                f"{len(patches)} images"
            )
        if text_ids.shape[1] > self.config.positions:
            raise FlamingoError(
                f"the Q-Former's text has {text_ids.shape[1]} tokens; it reads connector.positions = "
                f"{self.config.positions}, so shorten it"
            )
        if text_mask is None:
            return text_ids, torch.ones_like(text_ids, dtype=torch.bool)
        if text_mask.shape != text_ids.shape:
            raise FlamingoError(
                f"text_mask is of shape {tuple(text_mask.shape)}; expected that of text_ids, "
                f"{tuple(text_ids.shape)}"
            )
        return text_ids, text_mask.bool()

    def _embed(self, text_ids: Tensor) -> Tensor:
        positions = torch.arange(text_ids.shape[1], device=text_ids.device)
        return self.word_embedding(text_ids) + self.position_embedding(positions)

    @torch.no_grad()
    def _initialise(self) -> None:
        """As BERT: normal weights of a standard deviation of 0.02, the queries' too; biases and padding 0."""
        self.latents.normal_(std=INITIAL_STD)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                module.weight.normal_(std=INITIAL_STD)
                module.bias.zero_()
            elif isinstance(module, nn.Embedding):
                module.weight.normal_(std=INITIAL_STD)
                if module.padding_idx is not None:
                    module.weight[module.padding_idx].zero_()


class QFormerLayer(nn.Module):
    """Attention of queries and text to each other, of the queries to the patches (in some layers), and a
    feed-forward for either.
    """

    def __init__(self, patch_width: int, config: QFormerConfig, reads_patches: bool) -> None:
        super().__init__()
        self.attention = PostNormAttention(config.hidden_width, config)
        # Not "cross_attention": policies know the blocks of cross-attention fusion by that name.
        self.patch_attention = PostNormAttention(patch_width, config) if reads_patches else None
        self.feed_forward = PostNormFeedForward(config)
        self.text_feed_forward = PostNormFeedForward(config) if config.text else None

    def forward(self, x: Tensor, patches: Tensor, latents: int, visible: Tensor | None) -> Tensor:
        """(m s d) -> (m s d), of which the first `latents` are the queries. `visible` (m 1 1 s) bool."""
        x = self.attention(x, x, visible)
        queries, text = x[:, :latents], x[:, latents:]
        if self.patch_attention is not None:
            queries = self.patch_attention(queries, patches)
        queries = self.feed_forward(queries)
        if self.text_feed_forward is None:
            return queries
        return torch.cat((queries, self.text_feed_forward(text)), dim=1)


class PostNormAttention(nn.Module):
    """x (m s d) attends to a source (m p d_source); the norm comes after the residual, as in BERT."""

    def __init__(self, source_width: int, config: QFormerConfig) -> None:
        super().__init__()
        width = config.hidden_width
        self.heads = config.heads
        self.attention_dropout = config.attention_dropout
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(source_width, width)
        self.to_v = nn.Linear(source_width, width)
        self.to_out = nn.Linear(width, width)
        self.dropout = nn.Dropout(config.dropout)
        self.norm = nn.LayerNorm(width, eps=config.norm_eps)

    def forward(self, x: Tensor, source: Tensor, visible: Tensor | None = None) -> Tensor:
        projected = (self.to_q(x), self.to_k(source), self.to_v(source))
        query, key, value = (rearrange(y, "m s (h e) -> m h s e", h=self.heads) for y in projected)
        dropout = self.attention_dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=visible, dropout_p=dropout)
        out = self.to_out(rearrange(out, "m h s e -> m s (h e)"))
        return self.norm(x + self.dropout(out))


class PostNormFeedForward(nn.Module):
    """Two linear layers with an activation between them; the norm comes after the residual, as in BERT."""

    def __init__(self, config: QFormerConfig) -> None:
        super().__init__()
        width = config.hidden_width
        inner = config.ff_width or 4 * width
        self.up = nn.Linear(width, inner)
        self.down = nn.Linear(inner, width)
        self.activation = ACTIVATIONS[config.activation]
        self.dropout = nn.Dropout(config.dropout)
        self.norm = nn.LayerNorm(width, eps=config.norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.dropout(self.down(self.activation(self.up(x)))))
