"""HR@K and NDCG@K of ranked lists. No I/O, no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

#: The K that are reported, as far as there are beams for them.
CUTOFFS = (1, 3, 5, 10, 20, 50)


def compute_metrics(
    ranked: Sequence[Sequence[int]], targets: Sequence[int | None], num_beams: int
) -> dict[str, float]:
    """Return ``{"HR@1": …, "NDCG@1": …, "HR@3": …}``, rounded to 4 digits.

    HR@K is the share of rows whose target is among the first K. With one relevant item a row, NDCG@K is
    the mean of ``1 / log2(rank + 1)``, rank counted from 1, and 0 if the target is not among the first K.

    Args:
        ranked: For each row the items by falling score, each as its place in the index.
        targets: For each row the target's place in the index; None (not an item) is a miss.
        num_beams: Length of the ranked lists; no K beyond it is reported.
    """
    ranks = [_rank(row, target) for row, target in zip(ranked, targets)]
    metrics: dict[str, float] = {}
    for cutoff in CUTOFFS:
        if cutoff > num_beams:
            break
        found = [rank for rank in ranks if rank is not None and rank <= cutoff]
        metrics[f"HR@{cutoff}"] = round(len(found) / len(ranks), 4)
        metrics[f"NDCG@{cutoff}"] = round(sum(1 / math.log2(rank + 1) for rank in found) / len(ranks), 4)
    return metrics


def _rank(items: Sequence[int], target: int | None) -> int | None:
    """Return the target's rank from 1, or None."""
    if target is None:
        return None
    try:
        return items.index(target) + 1
    except ValueError:
        return None
