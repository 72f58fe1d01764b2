"""Closed sets of words: they are shown, saved and compared as the words that they are."""

from __future__ import annotations

import json

import pytest

from eval_sidecar.system.files import encode
from eval_sidecar.types import Completeness, DeliveryStatus, JobPhase

WORDS = [*Completeness, *DeliveryStatus, *JobPhase]


@pytest.mark.parametrize("word", WORDS)
def test_a_word_is_shown_as_its_value_on_every_python(word):
    assert [f"{word}", str(word), f"{word:>12}".strip(), "%s" % word, "-".join([word])] == [word.value] * 5  # noqa: UP031


@pytest.mark.parametrize("word", WORDS)
def test_a_word_is_saved_as_plain_text(word):
    assert encode({word: word}) == encode({word.value: word.value})
    assert json.dumps({word: word}, indent=1) == json.dumps({word.value: word.value}, indent=1)


def test_a_word_is_found_where_its_text_is_a_key():
    assert ({"gone": 1}[Completeness.GONE], {Completeness.GONE: 1}["gone"]) == (1, 1)
