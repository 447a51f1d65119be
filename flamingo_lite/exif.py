"""How an image is turned, by its EXIF block, which is foreign data too: its claims are added up before it is read.

Every tag may claim the same bytes, so a block of a megabyte can ask for gigabytes; Pillow bounds that since
release 13. Opening a JPEG by `Image.open` already reads the block, for the density of its dots.
"""

import struct

import PIL.Image
import PIL.JpegImagePlugin

MAX_BYTES = 4 * 2**20  # of a block; one segment of a JPEG has room for a 64th of it
MAX_FOLD = 16  # times its own length that a block's tags may claim, which leaves room for a few damaged ones

_ORIENTATION = 0x0112
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}  # by type


class Jpeg(PIL.JpegImagePlugin.JpegImageFile):
    """A JPEG of which nothing but the headers of its pixels is read: no density, and no further pictures behind it."""

    def _read_dpi_from_exif(self) -> None:
        pass


def orientation(image: "PIL.Image.Image") -> int:
    """1 to 8, as EXIF numbers them; 1 where nothing is said. Errors: `ValueError` for a block that claims too much."""
    block = _block(image)
    if len(block) > MAX_BYTES or claims(block) > MAX_FOLD * len(block) + 65536:
        raise ValueError(f"an EXIF block of {len(block):,} bytes that claims many times as many")
    found = image.getexif().get(_ORIENTATION)
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def claims(block: bytes) -> int:
    """Bytes that the tags of a block's first directory claim, each at most all of the block."""
    tiff = block
    while tiff.startswith(b"Exif\0\0"):
        tiff = tiff[6:]
    order = ">" if tiff.startswith(b"MM") else "<"
    if len(tiff) < 10:
        return 0
    if tiff[2:4] in (b"\0+", b"+\0"):
        return len(tiff) ** 2  # BigTIFF, for files above 4 GB: no camera writes it here
    (start,) = struct.unpack_from(f"{order}I", tiff, 4)
    if start + 2 > len(tiff):
        return 0
    (count,) = struct.unpack_from(f"{order}H", tiff, start)
    entries = tiff[start + 2 : start + 2 + 12 * count]
    found = struct.iter_unpack(f"{order}HHII", entries[: len(entries) // 12 * 12])
    return sum(min(_SIZES.get(kind, 0) * length, len(tiff)) for _, kind, length, _ in found)


def _block(image: "PIL.Image.Image") -> bytes:
    """The bytes that Pillow would take the EXIF data from."""
    block = image.info.get("exif")
    if block is None and isinstance(profile := image.info.get("Raw profile type exif"), str):
        block = bytes.fromhex("".join(profile.split("\n")[3:]))
    return block if isinstance(block, bytes) else b""
