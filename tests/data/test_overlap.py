"""What is met of planted examples: copies, pictures encoded or sized anew, and quoted words; and what is not."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageFilter
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flamingo_lite.data.overlap import WORDS, Looked, Overlap, OverlapIndex, runs
from flamingo_lite.document import Document, Image, Text

SENTENCE = "a tall man in a red coat feeds two grey birds beside fountains"
QUOTED = SENTENCE.split()
assert len(QUOTED) == WORDS


def picture(number: int, size: int = 96) -> PIL.Image.Image:
    """Blurred blots, as a photograph has them: another picture for each number."""
    blots = np.random.default_rng(number).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    drawn = PIL.Image.fromarray(blots).resize((96, 96), PIL.Image.Resampling.BICUBIC)
    return drawn.filter(PIL.ImageFilter.GaussianBlur(2)).resize((size, size))


def encoded(pixels: PIL.Image.Image, format: str = "PNG", **options: int) -> bytes:
    buffer = io.BytesIO()
    pixels.save(buffer, format=format, **options)
    return buffer.getvalue()


def met(document: list[Image | str], *examples: Looked) -> dict[tuple[int, str], Overlap]:
    index = pickle.loads(pickle.dumps(OverlapIndex(examples)))
    return index.meet(Document(document), "here")


def looked(number: int = 0, text: str = "") -> Looked:
    return Looked([Image(encoded(picture(number)))], [text])


def test_an_exact_copy_of_an_image_is_met_as_such() -> None:
    found = met([Image(encoded(picture(1)))], looked(0), looked(1))
    assert found == {(1, "exact"): Overlap("here")}


@pytest.mark.parametrize(
    "changed",
    [
        encoded(picture(1), "JPEG", quality=60),
        encoded(picture(1, size=64)),
        encoded(picture(1, size=200), "WEBP", quality=80),
    ],
    ids=["encoded anew", "smaller", "larger, as WebP"],
)
def test_an_image_encoded_or_sized_anew_is_met_by_its_looks(changed: bytes) -> None:
    found = met([Image(changed)], looked(0), looked(1))
    assert list(found) == [(1, "perceptual")]
    bits = found[1, "perceptual"].detail
    assert isinstance(bits, int) and 0 <= bits <= 4


def test_another_image_is_not_met() -> None:
    assert met([Image(encoded(picture(number))) for number in range(5, 25)], looked(0), looked(1)) == {}


@pytest.mark.parametrize(
    ("words", "is_met"),
    [
        (QUOTED, True),
        (QUOTED[:-1], False),
        (["The", "caption", "said:", *QUOTED, "and", "so", "on."], True),
        ([word.upper() + "," for word in QUOTED], True),
        ([*QUOTED[:6], "big", *QUOTED[6:]], False),
    ],
    ids=["13 words", "12 words", "within a longer text", "other case and punctuation", "a word between"],
)
def test_thirteen_words_in_a_row_are_an_overlap(words: list[str], is_met: bool) -> None:
    longer = looked(0, "They say that " + " ".join(QUOTED) + ", every morning.")
    found = met(["before", Image(encoded(picture(7))), " ".join(words)], longer)
    assert found == ({(0, "text"): Overlap("here", " ".join(QUOTED))} if is_met else {})


def test_words_on_both_sides_of_an_image_are_no_row() -> None:
    halves = [" ".join(QUOTED[:7]), Image(encoded(picture(7))), " ".join(QUOTED[7:])]
    assert met(halves, looked(0, " ".join(QUOTED))) == {}


def test_all_examples_that_share_an_image_or_words_are_met() -> None:
    text = " ".join(QUOTED)
    found = met([Image(encoded(picture(1))), text], looked(1, text), looked(1, text))
    assert {(number, why) for number, why in found} == {(n, why) for n in (0, 1) for why in ("exact", "text")}


@settings(deadline=None)
@given(text=st.text(max_size=200))
def test_a_text_overlaps_with_itself_exactly_where_it_has_thirteen_words(text: str) -> None:
    index = OverlapIndex([Looked([], [text])])
    assert bool(index.meet(Document([text]), "here")) == bool(runs(text)) == (not Looked([], [text]).is_short)


def test_the_first_meeting_is_kept_and_the_nearest_looks() -> None:
    first = Overlap("a", 3)
    first.add(Overlap("b", 1))
    first.add(Overlap("c", 2))
    assert first == Overlap("b", 1, documents=3)


def test_an_image_that_cannot_be_read_is_named_and_the_rest_of_its_example_looked_for(tmp_path: Path) -> None:
    text = " ".join(map(str, range(13)))
    examples = [
        Looked([Image(b"\x89PNG\r\n\x1a\n"), Image(encoded(picture(1)))], [text]),
        Looked([Image(tmp_path / "nowhere.png")], []),
    ]
    index = OverlapIndex(examples)
    assert list(index.unreadable) == [0, 1] and "nowhere.png" in index.unreadable[1]
    document = Document([Image(encoded(picture(1))), Text(text)])
    assert set(index.meet(document, "here")) == {(0, "exact"), (0, "text")}
