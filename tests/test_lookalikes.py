"""What looks like a result and is not taken is named, with what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from eval_sidecar.ledger import lookalikes


def put(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")


@pytest.mark.parametrize(
    ("name", "what", "advice"),
    [
        ("metrics.json", "/metrics.json", "it is directly in the results folder"),
        ("checkpoint-100/metrics.json", "/checkpoint-100", "it is not in a model's folder"),
        ("m/metrics.json", "/m/metrics.json", "it is not in a checkpoint's folder"),
        ("m/step_100/metrics.json", "/m/step_100/metrics.json", "rename it to checkpoint-100"),
        ("m/global_step7/metrics.json", "/m/global_step7/metrics.json", "rename it to checkpoint-7"),
        ("m/checkpoint-007/metrics.json", "/m/checkpoint-007/metrics.json", "rename it to checkpoint-7"),
        ("m/best/metrics.json", "/m/best/metrics.json", "rename it to checkpoint-<step>"),
        ("m/run1/eval/metrics.json", "/m/run1/eval/metrics.json", "not called checkpoint-<step>"),
        ("org/m/checkpoint-100/metrics.json", "/org/m", "a model is a folder directly in the results"),
        ("a/b/m/checkpoint-100/metrics.json", "/a/b/m", "a model is a folder directly in the results"),
        ("m/checkpoint-100/results.json", "/m/checkpoint-100/results.json", "is not called metrics.json"),
        ("m/checkpoint-100/Metrics.json", "/m/checkpoint-100/Metrics.json", "is not called metrics.json"),
        ("m/checkpoint-100/metrics.json.txt", "/m/checkpoint-100/metrics.json.txt", "rename it"),
        ("m/checkpoint-100/all_results.json", "/m/checkpoint-100/all_results.json", "rename it"),
        ("m/checkpoint-100/results_2024-01-01T00.json", "results_2024-01-01T00.json", "rename it"),
        ("m/checkpoint-100/eval_metrics.jsonl", "eval_metrics.jsonl", "rename it"),
        ("m/checkpoint-100/metrics (1).json", "metrics (1).json", "rename it"),
        ("m/checkpoint-100/metrics.json (2)", "metrics.json (2)", "rename it"),
        ("m/checkpoint-100/metrics - Copy.json", "metrics - Copy.json", "rename it"),
        ("m/checkpoint-100/metrics.json.gz", "metrics.json.gz", "rename it"),
        ("m/checkpoint-100/task/metrics.json", "task/metrics.json", "/m/checkpoint-100/metrics.json"),
        ("m/checkpoint-100/__out__m/results_2026.json", "__out__m/results_2026.json", "move it to"),
    ],
)
def test_a_result_in_another_place_or_under_another_name_is_named(tmp_path, name, what, advice):
    put(tmp_path, name)
    (line,) = lookalikes.everywhere(tmp_path)
    assert f"{what}: looks like a result" in line
    assert advice in line


@pytest.mark.parametrize(
    "name",
    [
        "m/checkpoint-100/metrics.json",
        "m/checkpoint-100/task/plot.json",
        "m/checkpoint-100/final_result.json",
        "m/checkpoint-100/rollout.json",
        "m/checkpoint-100/provenance.json",
        "m/checkpoint-100/metrics.tsv",
        "m/checkpoint-100/metrics.json.failed",
        "m/checkpoint-100/metrics.json.before-unpack-01234567",
        "m/checkpoint-100/config.json",
        "m/notes/readme.txt",
        ".before-unpack/m/checkpoint-1/metrics.json",
        "__MACOSX/m/checkpoint-1/metrics.json",
        "m/@eaDir/x/metrics.json",
        "m/.cache/metrics.json",
        "lost+found/metrics.json",
    ],
)
def test_what_is_a_result_or_no_one_takes_for_one_is_not_named(tmp_path, name):
    put(tmp_path, name)
    assert lookalikes.everywhere(tmp_path) == []


@pytest.mark.parametrize("name", ["m", "m/checkpoint-1", "m/checkpoint-1/metrics.json"])
def test_a_link_that_leads_nowhere_is_named(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to("/not/there")
    (line,) = lookalikes.everywhere(tmp_path)
    assert f"{name}: looks like a result" in line and "/not/there, which does not exist" in line


def test_a_link_to_a_folder_above_is_not_followed(tmp_path):
    put(tmp_path, "m/checkpoint-1/metrics.json")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "m" / "up").symlink_to("..")
    (tmp_path / "m" / "checkpoint-2").mkdir()
    (tmp_path / "m" / "checkpoint-2" / "up").symlink_to("../..")
    assert lookalikes.everywhere(tmp_path) == []


def test_other_files_beside_a_result_are_no_news(tmp_path):
    put(tmp_path, "m/checkpoint-100/metrics.json", "m/checkpoint-100/results.json")
    assert lookalikes.everywhere(tmp_path) == []


def test_many_of_one_kind_are_counted(tmp_path):
    put(tmp_path, *(f"m/step_{step}/metrics.json" for step in range(1, 12)))
    lines = lookalikes.everywhere(tmp_path)
    assert len(lines) == 6
    assert lines[-1] == f"{tmp_path / 'm'}: 6 more like these"


def test_models_that_the_manifest_does_not_list_are_named_if_they_have_results(tmp_path):
    put(tmp_path, "a/checkpoint-1/metrics.json", "b/checkpoint-1/metrics.json", "c/notes.txt")
    (line,) = lookalikes.outside(tmp_path, {"a"}, tmp_path / "manifest.json")
    assert line.startswith(f"b: not in {tmp_path / 'manifest.json'}, so not uploaded")
