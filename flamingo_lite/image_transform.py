"""How an image becomes the numbers that an encoder takes: resize, crop, rescale, normalise, as the encoder's own
library does it.

Shape letters: c channels, h height, w width.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from flamingo_lite.document import MAX_PIXELS, Image, upright_rgb
from flamingo_lite.errors import FlamingoError, SampleError

RESAMPLING = {
    "nearest": PIL.Image.Resampling.NEAREST,
    "lanczos": PIL.Image.Resampling.LANCZOS,
    "bilinear": PIL.Image.Resampling.BILINEAR,
    "bicubic": PIL.Image.Resampling.BICUBIC,
    "random": PIL.Image.Resampling.BICUBIC,
}
"""Interpolations by their names in configs; open_clip evaluates what it trained with "random" ones bicubically."""


RESIZE_MODES = ("shortest", "longest", "squash", "pad")

TORCHS = {"bilinear": "bilinear", "bicubic": "bicubic", "random": "bicubic"}
"""Those that torch has with antialiasing on 8-bit images, by its names."""


@dataclass(frozen=True)
class ImageTransform:
    """How an encoder's images are prepared, as plain numbers. `transform(image)` gives `(c h w)` float32.

    The fields are those of `open_clip.transform.PreprocessCfg`, whose evaluation transform this equals; `size` is
    (height, width). `shortest_edge` is transformers' way: that edge is brought to this length, then the middle is
    cropped to `size`, as its image processors on Pillow do. The `resize_mode` "pad" is LLaVA-1.5's
    (`image_aspect_ratio=pad`): the whole image, in the middle of a square of the colour `mean`. Images become upright
    RGB first, transparency laid over white, as in transformers; open_clip resizes before it converts and drops
    transparency, so for palettes, 1-bit and four-ink images, and hidden colours, it gives something else.
    Errors: `FlamingoError` for a value that neither would take.
    """

    size: tuple[int, int] = (224, 224)
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"
    fill_color: int = 0
    shortest_edge: int | None = None

    def __post_init__(self) -> None:
        size = (self.size, self.size) if isinstance(self.size, int) else tuple(self.size)
        object.__setattr__(self, "size", size * 2 if len(size) == 1 else size)
        object.__setattr__(self, "mean", tuple(self.mean))
        object.__setattr__(self, "std", tuple(self.std))
        if len(self.size) != 2 or min(self.size) < 1:
            raise FlamingoError(f"image transform: size is {self.size}; expected (height, width)")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise FlamingoError("image transform: expected three means and three standard deviations above 0")
        if self.interpolation not in RESAMPLING:
            raise FlamingoError(
                f"image transform: interpolation {self.interpolation!r}; expected {' or '.join(RESAMPLING)}"
            )
        if self.resize_mode not in RESIZE_MODES:
            raise FlamingoError(
                f"image transform: resize_mode {self.resize_mode!r}; expected {', '.join(RESIZE_MODES)}"
            )
        if self.resize_mode == "pad" and self.size[0] != self.size[1]:
            raise FlamingoError(f"image transform: resize_mode pad with size {self.size}; expected a square")
        if self.shortest_edge is None:
            return
        if self.resize_mode != "shortest" or self.shortest_edge < max(self.size):
            raise FlamingoError(
                f"image transform: shortest_edge {self.shortest_edge} with size {self.size} and resize_mode "
                f"{self.resize_mode!r}; expected an edge that covers the size, and shortest"
            )

    @classmethod
    def from_open_clip(cls, config: Any) -> Self:
        """From a `PreprocessCfg` or the `preprocess_cfg` dictionary of an open_clip checkpoint."""
        values = config if isinstance(config, dict) else asdict(config)
        return cls(**{name: values[name] for name in cls.__dataclass_fields__ if name in values})

    @classmethod
    def from_transformers(cls, values: Mapping[str, Any]) -> Self:
        """From what a transformers image processor's `to_dict()` gives.

        Errors: `FlamingoError` naming the field of a processor that does anything but resize to a fixed size,
        crop, rescale and normalise.
        """
        is_llavas = str(values.get("image_processor_type")).startswith("LlavaImageProcessor")
        for name in ("do_pad", "do_image_splitting", "do_pan_and_scan"):
            if values.get(name) and not (is_llavas and name == "do_pad"):
                raise FlamingoError(
                    f"{name} is true; expected a processor that resizes, crops and normalises"
                )
        if not values.get("do_resize", True):
            raise FlamingoError("do_resize is false; expected images to be brought to one size")
        size, edge = _output_size(values)
        mode = "squash" if edge is None else "shortest"
        if values.get("do_pad"):
            if size != (edge, edge):
                raise FlamingoError(
                    f"do_pad is true, the shortest edge {edge} and the crop {size}; expected a crop of all of the square"
                )
            mode, edge = "pad", None
        # Rescaling by another factor than 1/255 is what other means and deviations do.
        scale = 255 * values.get("rescale_factor", 1 / 255) if values.get("do_rescale", True) else 255
        normalizes = values.get("do_normalize", True)
        mean = values["image_mean"] if normalizes else (0.0,) * 3
        std = values["image_std"] if normalizes else (1.0,) * 3
        names = {int(code): name for name, code in RESAMPLING.items() if name != "random"}
        return cls(
            size=size,
            mean=tuple(m / scale for m in mean),
            std=tuple(s / scale for s in std),
            interpolation=names.get(int(values.get("resample", 2)), str(values.get("resample"))),
            resize_mode=mode,
            shortest_edge=edge,
        )

    @cached_property
    def _open_clip(self) -> Any:
        """open_clip's way from an image to one of the right size, without the numbers that follow."""
        from open_clip.transform import PreprocessCfg, image_transform_v2
        from torchvision.transforms import Compose

        known = {name: value for name, value in asdict(self).items() if name != "shortest_edge"}
        whole: Any = image_transform_v2(PreprocessCfg(**known), is_train=False)
        *steps, _, _ = whole.transforms
        return Compose(steps)

    def __call__(self, image: Image | PIL.Image.Image, draft: bool = False) -> Tensor:
        """The pixels of an image: `normalized(levels(image, draft))`."""
        return self.normalized(self.levels(image, draft))

    def levels(self, image: Image | PIL.Image.Image, draft: bool = False) -> Tensor:
        """The image at its size, `(c h w)` uint8: all that is left to do is `normalized`.

        `draft`: faster, for training. An encoded JPEG is decoded no larger than it has to be (`decode_image`), and
        where that changes nothing the result is within two of the 255 levels of the exact one.
        """
        size = self.size[::-1]
        edge = self.shortest_edge
        target = size if edge is None else (edge, edge)
        if isinstance(image, Image):
            pixels = image.pil(at_least=target if draft else None)
        else:
            pixels = upright_rgb(image)
        _refuse_ribbon(pixels.size, target, self.resize_mode)
        if self.resize_mode == "pad":
            pixels = self._squared(pixels)
        if draft and self._is_torchs:
            return self._by_torch(pixels)
        if edge is not None:
            pixels = _middle(self._resized(pixels, _covering(pixels.size, edge)), size)
        elif pixels.size != size and self.resize_mode in ("squash", "pad"):
            pixels = self._resized(pixels, size)
        elif pixels.size != size:
            # An image of the right size passes every resize mode unchanged.
            pixels = self._open_clip(pixels)
        return _channels_first(pixels)

    def normalized(self, levels: Tensor) -> Tensor:
        """`(... c h w)` uint8 to float32, rescaled and normalised, on whatever device it is."""
        mean, std = self._mean_and_std.to(levels.device)
        pixels = levels.to(torch.float32, memory_format=torch.contiguous_format)
        return pixels.div_(255).sub_(mean).div_(std)

    @cached_property
    def _mean_and_std(self) -> Tensor:
        return torch.tensor([self.mean, self.std], dtype=torch.float32)[..., None, None]

    @property
    def _is_torchs(self) -> bool:
        """Does torch know this way of resizing, to whole edges that are then cropped at most?"""
        fills = self.resize_mode in ("squash", "pad") or self.shortest_edge is not None
        square = self.resize_mode == "shortest" and self.size[0] == self.size[1]
        return (fills or square) and self.interpolation in TORCHS

    def _by_torch(self, pixels: PIL.Image.Image) -> Tensor:
        """Resized and cropped, `(c h w)` uint8: several times as fast as Pillow, and within two levels of it."""
        height, width = self.size
        size = (width, height)
        if self.resize_mode == "shortest":
            size = _covering(pixels.size, self.shortest_edge or height)
        values = _channels_first(pixels)
        if pixels.size != size:
            mode = TORCHS[self.interpolation]
            values = interpolate(values[None], size[::-1], mode=mode, antialias=True)[0]
        # Where the margins differ by a pixel, open_clip rounds and transformers cuts down.
        halves = [(size[1] - height) / 2, (size[0] - width) / 2]
        top, left = (round(half) if self.shortest_edge is None else int(half) for half in halves)
        return values[:, top : top + height, left : left + width]

    def _squared(self, pixels: PIL.Image.Image) -> PIL.Image.Image:
        """The image in the middle of a square."""
        edge = max(pixels.size)
        if min(pixels.size) == edge:
            return pixels
        red, green, blue = (int(255 * value) for value in self.mean)
        square = PIL.Image.new("RGB", (edge, edge), (red, green, blue))
        width, height = pixels.size
        square.paste(pixels, ((edge - width) // 2, (edge - height) // 2))
        return square

    def _resized(self, pixels: PIL.Image.Image, size: tuple[int, int]) -> PIL.Image.Image:
        return pixels if pixels.size == size else pixels.resize(size, RESAMPLING[self.interpolation])


def _refuse_ribbon(size: tuple[int, int], target: tuple[int, int], resize_mode: str) -> None:
    """Raises SampleError where bringing one edge to its target makes the other nothing, or more than memory holds."""
    ratios = [have / want for have, want in zip(size, target, strict=True)]
    vanishes = resize_mode == "longest" and round(min(size) / max(ratios)) < 1
    if resize_mode == "pad" and max(size) ** 2 > MAX_PIXELS:
        raise SampleError(
            f"an image of {size[0]} x {size[1]} pixels is too narrow to be padded to a square; crop it or leave it out",
            "image",
        )
    if vanishes or (resize_mode == "shortest" and size[0] * size[1] / min(ratios) ** 2 > MAX_PIXELS):
        raise SampleError(
            f"an image of {size[0]} x {size[1]} pixels is too narrow to be brought to {target[0]} x {target[1]} by its "
            f"{resize_mode} edge; crop it or leave it out",
            "image",
        )


def _channels_first(pixels: PIL.Image.Image) -> Tensor:
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1)


def _covering(size: tuple[int, int], edge: int) -> tuple[int, int]:
    """The size with its shorter edge brought to `edge` and the other cut down to a whole number of pixels."""
    width, height = size
    return (edge, edge * height // width) if width <= height else (edge * width // height, edge)


def _middle(pixels: PIL.Image.Image, size: tuple[int, int]) -> PIL.Image.Image:
    left, top = ((have - want) // 2 for have, want in zip(pixels.size, size, strict=True))
    return pixels.crop((left, top, left + size[0], top + size[1]))


def _output_size(values: Mapping[str, Any]) -> tuple[tuple[int, int], int | None]:
    """The (height, width) that a transformers image processor gives, and the shortest edge that it crops from."""
    size, crop = values.get("size"), values.get("crop_size")
    if isinstance(size, Mapping):
        crops, edge = bool(values.get("do_center_crop")), size.get("shortest_edge")
        if not crops and {"height", "width"} <= size.keys():
            return (size["height"], size["width"]), None
        if crops and isinstance(crop, Mapping) and edge and not size.get("longest_edge"):
            return (crop["height"], crop["width"]), edge
    raise FlamingoError(
        f"size is {size}, crop_size {crop}, do_center_crop {values.get('do_center_crop')}; expected height and width, "
        "or a shortest_edge that is cropped: images of one fixed size"
    )
