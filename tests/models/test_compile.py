"""torch.compile takes the decoder stack, blocks included, as one graph, and it computes the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from flamingo_lite.document import Document, Image
from flamingo_lite.models.build import build
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.processing import VisionLanguageProcessor


@pytest.fixture(autouse=True)
def nothing_compiled_before() -> Iterator[None]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def test_the_stack_is_one_graph_where_positions_read_all_previous_images(
    model_config: dict[str, Any],
    processor: VisionLanguageProcessor,
    image_of: Callable[[int], Image],
    set_gates: Callable[[VisionLanguageModel, float], VisionLanguageModel],
) -> None:
    torch.manual_seed(2)
    fusion = {**model_config["fusion"], "sees": "all_previous"}
    model = set_gates(build({**model_config, "fusion": fusion}), 0.7).eval()
    one, two, three = (image_of(i) for i in range(3))
    batch = processor([Document([one, "ab", two, "c"]), Document(["c"]), Document([three, "abcd"])])
    with torch.no_grad():
        expected = model(**batch).logits
        # fullgraph raises at the first break; what depends on the data (layout, splice) is computed outside.
        model.language.base_model.compile(backend="eager", fullgraph=True)
        torch.testing.assert_close(model(**batch).logits, expected, atol=1e-5, rtol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_the_stack_is_one_graph_with_the_same_loss_and_gradients(
    joined: tuple[VisionLanguageModel, VisionLanguageProcessor], image_of: Callable[[int], Image]
) -> None:
    model, processor = joined
    batch = processor([Document([image_of(0), "ab"]), Document(["c"])], complete=True)
    losses, gradients = [], []
    for is_compiled in (False, True):
        if is_compiled:
            model.language.base_model.compile(backend="aot_eager", fullgraph=True)
        model.zero_grad()
        losses.append(model(**batch).loss)
        losses[-1].backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    torch.testing.assert_close(*losses)
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-4)
