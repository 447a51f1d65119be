"""Features on the disk in place of the vision encoder: equal losses, and nothing trusted that is damaged."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flamingo_lite.data.features import FeatureCache, FeatureCacheConfig, known_features
from flamingo_lite.document import Document, Image
from flamingo_lite.errors import FlamingoError
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.models.policy import apply_policy
from flamingo_lite.models.vision import VisionEncoder
from flamingo_lite.processing import VisionLanguageProcessor
from flamingo_lite.training.callbacks import read_metrics
from flamingo_lite.training.features import complete, features_key, open_features
from flamingo_lite.training.stages import run_stage
from tests.training.conftest import Recipe

Joined = tuple[VisionLanguageModel, VisionLanguageProcessor]


def losses(output: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(output / "metrics.csv")]


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images go through a vision encoder in training, call by call."""
    counts: list[int] = []
    forward = VisionEncoder.forward

    def counting(self: VisionEncoder, pixel_values: Tensor) -> Tensor:
        counts.append(len(pixel_values))
        return forward(self, pixel_values)

    monkeypatch.setattr(VisionEncoder, "forward", counting)
    return counts


def test_a_run_with_features_has_the_losses_of_one_without_and_skips_the_encoder(
    recipe: Recipe, tmp_path: Path, encoded: list[int]
) -> None:
    run_stage(recipe(tmp_path / "plain", samples=0))
    expected = losses(tmp_path / "plain")
    at_first = sum(encoded)
    for name in ("first", "second"):
        config = recipe(tmp_path / name, samples=0)
        config.data.features = FeatureCacheConfig(str(tmp_path / "features"))
        encoded.clear()
        run_stage(config)
        assert losses(tmp_path / name) == expected
        if name == "first":
            assert 0 < sum(encoded) < at_first  # images that come again within the run are known by then
    assert encoded == []


def test_workers_read_what_the_main_process_keeps(recipe: Recipe, tmp_path: Path, encoded: list[int]) -> None:
    for name, workers in (("first", 0), ("second", 2)):
        config = recipe(tmp_path / name, samples=0, workers=workers)
        config.data.features = FeatureCacheConfig(str(tmp_path / "features"))
        encoded.clear()
        run_stage(config)
    assert encoded == [] and losses(tmp_path / "second") == losses(tmp_path / "first")


@pytest.fixture
def cache(tmp_path: Path) -> FeatureCache:
    return FeatureCache(tmp_path, "key", 2**20)


def test_what_is_put_comes_back_bit_for_bit_whatever_its_type(cache: FeatureCache) -> None:
    for number, dtype in enumerate((torch.float32, torch.bfloat16, torch.float16)):
        features = torch.randn(3, 5).to(dtype)
        cache.put(f"{number:064x}", features)
        found = cache.get(f"{number:064x}")
        assert found is not None and found.dtype == dtype and torch.equal(found, features)
    assert cache.get("f" * 64) is None


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "not a tensor file"])
def test_a_damaged_file_is_as_good_as_none_and_replaced(cache: FeatureCache, damage: str) -> None:
    name, features = "a" * 64, torch.randn(3, 5)
    cache.put(name, features)
    (path,) = cache.directory.glob("*/*.safetensors")
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    spoilt = {"cut": data[:-8], "flipped": data, "empty": b"", "not a tensor file": b"x" * 500}
    path.write_bytes(bytes(spoilt[damage]))
    assert cache.get(name) is None
    cache.put(name, features)
    found = cache.get(name)
    assert found is not None and torch.equal(found, features)


def test_no_more_is_kept_than_the_limit_over_processes_that_come_later(tmp_path: Path) -> None:
    for _ in range(2):
        cache = FeatureCache(tmp_path, "key", 2000)
        for number in range(10):
            cache.put(f"{number:064x}", torch.randn(10, 10))
    sizes = [path.stat().st_size for path in tmp_path.glob("*/*/*")]
    assert 0 < len(sizes) < 10 and sum(sizes) <= 2000
    assert cache.get(f"{0:064x}") is not None and cache.get(f"{9:064x}") is None


def test_a_directory_that_takes_nothing_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cache = FeatureCache(tmp_path / "file", "key", 2**20)
    with pytest.warns(UserWarning, match="takes no more features"):
        cache.put("a" * 64, torch.zeros(2, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache.put("b" * 64, torch.zeros(2, 2))


def test_a_batch_that_is_known_in_part_is_completed_in_order(
    joined: Joined, cache: FeatureCache, image_of: Callable[[int], Image]
) -> None:
    model, processor = joined
    documents = [Document([image_of(0), "a", image_of(1)]), Document([image_of(2), "b"])]
    batch = processor(documents, complete=True)
    exact = model.patch_features(batch.pixel_values)
    ids = [image.id for document in documents for image in document.images]
    pixels = batch.pixel_values.clone()
    pixels[1] = 0
    features = complete(model, cache, known_features(ids, {ids[1]: exact[1]}), pixels)
    torch.testing.assert_close(features, exact)
    assert torch.equal(features[1], exact[1])
    assert all(cache.get(ids[number]) is not None for number in (0, 2))
    blind = replace(batch, pixel_values=torch.zeros_like(batch.pixel_values))
    torch.testing.assert_close(
        model.train()(**blind, vision_features=features).loss, model.train()(**batch).loss
    )


def test_gradients_with_features_are_those_of_the_pixels(
    joined: Joined, image_of: Callable[[int], Image]
) -> None:
    model, processor = joined
    batch = processor([Document([image_of(0), "ab"]), Document(["cd"])], complete=True)
    features = model.patch_features(batch.pixel_values)
    found = []
    for more in ({}, {"vision_features": features}):
        model.zero_grad()
        model.train()(**batch, **more).loss.backward()
        found.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(gradient, found[1][name]) for name, gradient in found[0].items())


def test_a_text_only_batch_leaves_no_parameter_without_a_gradient(
    joined: Joined, cache: FeatureCache
) -> None:
    model, processor = joined
    batch = processor([Document(["ab"])], complete=True)
    features = complete(model, cache, known_features([], {}), batch.pixel_values)
    model.train()(**batch, vision_features=features).loss.backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_whatever_features_depend_on_is_in_the_key(
    model: VisionLanguageModel, processor: VisionLanguageProcessor, tmp_path: Path
) -> None:
    config = FeatureCacheConfig(str(tmp_path))

    def key(**changes: Any) -> str:
        options = {"precision": "32-true", "draft": False, **changes}
        found = open_features(config, model, processor, **options)
        assert found is not None
        return found.directory.name

    keys = [key(), key(precision="bf16-mixed"), key(draft=True)]
    with torch.no_grad():
        next(model.vision.parameters()).add_(1)
    keys.append(key())
    processor.image_transform = replace(processor.image_transform, mean=(0.1, 0.2, 0.3))
    keys.append(key())
    assert len(set(keys)) == 5


def test_encoders_that_were_trained_to_other_weights_have_other_keys(
    model: VisionLanguageModel, processor: VisionLanguageProcessor
) -> None:
    """A model that is loaded for an evaluation still has the policy that it was trained with."""
    apply_policy(model, {"vision.*": "full"})
    before = features_key(model, processor, "32-true", draft=False)
    with torch.no_grad():
        next(model.vision.parameters()).add_(1)
    assert features_key(model, processor, "32-true", draft=False) != before


def test_an_encoder_that_trains_is_refused(
    model: VisionLanguageModel, processor: VisionLanguageProcessor, tmp_path: Path
) -> None:
    apply_policy(model, {"vision.*": "bias_norm"})
    with pytest.raises(FlamingoError, match=r"data\.features .*vision\..*freeze them"):
        open_features(FeatureCacheConfig(str(tmp_path)), model, processor, "32-true", draft=False)


def test_features_under_fsdp2_are_refused(recipe: Recipe, tmp_path: Path) -> None:
    config = recipe(tmp_path, strategy="fsdp2")
    config.data.features = FeatureCacheConfig(str(tmp_path / "features"))
    with pytest.raises(FlamingoError, match=r"data\.features does not go with trainer\.strategy=fsdp2"):
        config.__post_init__()
