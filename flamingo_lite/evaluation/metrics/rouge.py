"""ROUGE-L of one text against references, as the `rouge-score` package has it: an F1 over plain words.

COCO's captions are scored by another ROUGE-L, which is in `captions.py`.
"""

import re
from collections.abc import Sequence

from flamingo_lite.evaluation.metrics.captions import common_subsequence
from flamingo_lite.evaluation.metrics.strings import require_targets

_OTHER = re.compile(r"[^a-z0-9]+")


def rouge_l_f1(text: str, references: Sequence[str]) -> float:
    """The best F1 over references of the longest common subsequence of words (Lin 2004), without stemming.

    A word is a run of ASCII letters and digits after lowering; a text without one scores 0.
    """
    return max(
        _f1(_OTHER.sub(" ", text.lower()).split(), reference) for reference in require_targets(references)
    )


def _f1(words: list[str], reference: str) -> float:
    wanted = _OTHER.sub(" ", reference.lower()).split()
    common = common_subsequence(wanted, words) if words and wanted else 0
    if not common:
        return 0.0
    precision, recall = common / len(words), common / len(wanted)
    return 2 * precision * recall / (precision + recall)
