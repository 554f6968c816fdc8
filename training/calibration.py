"""Does the shaped reward rank episodes as the official score does?

>>> rank_correlation([0.1, 0.5, 0.9], [0.0, 0.0, 1.0])
0.866…
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Spearman's ρ, equal values sharing their mean rank; in [-1, 1]. None where it does not exist: either is constant."""
    ranks = [_ranks(np.asarray(values, float)) for values in (a, b)]
    if any(len(np.unique(r)) < 2 for r in ranks):
        return None
    return float(np.clip(np.corrcoef(ranks[0], ranks[1])[0, 1], -1.0, 1.0))


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]
