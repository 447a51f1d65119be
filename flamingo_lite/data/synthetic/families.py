"""The families by name. Each draws a document from a generator, and with `in_words` as its painter the text twin."""

from __future__ import annotations

import random
from typing import Protocol

from flamingo_lite.data.synthetic.conversations import (
    captions,
    contrasts,
    many_turns,
    transcripts,
    two_images,
    visual_instructions,
)
from flamingo_lite.data.synthetic.naming import naming
from flamingo_lite.data.synthetic.operators import (
    operator_induction,
    operator_induction_interleaved,
    operator_induction_scrambled,
    rule_induction,
)
from flamingo_lite.data.synthetic.picture import Painter, paint
from flamingo_lite.data.synthetic.reading import reading
from flamingo_lite.data.synthetic.scenes import scenes
from flamingo_lite.document import Document


class Family(Protocol):
    def __call__(self, generator: random.Random, painter: Painter = paint) -> Document: ...


FAMILIES: dict[str, Family] = {
    "operator_induction": operator_induction,
    "operator_induction_interleaved": operator_induction_interleaved,
    "operator_induction_scrambled": operator_induction_scrambled,
    "rule_induction": rule_induction,
    "reading": reading,
    "scenes": scenes,
    "naming": naming,
    "captions": captions,
    "visual_instructions": visual_instructions,
    "two_images": two_images,
    "many_turns": many_turns,
    "contrasts": contrasts,
    "transcripts": transcripts,
}
