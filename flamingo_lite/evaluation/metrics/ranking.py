"""How well scores rank positives above negatives: ROC-AUC, as Hateful Memes asks for."""

from collections.abc import Sequence

import numpy as np


def roc_auc(labels: Sequence[int | bool], scores: Sequence[float]) -> float | None:
    """The chance that a positive scores above a negative, a tie counting half; None without one of each.

    The Mann-Whitney statistic over ranks, which is the area under the ROC curve (Hanley and McNeil 1982).
    Errors: `ValueError` for unequal lengths or scores that are not finite.
    """
    from scipy.stats import rankdata

    positive = np.asarray(labels, dtype=bool)
    values = np.asarray(scores, dtype=np.float64)
    if len(positive) != len(values):
        raise ValueError(f"{len(values)} scores for {len(positive)} labels")
    if not np.isfinite(values).all():
        raise ValueError("a score is not finite; leave failed predictions out")
    ups = int(positive.sum())
    downs = len(positive) - ups
    if not ups or not downs:
        return None
    return float((rankdata(values)[positive].sum() - ups * (ups + 1) / 2) / (ups * downs))
