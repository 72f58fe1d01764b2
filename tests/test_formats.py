"""Texts that fit a screen: tables, names, durations, log lines and curves."""

from __future__ import annotations

import os
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval_sidecar.cli.formats import (
    cut,
    duration,
    fit_log_line,
    job_time,
    local_time,
    number,
    relative_paths,
    shorten,
    table,
    text_width,
    wrap,
)
from eval_sidecar.cli.plot import plot

NAME = "Instruments-grec-sft-qwen4B-4-64-dsz0"
TEXTS = st.text(st.characters(min_codepoint=32, max_codepoint=0x9FFF, exclude_categories=("C", "M", "Z")))


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 s"),
        (-3, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (200, "3 min 20 s"),
        (7500, "2 h 5 min"),
        (7200, "2 h"),
        (97_200, "1 d 3 h"),
    ],
)
def test_a_duration_is_told_as_people_say_it(seconds, said):
    assert duration(seconds) == said


def test_an_evaluation_is_told_with_the_usual_time_where_it_is_known():
    assert job_time(200, None) == "3 min 20 s"
    assert job_time(200, 300) == "3 min 20 s (usually 5 min)"


def test_a_time_is_local_and_names_its_zone(monkeypatch):
    monkeypatch.setenv("TZ", "CST-8")
    time.tzset()
    try:
        assert local_time(0) == "1970-01-01 08:00:00 CST"
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.04951, "0.0495"), (0, "0.0000"), (2e-6, "2e-06"), (-1.5, "-1.5000"), (12345.6, "1.235e+04")],
)
def test_a_number_keeps_the_digits_that_say_something(value, said):
    assert number(value) == said


# -- names ---------------------------------------------------------------------------------------------


def test_a_name_is_shortened_in_the_middle():
    assert shorten(NAME, 20) == "Instrument…4-64-dsz0"
    assert shorten(NAME, len(NAME)) == NAME


@given(TEXTS, st.integers(1, 40))
def test_no_text_is_wider_than_its_place(text, width):
    assert text_width(shorten(text, width)) <= width
    assert text_width(cut(text, width)) <= width


def test_chinese_characters_take_two_columns():
    assert text_width("模型-1") == 6
    assert shorten("推荐模型推荐模型", 9) == "推荐…模型"


# -- tables --------------------------------------------------------------------------------------------


def test_a_table_fits_and_shortens_names_but_no_number():
    rows = [[NAME * 2, "12/345", "checkpoint-123456 is being evaluated", "HR@10 0.0495 at 123456"]]
    heading, row = table(["model", "done", "note", "best"], rows, "nrtl", 80)
    assert max(len(heading), len(row)) <= 80
    assert row.endswith("HR@10 0.0495 at 123456") and " 12/345 " in row and "…" in row.split()[0]


def test_columns_stand_below_their_headings():
    assert table(["model", "n"], [["推荐", "1"], ["ab", "100"]], "nr", None) == [
        "model    n",
        "推荐     1",
        "ab     100",
    ]


def test_a_table_in_a_pipe_is_not_shortened():
    assert NAME * 5 in table(["model"], [[NAME * 5]], "n", None)[1]


def test_long_names_of_metrics_are_shortened_and_their_numbers_are_not():
    names = [f"test/some_group/recall_at_{number}" for number in range(4)]
    lines = table(["step", *names], [["1000", *["0.1234"] * 4]], "rrrrr", 60)
    assert max(map(text_width, lines)) <= 60
    assert lines[1].split() == ["1000", *["0.1234"] * 4]


# -- lines ---------------------------------------------------------------------------------------------


def test_a_long_line_is_broken_between_words_and_nothing_is_lost():
    text = "problem  " + " ".join(["CUDA out of memory;"] * 10)
    lines = wrap(text, 40, 4)
    assert all(len(line) <= 40 for line in lines)
    assert all(line.startswith("    ") for line in lines[1:])
    assert " ".join(" ".join(lines).split()) == " ".join(text.split())


def test_a_path_stays_whole_beside_its_label():
    path = "/data/" + "x" * 100
    assert wrap(f"folder       {path}", 80, 13) == [f"folder       {path}"]


def test_a_line_in_a_pipe_is_not_broken():
    assert wrap("word " * 100, None) == ["word " * 100]


def test_a_log_line_shortens_its_path_and_stays_one_line():
    line = f"11:02:33 checkpoint-100: evaluation started, log: log/evaluations/{NAME}/checkpoint-100.log"
    (shown,) = fit_log_line(line, 80)
    assert len(shown) <= 80
    assert shown.startswith("11:02:33 checkpoint-100: evaluation started, log: log/")
    assert shown.endswith("kpoint-100.log")


def test_a_log_line_keeps_an_address_whole():
    address = "https://wandb.example/some-entity/some-project/runs/eval-088839ca53b688776ef3"
    shown = fit_log_line(f"11:02:33 delivery: 2 sent, 2 confirmed ({address})", 80)
    assert len(shown) == 2 and address in shown[1]


def test_paths_below_the_working_folder_begin_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    here = os.getcwd()  # noqa: PTH109 - as it is written
    assert relative_paths(f"log: {here}/log/x.log") == "log: log/x.log"
    assert relative_paths(f"log: /other{here}/x.log") == f"log: /other{here}/x.log"
    assert relative_paths(f"in {here}") == f"in {here}"


# -- curves --------------------------------------------------------------------------------------------


def test_a_curve_fits_and_names_its_ends():
    lines = plot([(100, 0.1), (200, 0.4), (300, 0.25)], 40, 5)
    assert all(len(line) <= 40 for line in lines)
    assert lines[0].startswith("0.4 ┤") and lines[4].startswith("0.1 ┤")
    assert lines[-1].split() == ["100", "300"]
    assert len(lines[0]) > 5 and len(lines[4]) > 5, "the highest and the lowest value are drawn"


def test_a_curve_rises_to_the_right():
    lines = plot([(0, 0.0), (100, 1.0)], 40, 4)
    drawn = [line.partition("┤")[2] for line in lines[:4]]
    indents = [len(line) - len(line.lstrip("\u2800")) for line in drawn]
    assert indents == sorted(indents, reverse=True) and indents[0] > indents[-1]


@pytest.mark.parametrize("points", [[(100, 0.5)], [(100, 0.5), (200, 0.5)]])
def test_a_single_value_is_a_curve_too(points):
    lines = plot(points, 40)
    assert sum("0.5" in line for line in lines) == 1
