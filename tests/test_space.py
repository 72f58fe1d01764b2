"""Sizes and shares as flags give them."""

from __future__ import annotations

import pytest

from eval_sidecar.checkpoints.space import Limits, Room, as_text, parse_amount
from eval_sidecar.errors import UsageError


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("1048576", 1048576),
        ("0", 0),
        ("20G", 20 * 2**30),
        ("20GiB", 20 * 2**30),
        ("1.5t", 1.5 * 2**40),
        ("500 MB", 500 * 2**20),
        ("5%", 0.05),
        ("0%", 0.0),
    ],
)
def test_an_amount_is_a_size_or_a_share(text, amount):
    parsed = parse_amount(text)
    assert parsed == amount
    assert isinstance(parsed, float) is text.endswith("%")


@pytest.mark.parametrize("text", ["", "many", "-5G", "5X", "100%", "-1%", "%", "nan%", "1e3"])
def test_an_amount_that_is_neither_is_a_usage_error_that_repeats_it(text):
    with pytest.raises(UsageError, match="'" + text):
        parse_amount(text)


@pytest.mark.parametrize(("floor", "short"), [(100, False), (101, True), (0.1, False), (0.11, True)])
def test_space_is_short_below_the_floor_whether_size_or_share(floor, short):
    assert bool(Room(100, 1000).lack(floor, 0)) is short


@pytest.mark.parametrize(("largest", "short"), [(66, False), (67, True)])
def test_space_is_short_if_the_trainings_next_checkpoint_might_not_fit(largest, short):
    assert bool(Room(100, 1000).lack(0, largest)) is short


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (Limits(size=1.0), ""),
        (Limits(most=3, size=1.0), ""),
        (Limits(most=2, size=1.0), "there are more pins than --max-pins (2)"),
        (Limits(size=300), ""),
        (Limits(size=299), "pins take more than --max-pin-size (300 B of 299 B)"),
        (Limits(size=0.75), ""),
        (Limits(size=0.74), "pins take more than --max-pin-size (300 B of 296 B)"),
    ],
)
def test_a_share_for_pins_is_of_what_would_be_free_without_them(limits, reason):
    assert Room(100, 1000).excess(limits, 3, 300) == reason


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (6_170_000_000, "6.2 GB"), (2.5e12, "2.5 TB")]
)
def test_a_size_is_told_in_the_unit_that_people_use(size, text):
    assert as_text(size) == text
