"""The Q-Former against BLIP-2's and InstructBLIP's in transformers: outputs and gradients, with and without text."""

from __future__ import annotations

import pickle
import re
from dataclasses import asdict
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import (
    Blip2QFormerConfig,
    Blip2QFormerModel,
    InstructBlipQFormerConfig,
    InstructBlipQFormerModel,
)
from transformers.models.blip_2.modeling_blip_2 import Blip2TextEmbeddings

from flamingo_lite.errors import FlamingoError
from flamingo_lite.nn.qformer import QFormer, QFormerConfig

TOLERANCE = 1e-9  # in float64: a norm over a few numbers loses half of float32's digits
VOCABULARY = 20
POSITIONS = 6
LANGUAGE_WIDTH = 10
PATCH_WIDTH = 7

ATTENTION_KEYS = {
    "to_q": "attention.query",
    "to_k": "attention.key",
    "to_v": "attention.value",
    "to_out": "output.dense",
    "norm": "output.LayerNorm",
}
FEED_FORWARD_KEYS = {"up": "intermediate{}.dense", "down": "output{}.dense", "norm": "output{}.LayerNorm"}


class Reference(nn.Module):
    """The Q-Former of either family and what its models put around it; `forward` is as there."""

    def __init__(self, instructs: bool, config: QFormerConfig) -> None:
        super().__init__()
        self.reads_text = config.text
        sizes: dict[str, Any] = {
            "hidden_size": config.hidden_width,
            "num_hidden_layers": config.depth,
            "num_attention_heads": config.heads,
            "intermediate_size": config.ff_width,
            "hidden_act": config.activation,
            "cross_attention_frequency": config.every,
            "encoder_hidden_size": PATCH_WIDTH,
            "vocab_size": VOCABULARY,
            "max_position_embeddings": POSITIONS,
        }
        self.query_tokens = nn.Parameter(torch.zeros(1, config.latents, config.hidden_width))
        if instructs:
            self.embeddings = None
            self.qformer = InstructBlipQFormerModel(InstructBlipQFormerConfig(**sizes))
        else:
            theirs = Blip2QFormerConfig(**sizes, use_qformer_text_input=config.text)
            self.embeddings = Blip2TextEmbeddings(theirs) if config.text else None
            self.qformer = Blip2QFormerModel(theirs)
        self.language_projection = nn.Linear(config.hidden_width, LANGUAGE_WIDTH)
        with torch.no_grad():
            for p in self.parameters():
                p.add_(0.1 * torch.randn_like(p))  # stock norms are 1 and 0: an exchange would go unnoticed
        self.eval()

    def forward(self, patches: Tensor, text_ids: Tensor | None, text_mask: Tensor | None) -> Tensor:
        queries = self.query_tokens.expand(len(patches), -1, -1)
        n = queries.shape[1]
        inputs: dict[str, Any] = {"query_embeds": queries, "encoder_hidden_states": patches}
        if text_ids is not None:
            text_mask = torch.ones_like(text_ids) if text_mask is None else text_mask.long()
            inputs["attention_mask"] = torch.cat((text_mask.new_ones(len(patches), n), text_mask), dim=1)
        if isinstance(self.qformer, InstructBlipQFormerModel):
            inputs["input_ids"] = text_ids
        elif text_ids is not None and self.embeddings is not None:
            inputs |= {"query_embeds": self.embeddings(text_ids, query_embeds=queries), "query_length": n}
        return self.language_projection(self.qformer(**inputs).last_hidden_state[:, :n])


def their_name(name: str, instructs: bool) -> str:
    """The parameter of `Reference` that has our parameter's part."""
    embeddings = "qformer.embeddings" if instructs else "embeddings"
    plain = {
        "latents": "query_tokens",
        "norm": "qformer.embeddings.layernorm" if instructs else "qformer.layernorm",
        "projection": "language_projection",
        "word_embedding": f"{embeddings}.word_embeddings",
        "position_embedding": f"{embeddings}.position_embeddings",
    }
    head, _, kind = name.rpartition(".")
    if not head:
        return plain[name]
    if head in plain:
        return f"{plain[head]}.{kind}"
    found = re.fullmatch(r"layers\.(\d+)\.(\w+)\.(\w+)", head)
    assert found is not None, name
    layer, part, piece = found.groups()
    if part.endswith("attention"):
        attention = "crossattention" if part == "patch_attention" else "attention"
        inside = f"{attention}.{ATTENTION_KEYS[piece]}"
    else:
        inside = FEED_FORWARD_KEYS[piece].format("" if part.startswith("text") else "_query")
    return f"qformer.encoder.layer.{layer}.{inside}.{kind}"


def pair(ours: QFormer, theirs: Reference, instructs: bool) -> list[tuple[str, nn.Parameter, nn.Parameter]]:
    """Copy their weights into ours, all of them, none left over, and pair the parameters."""
    left = dict(theirs.named_parameters())
    pairs = [(name, p, left.pop(their_name(name, instructs))) for name, p in ours.named_parameters()]
    assert not left
    with torch.no_grad():
        for _, p, q in pairs:
            p.copy_(q.view_as(p))
    return pairs


@st.composite
def configs(draw: st.DrawFn, text: bool) -> QFormerConfig:
    heads = draw(st.integers(1, 3))
    return QFormerConfig(
        depth=draw(st.integers(1, 4)),
        latents=draw(st.integers(1, 4)),
        heads=heads,
        hidden_width=heads * draw(st.integers(2, 6)),
        ff_width=draw(st.integers(1, 20)),
        every=draw(st.integers(1, 3)),
        activation=draw(st.sampled_from(["gelu", "relu"])),
        text=text,
        vocabulary=VOCABULARY,
        positions=POSITIONS,
    )


def draw_text(data: st.DataObject, images: int) -> tuple[Tensor, Tensor | None]:
    length = data.draw(st.integers(1, POSITIONS))
    ids = torch.randint(1, VOCABULARY, (images, length))
    if data.draw(st.booleans()):
        return ids, None
    mask = data.draw(st.lists(st.booleans(), min_size=images * length, max_size=images * length))
    return ids, torch.tensor(mask).view(images, length)


@pytest.mark.parametrize(
    ("instructs", "has_stream", "gives_text"),
    [
        (False, False, False),
        (False, True, True),
        (False, True, False),
        (True, True, True),
        (True, True, False),
    ],
    ids=["blip2", "blip2-text", "blip2-text-absent", "instructblip", "instructblip-text-absent"],
)
@settings(max_examples=25, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**31), images=st.integers(1, 3), patches=st.integers(1, 6))
def test_qformer_equals_transformers_in_outputs_and_gradients(
    instructs: bool,
    has_stream: bool,
    gives_text: bool,
    data: st.DataObject,
    seed: int,
    images: int,
    patches: int,
) -> None:
    torch.manual_seed(seed)
    config = data.draw(configs(text=has_stream))
    theirs = Reference(instructs, config).double()
    ours = QFormer(PATCH_WIDTH, LANGUAGE_WIDTH, config).eval().double()
    pairs = pair(ours, theirs, instructs)
    text = draw_text(data, images) if gives_text else (None, None)
    x = torch.randn(images, patches, PATCH_WIDTH, dtype=torch.float64)
    our_x, their_x = x.clone().requires_grad_(), x.clone().requires_grad_()
    out, expected = ours(our_x, *text), theirs(their_x, *text)
    torch.testing.assert_close(out, expected, atol=TOLERANCE, rtol=TOLERANCE)
    weight = torch.randn_like(out)
    (out * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(our_x.grad, their_x.grad, atol=TOLERANCE, rtol=TOLERANCE)
    for name, p, q in pairs:
        # What theirs never reached has no gradient there; here it is zero.
        wanted = torch.zeros_like(p) if q.grad is None else q.grad.view_as(p)
        torch.testing.assert_close(
            p.grad, wanted, atol=TOLERANCE, rtol=TOLERANCE, msg=lambda m, n=name: f"{n}: {m}"
        )


def small(**changes: Any) -> QFormerConfig:
    sizes: dict[str, Any] = {
        "depth": 2, "latents": 3, "heads": 2, "hidden_width": 8, "vocabulary": VOCABULARY, "positions": POSITIONS,
    }  # fmt: skip
    return QFormerConfig(**{**sizes, **changes})


def blow_up(qformer: QFormer) -> QFormer:
    """Weights so large that what is seen makes a difference."""
    with torch.no_grad():
        for p in qformer.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return qformer


def test_padding_of_the_text_changes_nothing() -> None:
    torch.manual_seed(0)
    ours = blow_up(QFormer(PATCH_WIDTH, LANGUAGE_WIDTH, small(text=True)).eval())
    x, ids = torch.randn(2, 4, PATCH_WIDTH), torch.randint(1, VOCABULARY, (2, 3))
    padded = torch.cat((ids, torch.full((2, 2), 9)), dim=1)
    mask = torch.tensor([[1, 1, 1, 0, 0]]).expand(2, -1)
    torch.testing.assert_close(ours(x, padded, mask), ours(x, ids), atol=1e-6, rtol=1e-6)


def test_the_text_changes_the_media_tokens() -> None:
    torch.manual_seed(0)
    ours = blow_up(QFormer(PATCH_WIDTH, LANGUAGE_WIDTH, small(text=True)).eval())
    x = torch.randn(1, 4, PATCH_WIDTH)
    difference = ours(x, torch.tensor([[3, 4]])) - ours(x, torch.tensor([[3, 5]]))
    assert difference.abs().max() > 1e-3


def test_every_parameter_has_a_gradient_without_a_text_too() -> None:
    ours = QFormer(PATCH_WIDTH, LANGUAGE_WIDTH, small(text=True))
    ours(torch.randn(2, 4, PATCH_WIDTH)).sum().backward()
    assert [name for name, p in ours.named_parameters() if p.grad is None] == []


def test_no_image_gives_no_media_tokens() -> None:
    ours = QFormer(PATCH_WIDTH, LANGUAGE_WIDTH, small(text=True))
    assert ours(torch.zeros(0, 4, PATCH_WIDTH)).shape == (0, 3, LANGUAGE_WIDTH)


def test_dropout_acts_in_training_only() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 4, PATCH_WIDTH)
    ours = QFormer(PATCH_WIDTH, LANGUAGE_WIDTH, small(dropout=0.5, attention_dropout=0.5))
    torch.testing.assert_close(ours.eval()(x), ours(x), atol=0, rtol=0)
    assert not torch.equal(ours.train()(x), ours(x))
    still = QFormer(PATCH_WIDTH, LANGUAGE_WIDTH, small(dropout=0.0, attention_dropout=0.0))
    torch.testing.assert_close(still.train()(x), still.eval()(x), atol=1e-6, rtol=1e-6)


def test_weights_start_as_transformers_draws_them() -> None:
    torch.manual_seed(0)
    config = small(depth=1, hidden_width=64, text=True, latents=32, ff_width=128)
    ours = QFormer(64, LANGUAGE_WIDTH, config)
    theirs = InstructBlipQFormerModel(
        InstructBlipQFormerConfig(
            hidden_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=128,
            encoder_hidden_size=64,
            vocab_size=VOCABULARY,
            max_position_embeddings=POSITIONS,
        )
    )
    drawn = dict(theirs.named_parameters())
    for name, p in ours.named_parameters():
        if name == "latents":
            # Their model leaves the queries at zero for a checkpoint to fill; BLIP-2 draws them like the rest.
            assert p.std().item() == pytest.approx(0.02, rel=0.1)
        elif not name.startswith("projection"):
            q = drawn[their_name(name, instructs=True).removeprefix("qformer.")]
            assert p.mean().item() == pytest.approx(q.mean().item(), abs=0.005), name
            assert p.std().item() == pytest.approx(q.std().item(), rel=0.15, abs=1e-6), name
    assert not ours.word_embedding.weight[0].any() and not theirs.embeddings.word_embeddings.weight[0].any()


def test_the_defaults_are_blip2s() -> None:
    theirs, ours = Blip2QFormerConfig(), asdict(QFormerConfig())
    pairs = {
        "depth": "num_hidden_layers",
        "heads": "num_attention_heads",
        "hidden_width": "hidden_size",
        "every": "cross_attention_frequency",
        "activation": "hidden_act",
        "dropout": "hidden_dropout_prob",
        "attention_dropout": "attention_probs_dropout_prob",
        "norm_eps": "layer_norm_eps",
        "text": "use_qformer_text_input",
        "vocabulary": "vocab_size",
        "positions": "max_position_embeddings",
    }
    assert {name: ours[name] for name in pairs} == {name: getattr(theirs, t) for name, t in pairs.items()}
    assert ours["ff_width"] is None and theirs.intermediate_size == 4 * theirs.hidden_size


def test_it_can_be_pickled() -> None:
    ours = QFormer(PATCH_WIDTH, LANGUAGE_WIDTH, small(activation="gelu_new")).eval()
    x = torch.randn(1, 4, PATCH_WIDTH)
    torch.testing.assert_close(pickle.loads(pickle.dumps(ours))(x), ours(x))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ((torch.ones(3, 2, dtype=torch.long),), r"text_ids is of shape \(3, 2\).*each of the 2 images"),
        ((torch.ones(2, dtype=torch.long),), r"text_ids is of shape \(2,\)"),
        ((torch.ones(2, 7, dtype=torch.long),), "has 7 tokens; it reads connector.positions = 6"),
        ((torch.ones(2, 3, dtype=torch.long), torch.ones(2, 2)), r"text_mask is of shape \(2, 2\)"),
    ],
)
def test_a_text_that_cannot_be_read_is_one_line(text: tuple[Tensor, ...], message: str) -> None:
    ours = QFormer(PATCH_WIDTH, LANGUAGE_WIDTH, small(text=True))
    with pytest.raises(FlamingoError, match=message):
        ours(torch.zeros(2, 4, PATCH_WIDTH), *text)


def test_a_text_without_a_text_stream_is_refused() -> None:
    ours = QFormer(PATCH_WIDTH, LANGUAGE_WIDTH, small())
    with pytest.raises(FlamingoError, match="connector.text=true"):
        ours(torch.zeros(1, 4, PATCH_WIDTH), torch.ones(1, 2, dtype=torch.long))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 3}, "connector.hidden_width is 8; it must be a multiple of connector.heads, 3"),
        ({"every": 0}, "connector.every is 0; expected an integer, at least 1"),
        ({"ff_width": 2.5}, "connector.ff_width is 2.5"),
        ({"dropout": 1.0}, "connector.dropout is 1.0"),
        ({"attention_dropout": "much"}, "connector.attention_dropout is 'much'"),
        ({"norm_eps": 0.0}, "connector.norm_eps is 0.0"),
        ({"activation": "gleu"}, "did you mean 'gelu'"),
    ],
)
def test_a_config_that_makes_no_qformer_is_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(FlamingoError, match=message):
        small(**changes)
