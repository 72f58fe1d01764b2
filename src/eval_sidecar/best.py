"""Which metrics have a best, which way is better, and which step is best."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Literal, Optional

#: The metrics of a recommender that have a best, and that the run's summary follows.
HEADLINE = ("HR@10", "NDCG@10")


def best_step(metrics_by_step: Mapping[int, Mapping[str, float]], metric: str) -> Optional[int]:
    """Return the step with the highest value of a metric, the earliest of several; None if none has it."""
    steps = [step for step, found in metrics_by_step.items() if math.isfinite(found.get(metric, math.nan))]
    return max(steps, key=lambda step: (metrics_by_step[step][metric], -step), default=None)


#: Which way a metric is better; unknown shows no best.
Direction = Literal["min", "max", "unknown"]


_LOWER_IS_BETTER = frozenset({"loss", "perplexity", "ppl", "wer", "cer", "error", "errors"})


#: Words at the end of a name that say how the numbers were summed up, not what they measure.
_SUMMED_UP = frozenset({"rate", "mean", "avg", "average"})


_WORDS = re.compile(r"[A-Z]*[a-z]+|[A-Z]+", re.ASCII)


def direction_of(name: str) -> Direction:
    """Return which way a metric is better, if its name tells: ``min`` for losses and errors, else unknown.

    The last word of the name's last part decides: ``eval_loss``, ``wikitext/word_perplexity``, ``evalLoss``
    and ``word_error_rate`` are better if lower; ``loss_free`` says nothing.
    """
    words = [word.lower() for word in _WORDS.findall(name.rpartition("/")[2])]
    meant = [word for word in words if word not in _SUMMED_UP]
    return "min" if meant and meant[-1] in _LOWER_IS_BETTER else "unknown"
