"""Pixels equal those of the encoders' own libraries: open_clip's transform, transformers' image processors."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from open_clip.transform import PreprocessCfg, image_transform_v2
from transformers import (
    BitImageProcessor,
    BlipImageProcessor,
    CLIPImageProcessor,
    IdeficsImageProcessor,
    SiglipImageProcessor,
    ViTImageProcessor,
)
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.idefics.image_processing_pil_idefics import IdeficsImageProcessorPil
from transformers.models.llava.image_processing_llava import LlavaImageProcessor
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from flamingo_lite.document import Image
from flamingo_lite.errors import FlamingoError
from flamingo_lite.image_transform import ImageTransform

RGB = {"do_convert_rgb": True}
CROPPED = {"size": {"shortest_edge": 15}, "crop_size": {"height": 12, "width": 12}, **RGB}
PADDED = {
    "size": {"shortest_edge": 12}, "crop_size": {"height": 12, "width": 12}, "do_pad": True, **RGB,
}  # fmt: skip
SQUASHED = {"size": {"height": 12, "width": 14}, **RGB}
PROCESSORS: dict[str, tuple[type[Any], type[Any], dict[str, Any]]] = {
    "clip": (CLIPImageProcessorPil, CLIPImageProcessor, CROPPED),
    "dinov2": (BitImageProcessorPil, BitImageProcessor, CROPPED),
    "siglip": (SiglipImageProcessorPil, SiglipImageProcessor, SQUASHED),
    "blip": (BlipImageProcessorPil, BlipImageProcessor, SQUASHED),
    "vit": (ViTImageProcessorPil, ViTImageProcessor, SQUASHED),
    "llava": (LlavaImageProcessorPil, LlavaImageProcessor, PADDED),
    "idefics": (IdeficsImageProcessorPil, IdeficsImageProcessor, {"image_size": 12, **RGB}),
}


def picture(seed: int, width: int, height: int, mode: str = "RGB") -> PIL.Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 4), dtype=np.uint8)
    return PIL.Image.fromarray(values).convert(mode)


def encoded(image: PIL.Image.Image) -> Image:
    """As PNG, or as JPEG where PNG has no such mode."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG" if image.mode == "CMYK" else "PNG")
    return Image(buffer.getvalue())


def reopened(image: Image) -> PIL.Image.Image:
    return PIL.Image.open(io.BytesIO(image.data))


def pixels(processor: Any, image: PIL.Image.Image) -> torch.Tensor:
    found = processor.preprocess([image], return_tensors="pt")
    return (found if isinstance(found, torch.Tensor) else found["pixel_values"])[0].float()


def lays_over_white() -> bool:
    """Transparency is laid over white, as transformers does since 5.2x; before, it was dropped."""
    clear = PIL.Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    processor = CLIPImageProcessorPil(do_normalize=False)
    return bool(pixels(processor, clear).min() > 0.99)


MODES = ["RGB", "L", "1", "CMYK", *(["RGBA", "LA", "P"] if lays_over_white() else [])]
sizes = st.integers(1, 60)


@pytest.mark.parametrize("name", PROCESSORS)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 99), width=sizes, height=sizes, mode=st.sampled_from(MODES))
def test_pixels_equal_those_of_transformers_processors_on_pillow(
    name: str, seed: int, width: int, height: int, mode: str
) -> None:
    on_pillow, _, options = PROCESSORS[name]
    # Through the encoded bytes: Pillow keeps a palette's transparency elsewhere before that.
    image = encoded(picture(seed, width, height, mode))
    transform = ImageTransform.from_transformers(on_pillow(**options).to_dict())
    assert torch.equal(transform(image), pixels(on_pillow(**options), reopened(image)))


@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_are_near_those_of_transformers_processors_on_torchvision(name: str) -> None:
    # It resamples in other arithmetic. Noise brings that out: half of one of the 255 levels on average; where an
    # image is only made smaller and cropped, one level at most.
    _, on_torchvision, options = PROCESSORS[name]
    processor = on_torchvision(**options)
    transform = ImageTransform.from_transformers(processor.to_dict())
    for seed, (width, height) in enumerate([(60, 7), (12, 12), (15, 15), (33, 21), (16, 16)]):
        image = encoded(picture(seed, width, height))
        levels = (transform(image) - pixels(processor, reopened(image))).abs() * 255 * min(transform.std)
        assert levels.mean() <= 0.5
        assert transform.shortest_edge is None or levels.max() <= 1.01


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("size", [(8, 8), (6, 10)])
@settings(max_examples=15, deadline=None)
@example(seed=0, width=1, height=12, kind="RGB")
@given(seed=st.integers(0, 99), width=sizes, height=sizes, kind=st.sampled_from(["RGB", "L"]))
def test_pixels_equal_those_of_open_clips_transform(
    mode: str, size: tuple[int, int], seed: int, width: int, height: int, kind: str
) -> None:
    reference = PreprocessCfg(size=size, resize_mode=mode, interpolation="bilinear", fill_color=7)
    image = encoded(picture(seed, width, height, kind))
    ours = ImageTransform.from_open_clip(reference)
    try:
        wanted = image_transform_v2(reference, is_train=False)(reopened(image))
    except ValueError:  # an edge of 0 pixels
        with pytest.raises(FlamingoError, match="too narrow"):
            ours(image)
    else:
        assert torch.equal(ours(image), wanted)


# Drafts: decoded and resized the faster way, for training only

TRANSFORMS = {
    "open_clip": ImageTransform(size=(24, 24)),
    "open_clip, not square": ImageTransform(size=(20, 28)),
    "longest": ImageTransform(size=(24, 24), resize_mode="longest", fill_color=9),
    "squash": ImageTransform(size=(24, 20), resize_mode="squash", interpolation="bilinear"),
    "transformers": ImageTransform(size=(24, 22), shortest_edge=27),
    "lanczos": ImageTransform(size=(24, 24), resize_mode="squash", interpolation="lanczos"),
}


def jpeg(image: PIL.Image.Image, orientation: int = 1) -> Image:
    buffer, exif = io.BytesIO(), PIL.Image.Exif()
    exif[0x0112] = orientation
    image.save(buffer, "JPEG", quality=90, exif=exif)
    return Image(buffer.getvalue())


def smooth(seed: int, width: int, height: int) -> PIL.Image.Image:
    """Content without detail, which no way of making it smaller loses."""
    return picture(seed, 5, 4).convert("RGB").resize((width, height), PIL.Image.Resampling.BICUBIC)


def levels_between(transform: ImageTransform, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    std = torch.tensor(transform.std)[:, None, None]
    return ((a - b) * std * 255).abs()


@pytest.mark.parametrize("name", TRANSFORMS)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 99), width=sizes, height=sizes, kind=st.sampled_from(["PNG", "JPEG"]))
def test_a_draft_of_an_image_that_is_decoded_whole_is_within_two_levels(
    name: str, seed: int, width: int, height: int, kind: str
) -> None:
    transform = TRANSFORMS[name]
    width, height = (min(length, 2 * min(transform.size) - 1) for length in (width, height))
    image = (
        jpeg(picture(seed, width, height, "RGB")) if kind == "JPEG" else encoded(picture(seed, width, height))
    )
    try:
        exact = transform(image)
    except FlamingoError:
        with pytest.raises(FlamingoError, match="too narrow"):
            transform(image, draft=True)
        return
    draft = transform(image, draft=True)
    assert draft.shape == exact.shape and draft.is_contiguous()
    levels = levels_between(transform, draft, exact)
    assert levels.max() <= 2.01 and levels.mean() <= 0.5


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("width, height", [(96, 96), (208, 128), (96, 256), (432, 304)])
def test_a_draft_of_a_large_jpeg_shows_what_the_whole_image_shows(name: str, width: int, height: int) -> None:
    # Whole blocks of 8 x 8: a draft of others is up to a pixel wider than its part of the image.
    transform = TRANSFORMS[name]
    image = jpeg(smooth(0, width, height))
    levels = levels_between(transform, transform(image, draft=True), transform(image))
    assert levels.mean() <= 1 and levels.max() <= 5


@pytest.mark.parametrize("name", ["open_clip", "squash", "transformers"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_draft_is_decoded_as_pillow_drafts_and_resized_within_two_levels(
    name: str, orientation: int
) -> None:
    transform = TRANSFORMS[name]
    image = jpeg(picture(1, 330, 250, "RGB"), orientation)
    edge = transform.shortest_edge
    target = (edge, edge) if edge else transform.size[::-1]
    with reopened(image) as opened:
        opened.draft(None, target[::-1] if orientation == 6 else target)
        assert max(opened.size) < 330
        upright = PIL.ImageOps.exif_transpose(opened)
    wanted = transform(upright)
    assert levels_between(transform, transform(image, draft=True), wanted).max() <= 2.01


def test_without_draft_a_large_jpeg_is_decoded_whole() -> None:
    image = jpeg(picture(1, 330, 250, "RGB"))
    transform = TRANSFORMS["open_clip"]
    whole = image_transform_v2(PreprocessCfg(size=(24, 24)), is_train=False)(reopened(image))
    assert torch.equal(transform(image), whole)
    assert not torch.equal(transform(image, draft=True), whole)


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("draft", [False, True])
def test_levels_are_normalised_alone_or_together(name: str, draft: bool) -> None:
    transform = TRANSFORMS[name]
    images = [jpeg(picture(seed, 130, 90, "RGB")) for seed in range(3)]
    levels = torch.stack([transform.levels(image, draft) for image in images])
    assert levels.dtype == torch.uint8
    pixels = torch.stack([transform(image, draft) for image in images])
    assert torch.equal(transform.normalized(levels), pixels)


@pytest.mark.parametrize("shortest_edge", [None, 300])
def test_a_ribbon_of_an_image_is_refused_before_it_fills_the_memory(shortest_edge: int | None) -> None:
    ribbon = PIL.Image.new("RGB", (40_000, 2))
    with pytest.raises(FlamingoError, match="40000 x 2 pixels is too narrow"):
        ImageTransform(size=(300, 300), shortest_edge=shortest_edge)(ribbon)


def test_a_ribbon_is_not_padded_to_a_square_that_fills_the_memory() -> None:
    with pytest.raises(FlamingoError, match="40000 x 2 pixels is too narrow to be padded"):
        ImageTransform(size=(300, 300), resize_mode="pad")(PIL.Image.new("RGB", (40_000, 2)))


@pytest.mark.parametrize("mode", ["RGBA", "P", "LA", "I;16"])
def test_a_pil_image_gives_the_pixels_that_its_document_gives(mode: str) -> None:
    values = np.random.default_rng(0).integers(0, 2**16, (9, 7), dtype=np.uint16)
    image = PIL.Image.fromarray(values) if mode == "I;16" else picture(0, 7, 9, mode)
    transform = ImageTransform(size=(8, 8), shortest_edge=9)
    assert torch.equal(transform(image), transform(Image(image)))


def test_another_factor_than_one_255th_is_taken_into_mean_and_deviation() -> None:
    options = {**SQUASHED, "rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3}
    image = picture(0, 20, 20)
    for changes in (options, {**options, "do_normalize": False}, {**options, "do_rescale": False}):
        processor = SiglipImageProcessorPil(**changes)
        found = ImageTransform.from_transformers(processor.to_dict())(image)
        torch.testing.assert_close(found, pixels(processor, image).float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "values",
    [
        {"size": (0, 4)},
        {"std": (0.0, 1.0, 1.0)},
        {"mean": (1.0,)},
        {"interpolation": "magic"},
        {"resize_mode": "x"},
        {"resize_mode": "pad", "size": (8, 9)},
        {"shortest_edge": 8, "size": (8, 9)},
        {"shortest_edge": 8, "size": (8, 8), "resize_mode": "squash"},
    ],
)
def test_an_image_transform_refuses_what_no_library_would_take(values: dict[str, Any]) -> None:
    with pytest.raises(FlamingoError, match="image transform"):
        ImageTransform(**values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"do_pad": True}, "do_pad is true"),
        ({"do_pad": True, "image_processor_type": "LlavaImageProcessor"}, "expected a crop of all of the"),
        ({"do_resize": False}, "do_resize is false"),
        ({"do_center_crop": False}, "images of one fixed size"),
        ({"size": {"shortest_edge": 15, "longest_edge": 30}}, "images of one fixed size"),
        ({"size": {"shortest_edge": 10}}, "an edge that covers the size"),
        ({"resample": 4}, "interpolation '4'"),
    ],
)
def test_a_processor_that_does_something_else_is_refused_by_its_field(
    changes: dict[str, Any], message: str
) -> None:
    values = {**CLIPImageProcessor(**CROPPED).to_dict(), **changes}
    with pytest.raises(FlamingoError, match=message):
        ImageTransform.from_transformers(values)
