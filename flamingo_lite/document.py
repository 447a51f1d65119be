"""A document: an immutable sequence of texts and images. Everything is one: a caption pair, a web page,
a few-shot prompt, a conversation.

An image is known by the sha256 of its encoded bytes: features are cached under it and contamination
is found by it. Its bytes are foreign, so they are decoded here and nowhere else, defensively.
"""

import hashlib
import io
import struct
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, overload

import PIL.Image
import PIL.ImageFile

from flamingo_lite.errors import FlamingoError, SampleError, first_line
from flamingo_lite.exif import Jpeg, orientation

IMAGE_TOKEN = "<image>"
END_OF_CHUNK = "<|endofchunk|>"

MAX_BYTES = 128 * 2**20
# An encoded image above this size is refused before it is read.
MAX_PIXELS = 64_000_000
# An image with more pixels is refused before its pixels are decoded.
MAX_SCANS = 100
# A JPEG with more scans is refused: each costs a pass over all pixels, and a hundred bytes.
MAX_PROFILES = 8
# A PNG with more colour profiles is refused: it may have one, and each is inflated to a megabyte.

# A hostile EXIF block can make Pillow warn sixty thousand times, each time in other words.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of text. `loss`: it is trained on; `role`: who says it, in a conversation;
    `ends_chunk`: `<|endofchunk|>` follows it, trained on exactly when the text is."""

    text: str
    loss: bool = True
    role: str | None = None
    ends_chunk: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise FlamingoError(f"a Text is made from a str, not from {type(self.text).__name__}")


class Image:
    """An encoded image (JPEG, PNG or WebP), from a path, bytes, or a PIL image (which becomes PNG at once).

    `words` says what the image shows, `name` where it came from, for messages. Neither is part of its
    identity: images are equal when their bytes are. A path is read once, when the bytes are first needed, or with
    `keeps_data=False` whenever they are, for more images than memory holds. `max_pixels`: above it the image is
    refused before it is decoded.
    Errors: `FlamingoError` for any other source.
    """

    __slots__ = ("_data", "_id", "_keeps_data", "_max_pixels", "_name", "_path", "words")

    def __init__(
        self,
        source: "str | Path | bytes | PIL.Image.Image",
        words: str | None = None,
        name: str | None = None,
        max_pixels: int = MAX_PIXELS,
        keeps_data: bool = True,
    ) -> None:
        self.words = words
        self._name = name
        self._keeps_data = keeps_data
        self._max_pixels = max_pixels
        self._path: Path | None = None
        self._data: bytes | None = None
        self._id: str | None = None
        match source:
            case str() | Path():
                self._path = Path(source)
            case bytes():
                self._data = source
            case PIL.Image.Image():
                self._data = _encode_png(source)
            case _:
                raise FlamingoError(
                    f"an Image is made from a path, bytes or a PIL image, not from {type(source).__name__}"
                )

    @property
    def data(self) -> bytes:
        """The encoded bytes. Errors: `SampleError` naming a path that cannot be read."""
        if self._data is not None:
            return self._data
        assert self._path is not None
        data = _read(self._path)
        if self._keeps_data:
            self._data = data
        return data

    @property
    def id(self) -> str:
        """sha256 of the encoded bytes, in hex."""
        if self._id is None:
            self._id = hashlib.sha256(self.data).hexdigest()
        return self._id

    @property
    def name(self) -> str:
        """What to call the image in a message: the name it was given, its path, or the head of its id."""
        if self._name is not None:
            return self._name
        return str(self._path) if self._path is not None else f"image {self.id[:12]}"

    def pil(self, at_least: tuple[int, int] | None = None) -> "PIL.Image.Image":
        """The decoded image: RGB, upright by its EXIF orientation, transparency laid over white.

        `at_least`: see `decode_image`. Errors: `SampleError` naming the image for anything that is not a whole
        JPEG, PNG or WebP, or is above a limit.
        """
        return decode_image(self.data, self.name, at_least, self._max_pixels)

    def __eq__(self, other: object) -> bool:
        return self.id == other.id if isinstance(other, Image) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        # A path is shown unread: printing a document must not fail on a missing file.
        shown = repr(str(self._path)) if self._path is not None else self.id[:12]
        return f"Image({shown})" if self.words is None else f"Image({shown}, words={self.words!r})"


class Document(Sequence["Text | Image"]):
    """An immutable sequence of `Text` and `Image`; a `str` becomes a `Text`. `meta` is free, JSON-like data.

    Equal documents have equal segments and equal `meta`. `name` says where it came from, for messages.
    Errors: `FlamingoError` naming the position of a segment that is neither.
    """

    __slots__ = ("_meta", "_segments", "name")

    def __init__(
        self,
        segments: "Iterable[Text | Image | str]",
        meta: Mapping[str, Any] | None = None,
        name: str | None = None,
    ) -> None:
        if isinstance(segments, str):
            raise FlamingoError(
                "a Document is made from a sequence of segments, not from one str: write [text]"
            )
        self._segments: tuple[Text | Image, ...] = tuple(_segment(i, s) for i, s in enumerate(segments))
        self._meta: dict[str, Any] = dict(meta or {})
        self.name = name

    @property
    def meta(self) -> Mapping[str, Any]:
        return MappingProxyType(self._meta)

    @property
    def images(self) -> tuple[Image, ...]:
        return tuple(s for s in self._segments if isinstance(s, Image))

    @property
    def texts(self) -> tuple[Text, ...]:
        return tuple(s for s in self._segments if isinstance(s, Text))

    def text_twin(self) -> "Document":
        """The document with every image replaced by what it shows: `Text("[" + words + "]", loss=False)`, said by the
        user where the texts have roles.

        Errors: `FlamingoError` for an image without words.
        """
        role = "user" if any(text.role is not None for text in self.texts) else None
        twin = [_in_words(s, role) if isinstance(s, Image) else s for s in self._segments]
        return Document(twin, self._meta, self.name)

    @overload
    def __getitem__(self, index: int) -> "Text | Image": ...
    @overload
    def __getitem__(self, index: slice) -> "Document": ...
    def __getitem__(self, index: int | slice) -> "Text | Image | Document":
        if isinstance(index, slice):
            return Document(self._segments[index], self._meta, self.name)
        return self._segments[index]

    def __len__(self) -> int:
        return len(self._segments)

    def __iter__(self) -> "Iterator[Text | Image]":
        return iter(self._segments)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Document):
            return NotImplemented
        return self._segments == other._segments and self._meta == other._meta

    def __hash__(self) -> int:
        return hash(self._segments)

    def __repr__(self) -> str:
        meta = f", meta={self._meta!r}" if self._meta else ""
        return f"Document({list(self._segments)!r}{meta})"


def image_format(data: bytes) -> str | None:
    """jpg, png or webp, by the first bytes; None for anything else."""
    if data.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    return None


def decode_image(
    data: bytes, name: str, at_least: tuple[int, int] | None = None, max_pixels: int = MAX_PIXELS
) -> "PIL.Image.Image":
    """Encoded bytes to an upright RGB image, the first one of an animation. Errors: `SampleError` naming `name`.

    `at_least`: a (width, height) that the caller will shrink the image to, upright. A JPEG is then decoded at the
    smallest of 1/1, 1/2, 1/4 and 1/8 of its size that still covers it (libjpeg's scaled inverse DCT), which costs less
    and gives other pixels than decoding all of it; for training only. None decodes every image whole.
    Only three formats are offered to Pillow, so that its rarer decoders are never reached; the size in the
    header is checked before any pixel is decoded; a truncated file is an error, never a half-grey picture.
    """
    with _opened(data, name, max_pixels) as image:
        if at_least is not None:
            image.draft(None, at_least[::-1] if _is_on_its_side(image) else at_least)
        # In one piece: by default Pillow feeds its decoders 64 KiB at a time.
        image.decodermaxblock = len(data)
        image.load()
        return upright_rgb(image)


def image_size(data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Width and height, upright, by the header alone. Errors: as `decode_image`."""
    with _opened(data, name, max_pixels) as image:
        return image.size[::-1] if _is_on_its_side(image) else image.size


@contextmanager
def _opened(data: bytes, name: str, max_pixels: int) -> Iterator[PIL.ImageFile.ImageFile]:
    """The image with its header read; what fails inside is a `SampleError` that names it."""
    if (kind := image_format(data)) is None:
        raise SampleError(f"{name}: not an image; expected JPEG, PNG or WebP", "image")
    if kind == "jpg" and (scans := _count_scans(data)) > MAX_SCANS:
        raise SampleError(f"{name}: a JPEG of {scans:,} scans, above the limit of {MAX_SCANS}", "image")
    if kind == "png" and (profiles := data.count(b"iCCP")) > MAX_PROFILES:
        raise SampleError(
            f"{name}: a PNG of {profiles:,} colour profiles, above the limit of {MAX_PROFILES}", "image"
        )
    try:
        file = io.BytesIO(data)
        with Jpeg(file) if kind == "jpg" else PIL.Image.open(file, formats=["PNG", "WEBP"]) as image:
            if (pixels := image.width * image.height) > max_pixels:
                raise SampleError(
                    f"{name}: {pixels:,} pixels, above the limit of {max_pixels:,}; shrink it", "pixels"
                )
            yield image
    except PIL.Image.DecompressionBombError as error:
        raise SampleError(f"{name}: {first_line(error)}; shrink it", "pixels") from error
    except (
        PIL.UnidentifiedImageError
    ) as error:  # its own words end in an address, another one at every reading
        raise SampleError(f"{name}: not a readable image (its header is damaged)", "image") from error
    except _DECODING_ERRORS as error:
        raise SampleError(f"{name}: not a readable image ({first_line(error)})", "image") from error


def upright_rgb(image: "PIL.Image.Image") -> "PIL.Image.Image":
    """An image of any mode as 8-bit RGB: upright by its EXIF orientation, transparency laid over white, 16-bit
    grey scaled. The image itself where it is all that already."""
    return _rgb(_upright(image))


# What Pillow's three decoders raise on damaged files. The bomb warning is for users who make it an error.
_DECODING_ERRORS: tuple[type[Exception], ...] = (
    OSError, SyntaxError, ValueError, TypeError, EOFError, LookupError, ArithmeticError, NotImplementedError,
    struct.error, zlib.error, PIL.Image.DecompressionBombWarning,
)  # fmt: skip


def _count_scans(data: bytes) -> int:
    """How many scans a JPEG has at most, counted by their marks.

    1 without counting, which is a good part of decoding a small image, for the usual JPEG: sequential, with all
    components in its first scan. libjpeg reads no further then, whatever follows.
    """
    position, frame, components = 2, b"", b""
    while data[position : position + 1] == b"\xff":
        mark, length = data[position + 1 : position + 2], int.from_bytes(data[position + 2 : position + 4])
        if mark == b"\xda":
            if frame in _SEQUENTIAL and data[position + 4 : position + 5] == components:
                return 1
            break
        if mark in _WITHOUT_LENGTH:  # libjpeg goes on behind them, and this walk would be led astray
            break
        if mark in _FRAMES:
            frame, components = mark, data[position + 9 : position + 10]
        position += 2 + length
    return data.count(b"\xff\xda")


# The marks of a frame's header (ITU T.81, table B.1); those of sequential frames are the first two.
_FRAMES = frozenset(bytes([mark]) for mark in range(0xC0, 0xD0) if mark not in (0xC4, 0xC8, 0xCC))
_SEQUENTIAL = (b"\xc0", b"\xc1")
_WITHOUT_LENGTH = frozenset(bytes([mark]) for mark in (0x00, 0x01, *range(0xD0, 0xDA), 0xFF))

_UPRIGHT = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}


def _is_on_its_side(image: "PIL.Image.Image") -> bool:
    return orientation(image) >= 5


def _upright(image: "PIL.Image.Image") -> "PIL.Image.Image":
    # PIL.ImageOps.exif_transpose also rewrites the EXIF block, and fails on odd tags that nobody here reads.
    method = _UPRIGHT.get(orientation(image))
    if method is None:
        return image
    turned = image.transpose(method)
    # Of what Pillow copies along, EXIF and XMP would have the image turned once more by whoever looks at them next.
    turned.info = {name: turned.info[name] for name in ("transparency",) if name in turned.info}
    return turned


def _rgb(image: "PIL.Image.Image") -> "PIL.Image.Image":
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        image = _eight_bits(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    white = PIL.Image.new("RGBA", rgba.size, "white")
    return PIL.Image.alpha_composite(white, rgba).convert("RGB")


def _eight_bits(image: "PIL.Image.Image") -> "PIL.Image.Image":
    """16-bit grey scaled, which convert() would clip at 255, and without its transparent value, which is one of
    the 16-bit ones."""
    deep = image.convert("I")
    grey = deep.point(lambda value: value * (1 / 257)).convert("L")
    clear = grey.info.pop("transparency", None)
    if isinstance(clear, int):
        import numpy as np  # only here: a document of text alone needs no arrays

        grey.putalpha(PIL.Image.fromarray(np.where(np.asarray(deep) == clear, 0, 255).astype(np.uint8)))
    return grey


def _encode_png(image: "PIL.Image.Image") -> bytes:
    buffer = io.BytesIO()
    try:
        upright = _upright(image)
        if upright.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
            upright = upright.convert("RGBA" if upright.has_transparency_data else "RGB")
        # Without profile and EXIF the bytes, and so the id, depend on the pixels alone.
        upright.save(buffer, format="PNG", icc_profile=None, exif=b"")
    except (OSError, ValueError, SystemError) as error:
        shown = f"{image.width} x {image.height} pixels, mode {image.mode}"
        raise FlamingoError(f"a PIL image of {shown} cannot be encoded as PNG ({error})") from error
    return buffer.getvalue()


def _read(path: Path) -> bytes:
    try:
        # A device or a pipe has no size to check and may never end.
        if path.exists() and not path.is_file():
            raise SampleError(f"{path}: not a file; expected a JPEG, PNG or WebP image", "image")
        if (size := path.stat().st_size) > MAX_BYTES:
            raise SampleError(
                f"{path}: {size:,} bytes, above the limit of {MAX_BYTES:,} for an image", "bytes"
            )
        return path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SampleError(f"{path}: the image cannot be read ({reason})", "image") from error


def _segment(position: int, segment: "Text | Image | str") -> "Text | Image":
    if isinstance(segment, str):
        return Text(segment)
    if not isinstance(segment, Text | Image):
        raise FlamingoError(
            f"segment {position} of a document is a {type(segment).__name__}; expected Text, Image or str"
        )
    return segment


def _in_words(image: Image, role: str | None) -> Text:
    if image.words is None:
        raise FlamingoError(
            f"{image.name} has no words, so its document has no text twin: give Image(..., words=...)"
        )
    return Text(f"[{image.words}]", loss=False, role=role)
