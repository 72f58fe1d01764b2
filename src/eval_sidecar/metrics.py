"""The content of a ``metrics.json``: the numbers that a curve can show, and what else is in it. No I/O."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Optional

from eval_sidecar.errors import ResultError
from eval_sidecar.types import RESERVED

#: A number as JSON writes it, give or take a plus, a leading zero or a bare point. Python would also take
#: ``1_000``; ``50%`` and ``0,5`` mean different things to different people.
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_NOT_FINITE = re.compile(r"[+-]?(?:nan|inf|infinity)", re.IGNORECASE)
#: When an evaluation ran: a number, and no metric. By the last part of a name.
_MOMENTS = frozenset({"date", "datetime", "timestamp", "start_time", "end_time", "created_at"})
#: Objects that say how an evaluation was set up, as lm-eval and others write them beside their results.
_SETTINGS = frozenset({"config", "configs", "versions", "n-shot", "n-samples", "higher_is_better"})
#: An object below the top with more members is data (a row for each user, say).
_LARGEST_OBJECT = 1000
#: So many names of what was left out are kept.
_MOST_NAMES = 20
#: In a reason, where the number itself is the news.
NOT_FINITE = "not finite"


class Reading(NamedTuple):
    """What was made of a file.

    Attributes:
        metrics: Finite numbers by name, in the file's order; names of nested objects are joined by ``/``.
        left_out: What is no metric, each as ``name (reason)``.
    """

    metrics: dict[str, float]
    left_out: tuple[str, ...]


def parse_metrics(content: bytes) -> Reading:
    """Read the content of a ``metrics.json``, in any Unicode encoding, with or without a byte order mark.

    A number in text counts as one. Text, lists, true, false, null, numbers that are not finite, moments, and
    names that a point's row has for something else are left out.

    Raises:
        ResultError: where it is empty, no JSON object, or has no finite number. The text does not name the
            file.
    """
    try:
        # -sig takes the mark away where there is one, which json leaves to its caller.
        encoding = json.detect_encoding(content)
        text = content.decode("utf-8-sig" if encoding == "utf-8" else encoding)
    except UnicodeDecodeError as error:
        raise ResultError(f"cannot be read ({error})") from error
    if not text.strip("\ufeff \t\r\n\0"):
        raise ResultError(f"is empty ({len(content)} bytes)")
    try:
        # As floats, since an integer of absurd length is refused by some versions, and cost the others.
        value = json.loads(text, parse_int=float)
    except (ValueError, RecursionError) as error:
        raise ResultError(f"is no valid JSON ({error}); was its writer interrupted?") from error
    if not isinstance(value, dict):
        raise ResultError(f"holds a JSON {type(value).__name__}, not an object of numbers")
    metrics, left_out = _sort_out(value)
    if not metrics:
        raise ResultError(_without_numbers(left_out))
    return Reading(metrics, tuple(_named(left_out)))


def _sort_out(value: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, str]]:
    metrics: dict[str, float] = {}
    left_out: dict[str, str] = {}
    for name, item in _leaves(value):
        number = _number(item)
        reason = _reason(name, item, number)
        if name in metrics:
            left_out[name] = "there twice"
        elif reason is not None:
            left_out[name] = reason
        elif number is not None:
            metrics[name] = number
    return metrics, left_out


def _leaves(value: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every value that is no object to look into, by its joined name; those at the top come first.

    Not recursive: a file may be nested deeper than functions may call each other.
    """
    waiting = [("", value)]
    while waiting:
        prefix, found = waiting.pop(0)
        for key, item in found.items():
            name = prefix + key
            enter = isinstance(item, dict) and key not in _SETTINGS and len(item) <= _LARGEST_OBJECT
            if enter:
                waiting.append((f"{name}/", item))
            else:
                yield name, item


def _number(item: Any) -> Optional[float]:  # noqa: ANN401 - any value of JSON
    if isinstance(item, bool):
        return None
    if isinstance(item, float):
        return item
    if isinstance(item, str):
        text = item.strip()
        return float(text) if _NUMBER.fullmatch(text) or _NOT_FINITE.fullmatch(text) else None
    return None


def _reason(name: str, item: Any, number: Optional[float]) -> Optional[str]:  # noqa: ANN401 - as above
    """Why a value is no metric; None where it is one."""
    if isinstance(item, dict):
        data = len(item) > _LARGEST_OBJECT
        return f"an object of {len(item)} values" if data else "settings"
    if isinstance(item, list):
        return f"a list of {len(item)}"
    if number is None:
        return {True: "true", False: "false", None: "null"}.get(item, "text")
    if not name.strip("/"):
        return "without a name"
    if name in RESERVED:
        return "the sidecar's own name"
    if name.rpartition("/")[2].lower() in _MOMENTS:
        return "a moment"
    return None if math.isfinite(number) else f"{number}, {NOT_FINITE}"


def _without_numbers(left_out: Mapping[str, str]) -> str:
    text = "has no number in it" + (f": {', '.join(_named(left_out))}" if left_out else "")
    diverged = any(reason.endswith(NOT_FINITE) for reason in left_out.values())
    return text + ("; did the training diverge?" if diverged else "")


def _named(left_out: Mapping[str, str]) -> list[str]:
    # What is not finite comes first: it is what somebody has to know.
    ordered = sorted(left_out.items(), key=lambda pair: not pair[1].endswith(NOT_FINITE))
    named = [f"{name} ({reason})" for name, reason in ordered[:_MOST_NAMES]]
    more = len(ordered) - len(named)
    return [*named, f"{more} more"] if more else named
