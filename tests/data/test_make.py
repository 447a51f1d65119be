"""Drawing documents of a mixture: pure functions of their number, and text twins in their share."""

import pytest

from flamingo_lite.data.make import DataConfig, draw_document, draw_documents
from flamingo_lite.document import Image
from flamingo_lite.errors import FlamingoError

FAMILIES = {"operator_induction": 1.0, "reading": 1.0}


def test_a_document_does_not_depend_on_those_before_it() -> None:
    config = DataConfig(families=FAMILIES, text_twins=0.3, samples=12, workers=1)
    drawn = list(draw_documents(config))
    assert drawn[7] == draw_document(7, 0, FAMILIES, 0.3)


def test_text_twins_have_no_picture_and_come_in_their_share() -> None:
    without, mixed = ([draw_document(i, 0, FAMILIES, share)[1] for i in range(200)] for share in (0.0, 0.25))
    assert all(any(isinstance(segment, Image) for segment in document) for document in without)
    in_words = [i for i, document in enumerate(mixed) if not any(isinstance(s, Image) for s in document)]
    assert 30 <= len(in_words) <= 70
    for i, document in enumerate(mixed):
        assert document == (without[i].text_twin() if i in in_words else without[i])


def test_a_share_outside_0_to_1_is_refused() -> None:
    with pytest.raises(FlamingoError, match=r"data\.text_twins is 1\.5"):
        DataConfig(text_twins=1.5)
