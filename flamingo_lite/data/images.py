"""Images on their way in and out of shards: which members are images, and what a written one is called.

Decoding itself lives with `Image`, one floor down, so that every image is decoded in the same safe way.
"""

from flamingo_lite.document import MAX_BYTES, MAX_PIXELS, Image, decode_image, image_format
from flamingo_lite.errors import SampleError

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_BYTES",
    "MAX_PIXELS",
    "check_image",
    "decode_image",
    "image_format",
    "suffix",
]

IMAGE_SUFFIXES = frozenset({"jpg", "jpeg", "png", "webp"})


def suffix(image: Image) -> str:
    """jpg, png or webp, by the bytes, not by the name. Errors: `SampleError` for any other format."""
    if (found := image_format(image.data)) is None:
        raise SampleError(f"{image.name}: not an image; expected JPEG, PNG or WebP", "image")
    return found


def check_image(image: Image) -> None:
    """Decodes the image and drops the result. Errors: `SampleError` naming an image that is not whole."""
    image.pil()
