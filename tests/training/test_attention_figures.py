"""What is told of attention to images equals torch's own attention, and looking changes nothing."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from flamingo_lite.document import Document, Image, Text
from flamingo_lite.models.build import build
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.nn.masks import MediaLayout, media_layout, previous_layout
from flamingo_lite.processing import VisionLanguageProcessor
from flamingo_lite.training.attention import AttentionWatch, attention_weights, looked_at, relative_entropy


def two_images(image_of: Callable[[int], Image]) -> list[Document]:
    return [
        Document([image_of(0), Text(" one"), image_of(1), Text(" and two")]),
        Document([Text("no image"), image_of(2), Text(" three")]),
    ]


def sees(model_config: dict[str, Any], name: str) -> dict[str, Any]:
    return {**model_config, "fusion": {**model_config["fusion"], "sees": name}}


@pytest.mark.parametrize("reads", ["immediate", "all_previous"])
def test_the_weights_are_those_of_torchs_attention(
    model_config: dict[str, Any], set_gates: Callable[..., VisionLanguageModel], reads: str
) -> None:
    torch.manual_seed(0)
    attention = set_gates(build(sees(model_config, reads)), 0.5).blocks[0].attention
    index = torch.tensor([[-1, 0, 0, 1, 1, 1], [2, 2, 2, 2, 3, 3]])
    layout = media_layout(index, 4) if reads == "immediate" else previous_layout(index, None)
    x, media = torch.randn(2, 6, 32), torch.randn(4, 3, attention.to_kv.in_features)
    key, value = attention.project(media)
    places = looked_at(layout)
    assert places is not None and len(places) == 11
    weights, _ = attention_weights(attention, x.flatten(0, 1)[places], key, layout, places)
    if isinstance(layout, MediaLayout):
        values = value[index.flatten()[places]][:, None]
    else:
        values = value[layout.images[places // 6].clamp(max=3)]
    read = torch.einsum("khn,khne->khe", weights, values.transpose(1, 2).flatten(2, 3))
    expected = attention(x, key, value, layout).flatten(0, 1)[places]
    torch.testing.assert_close(attention.to_out(read.flatten(1)), expected)


def test_entropy_is_one_for_equal_weights_and_zero_for_a_single_token() -> None:
    equal, single = torch.full((2, 1, 4), 0.25), F.one_hot(torch.tensor([[1], [3]]), 4).float()
    assert relative_entropy(equal).item() == pytest.approx(1)
    assert relative_entropy(single).item() == 0


def test_a_model_tells_of_every_block_and_computes_the_same(
    model: VisionLanguageModel, processor: VisionLanguageProcessor, image_of: Callable[[int], Image]
) -> None:
    batch = processor(two_images(image_of))
    before = model.train()(**batch).loss
    watch = AttentionWatch(model)
    with watch.watching():
        after = model(**batch).loss
    columns = watch.columns()
    assert torch.equal(before, after)
    assert sorted(columns) == [f"attention/{i}/{name}" for i in (0, 1) for name in ("entropy", "update")]
    assert all(value > 0 for value in columns.values())
    assert not model.blocks[0].attention._forward_hooks
    assert watch.columns() == {}


def test_what_a_closed_gate_lets_through_is_nothing(
    model: VisionLanguageModel,
    processor: VisionLanguageProcessor,
    set_gates: Callable[..., VisionLanguageModel],
    image_of: Callable[[int], Image],
) -> None:
    watch = AttentionWatch(set_gates(model, 0.0))
    with watch.watching():
        model(**processor(two_images(image_of)))
    assert watch.columns()["attention/0/update"] == 0


def test_all_previous_tells_how_much_goes_to_the_latest_image(
    model_config: dict[str, Any], processor: VisionLanguageProcessor, image_of: Callable[[int], Image]
) -> None:
    model = build(sees(model_config, "all_previous")).eval()
    torch.nn.init.zeros_(model.blocks[0].attention.to_q.weight)  # equal weights on all that is seen
    watch = AttentionWatch(model)
    with watch.watching():
        model(**processor([Document([image_of(0), Text("a"), image_of(1), Text("b")])]))
    columns = watch.columns()
    assert columns["attention/0/entropy"].item() == pytest.approx(1)
    assert 0.5 < columns["attention/0/latest"].item() < 1


def test_prefix_fusion_tells_how_long_media_tokens_are_beside_words(
    prefix_model: VisionLanguageModel,
    prefix_processor: VisionLanguageProcessor,
    image_of: Callable[[int], Image],
) -> None:
    batch = prefix_processor(two_images(image_of))
    watch = AttentionWatch(prefix_model)
    with watch.watching():
        prefix_model(**batch)
    ids = batch["input_ids"]
    words = prefix_model.language.get_input_embeddings()(ids[ids != prefix_model.config.image_token_id])
    media = prefix_model.encode_images(batch["pixel_values"])
    expected = media.norm(dim=-1).mean() / words.norm(dim=-1).mean()
    torch.testing.assert_close(watch.columns(), {"media_scale": expected})


def test_a_batch_without_images_tells_nothing(
    model: VisionLanguageModel, processor: VisionLanguageProcessor
) -> None:
    watch = AttentionWatch(model.train())
    with watch.watching():
        model(**processor([Document([Text("words alone")])]))
    assert watch.columns() == {}
