"""Documents: identity, immutability, and images decoded right or refused by name."""

import io
import pickle
import random
import struct
import zlib

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import flamingo_lite.document as document_module
from flamingo_lite.document import Document, Image, Text, decode_image, image_format
from flamingo_lite.errors import FlamingoError, SampleError


def encoded(image: PIL.Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(width: int = 12, height: int = 8, seed: int = 0) -> PIL.Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return PIL.Image.fromarray(values)


def test_an_error_is_one_line() -> None:
    assert str(FlamingoError("found\n  this; expected\tthat")) == "found this; expected that"


def test_a_str_becomes_a_text_and_segments_keep_their_order() -> None:
    image = Image(noise())
    document = Document([image, "a", Text("b", loss=False)])
    assert list(document) == [image, Text("a"), Text("b", loss=False)]
    assert document.images == (image,)
    assert document.texts == (Text("a"), Text("b", loss=False))


@pytest.mark.parametrize("segments", ["just text", [3], [None], [["a"]]])
def test_a_segment_of_another_type_is_refused(segments: object) -> None:
    with pytest.raises(FlamingoError):
        Document(segments)  # type: ignore[arg-type]  # the wrong type is the point


def test_a_document_does_not_change_with_the_meta_it_was_made_from() -> None:
    meta = {"a": 1}
    document = Document(["x"], meta)
    meta["a"] = 2
    assert document.meta == {"a": 1}
    with pytest.raises(TypeError):
        document.meta["a"] = 3  # type: ignore[index]  # read-only is the point


def test_documents_are_equal_by_segments_and_meta() -> None:
    assert Document(["a"], {"k": 1}) == Document([Text("a")], {"k": 1}, name="elsewhere")
    assert Document(["a"], {"k": 1}) != Document(["a"], {"k": 2})
    assert Document(["a"]) != Document([Text("a", ends_chunk=True)])
    assert hash(Document(["a"])) == hash(Document(["a"]))


def test_a_slice_is_a_document_with_the_same_meta() -> None:
    document = Document(["a", "b", "c"], {"k": 1}, name="n")
    assert document[1:] == Document(["b", "c"], {"k": 1})
    assert document[1:].name == "n"


def test_a_document_survives_pickling() -> None:
    document = Document([Image(noise(), words="noise"), "a"], {"k": [1]})
    copy = pickle.loads(pickle.dumps(document))
    assert copy == document
    assert copy.images[0].words == "noise"


def test_the_text_twin_says_what_the_images_show_and_is_not_trained_on_it() -> None:
    twin = Document([Image(noise(), words="3 ? 5"), Text(" = 8", ends_chunk=True)], {"k": 1}).text_twin()
    assert twin == Document([Text("[3 ? 5]", loss=False), Text(" = 8", ends_chunk=True)], {"k": 1})


def test_an_image_without_words_has_no_text_twin() -> None:
    with pytest.raises(FlamingoError, match="no words"):
        Document([Image(noise())]).text_twin()


def test_an_image_is_the_same_from_a_path_and_from_bytes(tmp_path) -> None:
    data = encoded(noise(), "JPEG")
    path = tmp_path / "a b.jpg"
    path.write_bytes(data)
    assert Image(path) == Image(str(path)) == Image(data, words="other words")
    assert len({Image(path), Image(data)}) == 1
    assert Image(path).data == data


def test_the_id_of_a_pil_image_depends_on_its_pixels_alone() -> None:
    image = noise()
    tagged = image.copy()
    tagged.info["icc_profile"] = b"profile"
    tagged.info["dpi"] = (300, 300)
    assert Image(image).id == Image(tagged).id
    assert Image(image).id != Image(noise(seed=1)).id


def test_a_pil_image_that_changes_later_does_not_change_its_image() -> None:
    source = noise()
    image = Image(source)
    before = image.id
    source.paste("red", (0, 0, 4, 4))
    assert Image(image.data).id == before
    assert np.array_equal(np.array(image.pil()), np.array(noise()))


@pytest.mark.parametrize("kind, name", [("PNG", "png"), ("JPEG", "jpg"), ("WEBP", "webp")])
def test_the_three_formats_decode_as_pillow_decodes_them(kind: str, name: str) -> None:
    data = encoded(noise(), kind)
    assert image_format(data) == name
    assert np.array_equal(
        np.array(Image(data).pil()), np.array(PIL.Image.open(io.BytesIO(data)).convert("RGB"))
    )


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "PPM", "ICO"])
def test_other_formats_are_refused(kind: str) -> None:
    with pytest.raises(FlamingoError, match="expected JPEG, PNG or WebP"):
        Image(encoded(noise(16, 16), kind)).pil()


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "HSV", "I", "F", "I;16"])
def test_an_opaque_mode_becomes_rgb(mode: str) -> None:
    white = PIL.Image.new("RGB", (4, 4), "white")
    source = (
        PIL.Image.new("I;16", (4, 4), 65535)
        if mode == "I;16"
        else white.convert("L" if mode in "IF" else mode)
    )
    if mode in "IF":
        source = source.convert(mode)
    image = Image(source).pil()
    assert image.mode == "RGB"
    assert np.array(image).min() >= 254


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_transparency_is_laid_over_white(mode: str, kind: str) -> None:
    clear = PIL.Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    source = clear.quantize(4) if mode == "P" else clear.convert(mode)
    image = Image(encoded(source, kind, **({"lossless": True} if kind == "WEBP" else {}))).pil()
    assert image.getpixel((1, 1)) == (255, 255, 255)


def test_a_palette_with_one_transparent_entry_is_laid_over_white() -> None:
    source = PIL.Image.new("P", (2, 1))
    source.putpalette([255, 0, 0, 0, 0, 255])
    source.putdata([0, 1])
    image = Image(encoded(source, "PNG", transparency=1)).pil()
    assert [image.getpixel((x, 0)) for x in (0, 1)] == [(255, 0, 0), (255, 255, 255)]


def test_half_transparent_black_is_grey() -> None:
    image = Image(PIL.Image.new("RGBA", (2, 2), (0, 0, 0, 128))).pil()
    assert image.getpixel((0, 0)) == (127, 127, 127)


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    source = PIL.Image.fromarray(np.array([[0, 32768, 65535]], dtype=np.uint16))
    assert np.array(Image(source).pil())[0, :, 0].tolist() == [0, 127, 255]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 99), st.integers(1, 20), st.integers(1, 20), st.sampled_from(["PNG", "WEBP"]))
def test_transparency_of_any_degree_is_laid_over_white(seed: int, width: int, height: int, kind: str) -> None:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 4), dtype=np.uint8)
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    found = np.array(Image(encoded(PIL.Image.fromarray(values), kind, **options)).pil()).astype(float)
    alpha = values[..., 3:] / 255
    assert np.abs(found - (values[..., :3] * alpha + 255 * (1 - alpha))).max() <= 1


@pytest.mark.parametrize("key", [0, 3, 300, 65535])
def test_sixteen_bit_grey_keeps_its_transparent_value(key: int) -> None:
    source = PIL.Image.fromarray(np.array([[key, 1000]], dtype=np.uint16))
    chunk = b"tRNS" + struct.pack(">H", key)
    data = encoded(source, "PNG")
    body = data.index(b"IDAT") - 4
    data = data[:body] + struct.pack(">I", 2) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[body:]
    assert np.array(Image(data).pil())[0, :, 0].tolist() == [255, 1000 // 257]


def test_the_four_inks_of_a_jpeg_become_rgb() -> None:
    inks = np.random.default_rng(0).integers(0, 256, (8, 8, 4), dtype=np.uint8)
    data = encoded(PIL.Image.fromarray(inks, mode="CMYK"), "JPEG", quality=100)
    stored = np.array(PIL.Image.open(io.BytesIO(data))).astype(float)
    found = np.array(Image(data).pil()).astype(float)
    # Each ink takes its part of the light, and so does black, the fourth.
    assert np.abs(found - (255 - stored[..., :3]) * (255 - stored[..., 3:]) / 255).max() <= 1.01


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_undone(orientation: int, kind: str) -> None:
    upright = np.full((8, 16, 3), 255, dtype=np.uint8)
    upright[:4, :8] = 0  # the top left quarter
    # What the tag says of the stored rows and columns (EXIF 2.3, 4.6.4 A); 6: row 0 is the visual right.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: upright[:, ::-1].swapaxes(0, 1),
        7: upright[::-1, ::-1].swapaxes(0, 1),
        8: upright[::-1].swapaxes(0, 1),
    }[orientation]
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(PIL.Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif, **options)
    for source in (data, PIL.Image.open(io.BytesIO(data))):
        image = Image(source).pil()
        assert image.size == (16, 8)
        assert max(image.getpixel((2, 1))) < 30 and min(image.getpixel((13, 6))) > 225
        assert min(image.getpixel((13, 1))) > 225 and min(image.getpixel((2, 6))) > 225


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_an_upright_image_is_not_turned_again(kind: str) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    upright = Image(encoded(noise(16, 8), kind, exif=exif)).pil()
    assert upright.size == (8, 16)
    assert Image(upright).pil().tobytes() == upright.tobytes()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_a_truncated_image_is_an_error_not_a_grey_picture(kind: str, part: float) -> None:
    data = encoded(noise(64, 64), kind)
    with pytest.raises(FlamingoError, match="not a"):
        Image(data[: int(len(data) * part)]).pil()


# Smaller decoding, for training


@settings(max_examples=60, deadline=None)
@given(*[st.integers(1, 90)] * 2, *[st.integers(1, 40)] * 2, st.sampled_from([1, 3, 6, 8]))
def test_a_jpeg_is_decoded_at_the_smallest_part_that_covers_what_is_wanted(
    width: int, height: int, at_least_width: int, at_least_height: int, orientation: int
) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    stored = (height, width) if orientation >= 5 else (width, height)
    image = Image(encoded(noise(*stored), "JPEG", exif=exif))
    found = image.pil(at_least=(at_least_width, at_least_height)).size
    fits = [n for n in (1, 2, 4, 8) if width // n >= at_least_width and height // n >= at_least_height]
    part = max(fits, default=1)
    assert found == (-(-width // part), -(-height // part))


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_formats_without_parts_are_decoded_whole(kind: str) -> None:
    image = Image(encoded(noise(64, 64), kind))
    assert image.pil(at_least=(8, 8)).tobytes() == image.pil().tobytes()


def test_the_four_inks_of_a_smaller_decoded_jpeg_become_rgb() -> None:
    image = Image(encoded(PIL.Image.new("CMYK", (64, 64), (0, 255, 0, 0)), "JPEG"))
    found = np.array(image.pil(at_least=(16, 16)))
    assert found.shape == (16, 16, 3) and np.abs(found.astype(int) - (255, 0, 255)).max() <= 2


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_a_truncated_jpeg_is_an_error_when_it_is_decoded_smaller(part: float) -> None:
    data = encoded(noise(64, 64), "JPEG")
    with pytest.raises(FlamingoError, match="not a"):
        Image(data[: int(len(data) * part)]).pil(at_least=(8, 8))


def test_the_limit_of_pixels_counts_those_of_the_whole_image() -> None:
    with pytest.raises(FlamingoError, match="4,096 pixels"):
        Image(encoded(noise(64, 64), "JPEG"), max_pixels=64 * 64 - 1).pil(at_least=(8, 8))


@pytest.mark.filterwarnings("ignore")  # Pillow warns of damaged EXIF, then reads on
@settings(max_examples=80, deadline=None)
@given(st.sampled_from(["JPEG", "PNG", "WEBP"]), st.integers(0, 2**32))
def test_a_damaged_image_decodes_or_fails_by_name(kind: str, seed: int) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    data = bytearray(encoded(noise(20, 20), kind, exif=exif))
    generator = random.Random(seed)
    for _ in range(generator.randint(1, 8)):
        data[generator.randrange(12, len(data))] = generator.randrange(256)
    try:
        assert Image(bytes(data), name="the picture").pil().mode == "RGB"
    except FlamingoError as error:
        assert str(error).startswith("the picture:")


def test_marks_of_scans_behind_a_jpeg_that_has_one_change_nothing() -> None:
    data = encoded(noise(20, 20), "JPEG")
    assert Image(data + b"\xff\xda" * 1000).pil().tobytes() == Image(data).pil().tobytes()


@pytest.mark.parametrize("is_progressive", [True, False])
def test_a_jpeg_that_may_have_many_scans_is_refused(is_progressive: bool) -> None:
    data = bytearray(encoded(noise(20, 20), "JPEG"))
    start = data.index(b"\xff\xda")
    if is_progressive:
        data[data.index(b"\xff\xc0") + 1] = 0xC2
    else:  # its first scan holds one component of three, so libjpeg would go on to the next
        data[start + 4] = 1
    with pytest.raises(FlamingoError, match="scans, above the limit"):
        Image(bytes(data) + b"\xff\xda" * 1000).pil()


def test_too_many_pixels_are_refused_before_decoding() -> None:
    data = encoded(noise(64, 64), "PNG")
    # Truncated after the header: only a check that comes before decoding can name the size.
    with pytest.raises(FlamingoError, match="4,096 pixels"):
        Image(data[:100], max_pixels=64 * 64 - 1).pil()


def test_a_decompression_bomb_is_an_error() -> None:
    header = b"IHDR" + struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    bomb += struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    with pytest.raises(FlamingoError, match="pixels"):
        Image(bomb).pil()


def test_what_is_no_image_is_refused_by_its_path(tmp_path) -> None:
    path = tmp_path / "notes.jpg"
    path.write_text("not a picture")
    with pytest.raises(FlamingoError, match="notes.jpg"):
        Image(path).pil()


@pytest.mark.parametrize("name", ["missing.png", ".", "a\0b"])
def test_a_path_that_cannot_be_read_is_named(name: str, tmp_path) -> None:
    with pytest.raises(FlamingoError, match=tmp_path.name):
        _ = Image(tmp_path / name).data


def test_a_file_above_the_size_limit_is_not_read(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large.png"
    path.write_bytes(encoded(noise(), "PNG"))
    monkeypatch.setattr(document_module, "MAX_BYTES", 10)
    with pytest.raises(FlamingoError, match="above the limit"):
        _ = Image(path).data


def test_a_pil_image_without_pixels_is_refused() -> None:
    with pytest.raises(FlamingoError, match="0 x 4"):
        Image(PIL.Image.new("RGB", (0, 4)))


def test_a_missing_path_is_noticed_only_when_the_bytes_are_needed(tmp_path) -> None:
    document = Document([Image(tmp_path / "later.png")])
    assert "later.png" in repr(document)


def test_a_damaged_header_is_refused_in_the_same_words_at_every_reading() -> None:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (8, 8)).save(buffer, format="PNG")
    damaged = buffer.getvalue()[:8] + bytes(52)
    for _ in range(2):
        with pytest.raises(SampleError, match=r"^x: not a readable image \(its header is damaged\)$"):
            decode_image(damaged, "x")


def test_bytes_that_are_not_kept_are_read_anew_and_the_id_stays(tmp_path) -> None:
    path = tmp_path / "a.png"
    PIL.Image.new("RGB", (2, 2), "red").save(path)
    kept, read_anew = Image(path), Image(path, keeps_data=False)
    assert kept.data == read_anew.data and kept.id == read_anew.id and kept == read_anew
    path.unlink()
    assert kept.pil().size == (2, 2) and read_anew.id == kept.id
    with pytest.raises(SampleError, match=r"a\.png"):
        read_anew.pil()
