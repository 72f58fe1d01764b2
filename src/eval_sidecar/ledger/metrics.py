"""Parses a ``metrics.json``: the numbers that a curve can show, and what else is in it. No I/O."""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Optional

from eval_sidecar.errors import ResultError
from eval_sidecar.types import RESERVED

#: A number as in JSON, also with a plus, a leading zero or a bare point. Python would also take
#: ``1_000``; ``50%`` and ``0,5`` mean different things to different people.
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_NOT_FINITE = re.compile(r"[+-]?(?:nan|inf|infinity)", re.IGNORECASE)
#: A timestamp: a number, but not a metric. By the words of the last part of a name.
_TIMESTAMP = re.compile(
    r"([^_].*_)?(date|datetime|timestamp)|(start|begin|end|finish|current|unix)_time|time_?stamp.*"
    r"|(created|updated|started|finished|completed|evaluated|ended|saved)_(at|on)"
)
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
#: Objects that say how an evaluation was set up, as lm-eval and others write them beside their results.
_SETTINGS = frozenset({"config", "configs", "versions", "n-shot", "n-samples", "higher_is_better"})
#: An object below the top with more members is data (a row for each user, say).
_LARGEST_OBJECT = 1000
#: How many names of left-out values are kept.
_MOST_NAMES = 20

#: Stands for a value that is not taken, since another has the same name.
_OTHER_VALUE = object()


class _Repeating(dict[str, Any]):
    """An object with duplicate names and different values: keeps the last of each, as JSON readers do."""

    repeated: tuple[str, ...] = ()


def _as_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    repeating = _Repeating(found)
    repeating.repeated = tuple({name: None for name, item in pairs if item != found[name]})
    return repeating


#: Whole numbers as floats: some versions refuse a very long one, and the others would be lost with it.
_decode = json.JSONDecoder(parse_int=float, object_pairs_hook=_as_object).decode
#: Ends a reason that shows the number itself.
NOT_FINITE = "not finite"


class Reading(NamedTuple):
    """The parsed content of a file.

    Attributes:
        metrics: Finite numbers by name, in the file's order; names of nested objects are joined by ``/``.
        left_out: What is not a metric, each as ``name (reason)``.
    """

    metrics: dict[str, float]
    left_out: tuple[str, ...]


def parse_metrics(content: bytes) -> Reading:
    """Read the content of a ``metrics.json``, in any Unicode encoding, with or without a byte order mark.

    A number in text counts as one. Text, lists, true, false, null, numbers that are not finite, timestamps,
    names that a point's row uses for something else, and names that are not Unicode are left out.

    Raises:
        ResultError: if it is empty, is not a JSON object, or has no finite number. The text does not name the
            file.
    """
    try:
        # Text in another encoding (a Windows code page) must not hide the numbers beside it.
        text = content.decode(json.detect_encoding(content), "surrogateescape").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise ResultError(f"cannot be read ({error})") from error
    if not text.strip("\ufeff \t\r\n\0"):
        raise ResultError(f"is empty ({len(content)} bytes)")
    try:
        value = _decode(text)
    except (ValueError, RecursionError) as error:
        raise ResultError(f"is not valid JSON ({error}); was its writer interrupted?") from error
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
        number = item if type(item) is float else _number(item)
        reason = _why_not_a_metric(name) if number is not None else _kind_of(item)
        if reason is None and number is not None and not math.isfinite(number):
            reason = f"{number}, {NOT_FINITE}"
        if item is _OTHER_VALUE or name in metrics:
            if item is _OTHER_VALUE or number != metrics[name]:
                left_out[name] = "duplicate name"
        elif reason is not None:
            left_out[name] = reason
        elif number is not None:
            metrics[name] = number
    return metrics, left_out


def _leaves(value: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield every value by its joined name, without the objects that are searched; top levels first.

    Not recursive: a file may be nested deeper than Python's recursion limit.
    """
    waiting = [("", value)]
    while waiting:
        prefix, found = waiting.pop(0)
        for key, item in found.items():
            name = prefix + key
            if isinstance(item, dict) and key not in _SETTINGS and len(item) <= _LARGEST_OBJECT:
                waiting.append((f"{name}/", item))
            else:
                yield name, item
        yield from ((prefix + key, _OTHER_VALUE) for key in getattr(found, "repeated", ()))


def _number(item: Any) -> Optional[float]:  # noqa: ANN401 - any value of JSON, its numbers as floats
    if not isinstance(item, str):
        return None
    text = item.strip()
    return float(text) if _NUMBER.fullmatch(text) or _NOT_FINITE.fullmatch(text) else None


def _kind_of(item: Any) -> str:  # noqa: ANN401 - as above
    """Return what kind of value this is, which is not a number."""
    if isinstance(item, dict):
        return f"an object of {len(item)} values" if len(item) > _LARGEST_OBJECT else "settings"
    if isinstance(item, list):
        return f"a list of {len(item)}"
    return {True: "true", False: "false", None: "null"}.get(item, "text")


@functools.lru_cache(maxsize=4096)  # every result of a model has the same names
def _why_not_a_metric(name: str) -> Optional[str]:
    """Return why a number of this name is not a metric; None if it is one."""
    if not name.strip("/ \t\r\n"):
        return "without a name"
    if any("\ud800" <= char <= "\udfff" for char in name):
        return "its name is not Unicode"
    if name in RESERVED:
        return "the sidecar's own name"
    words = re.sub(r"[\s.-]+", "_", _CAMEL.sub("_", name.rpartition("/")[2])).lower()
    return "a timestamp" if _TIMESTAMP.fullmatch(words) else None


def _without_numbers(left_out: Mapping[str, str]) -> str:
    text = "has no number in it" + (f": {', '.join(_named(left_out))}" if left_out else "")
    diverged = any(reason.endswith(NOT_FINITE) for reason in left_out.values())
    return text + ("; did the training diverge?" if diverged else "")


def _named(left_out: Mapping[str, str]) -> list[str]:
    # What is not finite comes first: it is the most important.
    ordered = sorted(left_out.items(), key=lambda pair: not pair[1].endswith(NOT_FINITE))
    named = [f"{name if name.strip() else ascii(name)} ({reason})" for name, reason in ordered[:_MOST_NAMES]]
    more = len(ordered) - len(named)
    return [*named, f"{more} more"] if more else named
