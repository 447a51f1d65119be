"""Samples that mean harm, by name: their members, and the reason under which each is refused (None: it is read).

No builder writes more than a few MB; what is larger is only claimed.
"""

import gzip
import io
import json
import os
import pickle
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import PIL.Image
import PIL.PngImagePlugin

CANARY = "canary"
Member = tuple[str, bytes] | tarfile.TarInfo


class Trap:
    """Unpickling it would leave the canary in the working directory."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (CANARY,)


def picture(kind: str = "PNG", mode: str = "RGB", size: tuple[int, int] = (8, 6), **options: object) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new(mode, size, 7).save(buffer, kind, **options)
    return buffer.getvalue()


def interleaved(*images: str, **changes: object) -> bytes:
    content = {"images": [None, *images], "texts": ["a text", *[None] * len(images)], **changes}
    return json.dumps(content).encode()


def with_image(data: bytes, name: str = "0.jpg") -> list[Member]:
    return [("k.json", interleaved(name)), (f"k.{name}", data)]


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, target
    return made


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    """A grey PNG of one byte per pixel; its pixels are there if there are few."""
    pixels = zlib.compress(bytes((width + 1) * height)) if width * height < 10**6 else b""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def exif_bomb(tags: int, size: int) -> bytes:
    """Each of many tags claims the same `size` bytes: as memory they would be tags * size."""
    head = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, tags)
    entries = b"".join(struct.pack(">HHII", tag + 1, 7, size, 8) for tag in range(tags))
    return head + entries + bytes(max(4, 8 + size - len(entries)))


def with_segments(data: bytes, exif: bytes) -> bytes:
    """A JPEG with the EXIF block spread over as many segments as it needs."""
    body = exif[6:]
    parts = [b"Exif\0\0" + body[at : at + 65_000] for at in range(0, len(body), 65_000)]
    return data[:2] + b"".join(b"\xff\xe1" + struct.pack(">H", len(p) + 2) + p for p in parts) + data[2:]


def with_pictures(data: bytes, tags: int) -> bytes:
    """A JPEG whose directory of further pictures is a bomb like that of EXIF."""
    body = b"MPF\0" + exif_bomb(tags, 60_000)[6:]
    return data[:2] + b"\xff\xe2" + struct.pack(">H", len(body) + 2) + body + data[2:]


def scans(count: int) -> bytes:
    data = picture("JPEG", progressive=True)
    at = data.rindex(b"\xff\xda")
    return data[:at] + data[at:-2] * count + data[-2:]


def hidden_scans(count: int) -> bytes:
    """The same, behind a segment with a fill byte before its mark: read as if that were a mark, its length leads into the
    segment, where the headers of an ordinary JPEG stand."""
    decoy = bytes.fromhex("ffc0 0011 08 0008 0008 03") + bytes(9) + bytes.fromhex("ffda 000c 03")
    segment = (bytes(57603 - 7) + decoy).ljust(0xFF00 - 2, b"\0")
    data = scans(count)
    return data[:2] + b"\xff\xff\xe0\xff\x00" + segment + data[2:]


def animated(kind: str) -> bytes:
    frames = [PIL.Image.new("RGB", (8, 6), (shade, 0, 0)) for shade in (10, 200, 90)]
    buffer = io.BytesIO()
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:], lossless=True)
    return buffer.getvalue()


def vp8x(width: int, height: int) -> bytes:
    """A WebP that only claims a canvas."""
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4)
    body += (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF" + struct.pack("<I", len(body)) + body


# Pillow looks at the canvas before it decodes since release 13; earlier ones find no pixels first.
CANVAS = "pixels" if int(PIL.__version__.partition(".")[0]) >= 13 else "image"
ZTXT = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(8 * 2**20), 9))
ITXT = chunk(b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(bytes(8 * 2**20), 9))
MANY = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * (2**20 - 99), 9)) * 200
ICCP = chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(8 * 2**20), 9))
SMALL_ICCP = chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(2**20 - 99), 9))
RAW_EXIF = chunk(
    b"zTXt",
    b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n9\n" + exif_bomb(9000, 100_000).hex().encode()),
)
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/><script>1</script></svg>'
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(canary) (w) file\nshowpage\n"
PICKLE = pickle.dumps(Trap())

SAMPLES: dict[str, tuple[list[Member], str | None]] = {
    # What is never read
    "pickles and libraries": (
        [("k.json", interleaved()), *((f"k.{kind}", PICKLE) for kind in ("pkl", "pickle", "pth", "pyd", "npy", "cls"))],
        None,
    ),
    "compressed members": ([("k.json", interleaved()), ("k.json.gz", gzip.compress(bytes(10**6)))], None),
    "only a pickle": ([("k.pkl", PICKLE)], "json"),
    "a pickle as the image": ([("k.json", interleaved("0.pkl")), ("k.0.pkl", PICKLE)], "member"),
    "a pickle under an image's name": (with_image(PICKLE), "image"),
    "a pickle under the json's name": ([("k.json", PICKLE)], "json"),
    # What would leave the archive
    "a shell as the image": ([("k.json", interleaved(f"pipe:mkdir {CANARY} #.jpg"))], "member"),
    "a file as the image": ([("k.json", interleaved("file:///etc/passwd.jpg"))], "member"),
    "an address as the image": ([("k.json", interleaved("http://127.0.0.1:9/0.jpg"))], "member"),
    "a path as the image": ([("k.json", interleaved("../../etc/passwd.jpg"))], "member"),
    "a shell as the key": ([(f"pipe:mkdir {CANARY} #.json", interleaved())], None),
    "an absolute name": ([("/tmp/k.json", interleaved())], "member"),
    "a name that climbs": ([("../k.json", interleaved())], "member"),
    "a symbolic link": ([("k.json", interleaved("0.jpg")), special("k.0.jpg", tarfile.SYMTYPE, "/etc/passwd")], "member"),
    "a hard link": ([("k.json", interleaved("0.jpg")), special("k.0.jpg", tarfile.LNKTYPE, "k.json")], "member"),
    "a device": ([("k.json", interleaved("0.jpg")), special("k.0.jpg", tarfile.CHRTYPE)], "member"),
    "a block device": ([("k.json", interleaved("0.jpg")), special("k.0.jpg", tarfile.BLKTYPE)], "member"),
    "a pipe": ([("k.json", interleaved("0.jpg")), special("k.0.jpg", tarfile.FIFOTYPE)], "member"),
    # Images
    "60,000 x 60,000 pixels": (with_image(png(60_000, 60_000), "0.png"), "pixels"),
    "9,000 x 9,000 pixels": (with_image(png(9_000, 9_000), "0.png"), "pixels"),
    "a canvas of 16,384 x 16,384": (with_image(vp8x(16_384, 16_384), "0.webp"), CANVAS),
    "a PNG's compressed text": (with_image(png(8, 6, ZTXT), "0.png"), "image"),
    "a PNG's international text": (with_image(png(8, 6, ITXT), "0.png"), "image"),
    "two hundred texts in a PNG": (with_image(png(8, 6, MANY), "0.png"), "image"),
    "a PNG's colour profile": (with_image(png(8, 6, ICCP), "0.png"), "image"),
    "thousands of colour profiles in a PNG": (with_image(png(8, 6, SMALL_ICCP * 5000), "0.png"), "image"),
    "EXIF that claims 300 MB": (with_image(with_segments(picture("JPEG"), exif_bomb(5000, 60_000))), "image"),
    "EXIF that claims 4 GB": (with_image(with_segments(picture("JPEG"), exif_bomb(20_000, 200_000))), "image"),
    "EXIF of a PNG": (with_image(png(8, 6, chunk(b"eXIf", exif_bomb(20_000, 200_000)[6:])), "0.png"), "image"),
    "EXIF in a PNG's text": (with_image(png(8, 6, RAW_EXIF), "0.png"), "image"),
    "a JPEG that claims more pictures": (with_image(with_pictures(picture("JPEG"), 5000)), None),
    "a JPEG of thousands of scans": (with_image(scans(5000)), "image"),
    "thousands of scans behind a decoy": (with_image(hidden_scans(5000)), "image"),
    "SVG": (with_image(SVG), "image"),
    "EPS": (with_image(EPS), "image"),
    "a GIF": (with_image(picture("GIF", "P")), "image"),
    "half a JPEG": (with_image(picture("JPEG", size=(64, 64))[:-90]), "image"),
    "an empty image": (with_image(b""), "image"),
    "an animated WebP": (with_image(animated("WEBP"), "0.webp"), None),
    "an animated PNG": (with_image(animated("PNG"), "0.png"), None),
    "CMYK": (with_image(picture("JPEG", "CMYK")), None),
    "sixteen bits": (with_image(picture("PNG", "I;16"), "0.png"), None),
    "a palette": (with_image(picture("PNG", "P"), "0.png"), None),
    # JSON
    "deep lists": ([("k.json", b"[" * 200_000)], "json"),
    "deep objects": ([("k.json", b'{"images": [], "texts": [], "meta":' + b'{"a":' * 500 + b"1" + b"}" * 501)], "json"),
    "nested beyond the limit": ([("k.json", interleaved(meta={"a": json.loads("[" * 40 + "]" * 40)}))], "json"),
    "NaN": ([("k.json", b'{"images": [null], "texts": ["a"], "meta": {"similarity": NaN}}')], "json"),
    "infinity": ([("k.json", b'{"images": [null], "texts": ["a"], "meta": {"similarity": 1e999}}')], "json"),
    "half of a surrogate pair": ([("k.json", interleaved(texts=["a\ud800"]))], "text"),
    "half of a pair in meta": ([("k.json", interleaved(meta={"url": "\udc00"}))], "text"),
    "bytes that are no text": ([("k.json", b'{"images": [null], "texts": ["\xed\xa0\x80"]}')], "json"),
    "a field twice": ([("k.json", b'{"images": [null], "texts": ["a"], "texts": ["b"]}')], "duplicate"),
    "a text that is none": ([("k.json", interleaved(texts=[3]))], "text"),
    "a very long text": ([("k.json", interleaved(texts=["x" * 1_000_001]))], "text"),
    "too many images": ([("k.json", interleaved(*["0.jpg"] * 257)), ("k.0.jpg", picture("JPEG"))], "images"),
    "json of 5 MB": ([("k.json", interleaved() + b" " * 5 * 2**20)], "bytes"),
    "many empty lists": ([("k.json", b"[" + b"[]," * 100_000 + b"[]]")], "layout"),
    "long integers": ([("k.json", b"[" + b"9" * 10**6 + b"]")], "json"),
    "no interleaved document": ([("k.json", b'{"caption": "a cat"}'), ("k.jpg", picture("JPEG"))], "layout"),
    "lists of other lengths": ([("k.json", b'{"images": [null], "texts": ["a", "b"]}')], "layout"),
    # Members
    "a member twice": ([("k.json", interleaved()), ("k.json", interleaved())], "duplicate"),
    "a member twice in other case": ([*with_image(picture("JPEG")), ("k.0.JPG", picture("JPEG"))], "duplicate"),
    "odd bytes in the key": ([("k\udcff\x1b[2J.json", interleaved())], None),
}  # fmt: skip


def write(path: Path, members: list[Member]) -> Path:
    """A tar of the members, in the format that keeps any bytes of a name."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, errors="surrogateescape") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return path


def between_good_ones(members: list[Member]) -> list[Member]:
    """The sample with a whole one before and behind it."""
    return [("before.json", interleaved()), *members, ("behind.json", interleaved())]
