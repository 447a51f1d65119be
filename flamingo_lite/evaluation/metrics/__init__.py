"""From a generated text to a score: a metric per file, each equal to the published one that it names.

Metrics of one answer take the text and what is right and return a `Scored`; those of a whole evaluation
(CIDEr-D, BLEU, POPE's figures, ROC-AUC) say so. What every task needs is importable from here.
"""

from flamingo_lite.evaluation.metrics.baselines import copy_rate, majority_baseline
from flamingo_lite.evaluation.metrics.numbers import extract_after_equals, extract_number
from flamingo_lite.evaluation.metrics.scored import (
    Extract,
    GenerationFailure,
    Scored,
    Tally,
    judge,
    score,
    tally,
)

__all__ = [
    "Extract",
    "GenerationFailure",
    "Scored",
    "Tally",
    "copy_rate",
    "extract_after_equals",
    "extract_number",
    "judge",
    "majority_baseline",
    "score",
    "tally",
]
