"""Index, targets, metrics and files: what needs no model."""

import json
from pathlib import Path

import pytest

from eval_sidecar.genrec.data import find_targets, load_index
from eval_sidecar.genrec.metrics import compute_metrics
from eval_sidecar.genrec.output import write_results

pytestmark = pytest.mark.genrec


@pytest.fixture
def index_file(tmp_path):
    path = tmp_path / "id2sid.json"
    path.write_text(
        json.dumps({"1": ["<a>", "<b>", "<c>"], "2": ["<a>", "<b>", "<d>"], "3": ["<a>", "<b>", "<c>"]})
    )
    return path


def test_items_that_share_a_list_are_one_item(index_file):
    assert load_index(index_file).items == ("<a><b><c>", "<a><b><d>")


def test_targets_are_cut_to_the_levels_that_are_kept(index_file):
    index = load_index(index_file, 2)
    assert index.items == ("<a><b>",)
    rows = [{"output": text} for text in (" <a><b><d>\n", "<a><b>", "<a><z><d>")]
    assert find_targets(rows, index) == [0, 0, None]


def test_metrics_follow_their_definition_up_to_the_number_of_beams():
    metrics = compute_metrics([[7, 8, 9, 1], [7, 8, 9, 1], [7, 8, 9, 1]], [8, 5, None], num_beams=4)
    assert metrics == {"HR@1": 0, "NDCG@1": 0, "HR@3": 0.3333, "NDCG@3": 0.2103}
    assert list(metrics) == ["HR@1", "NDCG@1", "HR@3", "NDCG@3"]


def test_results_have_the_format_that_others_read(tmp_path):
    rows = [{"input": "ä", "output": "<a>"}]
    folder = write_results(
        tmp_path, Path("m odel/checkpoint-7"), rows, [["<a>"]], {"HR@1": 1.0, "NDCG@1": 1.0}
    )
    assert folder == tmp_path / "m odel" / "checkpoint-7"
    assert (folder / "metrics.json").read_text() == '{\n  "HR@1": 1.0,\n  "NDCG@1": 1.0\n}'
    assert (folder / "metrics.tsv").read_text() == "path\tHR@1\tNDCG@1\nm odel/checkpoint-7\t1.0\t1.0\n"
    expected = '[\n{\n"input": "ä",\n"output": "<a>",\n"predict": [\n"<a>"\n]\n}\n]'
    assert (folder / "final_result.json").read_text(encoding="utf-8") == expected


def test_metrics_come_last_and_nothing_temporary_is_left(tmp_path):
    folder = write_results(tmp_path, Path("m/checkpoint-7"), [{}], [[]], {"HR@1": 0.0})
    files = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    assert [path.name for path in files] == ["final_result.json", "metrics.tsv", "metrics.json"]


def test_a_failed_write_leaves_no_metrics_behind(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("eval_sidecar.genrec.output.os.fsync", fail)
    with pytest.raises(Exception, match="checkpoint-7: its results cannot be written: disk full"):
        write_results(tmp_path, Path("m/checkpoint-7"), [{}], [[]], {"HR@1": 0.0})
    assert list((tmp_path / "m" / "checkpoint-7").iterdir()) == []
