"""What every reader keeps to, tried on what the real programs have written."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path

import pytest

from eval_sidecar.best import direction_of
from eval_sidecar.errors import ResultError, UsageError
from eval_sidecar.ledger.results import read_result
from eval_sidecar.readers.base import Measurements
from eval_sidecar.readers.normalized import write_output
from eval_sidecar.readers.registry import Output, Readers, load_readers
from eval_sidecar.types import digest

FIXTURES = Path(__file__).parent / "fixtures" / "readers"
NAMES = ["hf", "lighteval", "lm-eval", "metrics", "opencompass"]
BEGAN = 1_000_000_000.0


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "output"


def write(output: Path, name: str, at: float = BEGAN + 1) -> list[Path]:
    """Put a program's output there, as written at that time; return its files."""
    shutil.copytree(FIXTURES / name, output, dirs_exist_ok=True)
    files = [output / path.relative_to(FIXTURES / name) for path in sorted((FIXTURES / name).rglob("*.*"))]
    for path in files:
        os.utime(path, (at, at))
    return [path for path in files if path.is_file()]


def put(path: Path, content: object, at: float = BEGAN + 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    os.utime(path, (at, at))
    return path


def read(output: Path, name: str | None = None) -> Measurements:
    return Readers().read(output, BEGAN, name).measurements


def values(found: Measurements) -> dict[str, float]:
    return {name: measured.value for name, measured in found.by_name.items()}


def test_every_built_in_reader_is_tried_here():
    assert Readers().names() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_program_s_output_is_recognized_by_its_own_reader_alone(output, name):
    write(output, name)
    assert Readers().read(output, BEGAN).reader == name
    for other in set(NAMES) - {name}:
        with pytest.raises(ResultError, match=f"reader {other} finds nothing to read among"):
            Readers().read(output, BEGAN, other)


@pytest.mark.parametrize("name", NAMES)
def test_every_number_is_finite_and_has_a_name_of_words_joined_by_slashes(output, name):
    write(output, name)
    found = read(output, name)
    assert found.by_name
    for metric, measured in found.by_name.items():
        assert math.isfinite(measured.value)
        assert not set(metric) & set("|, \n") and all(metric.split("/"))
        assert not metric.endswith("_stderr")
    assert all(path.is_file() for path in (*found.files, *found.sample_files))


@pytest.mark.parametrize("name", NAMES)
def test_files_from_before_the_evaluation_do_not_count(output, name):
    write(output, name, at=BEGAN - 1)
    with pytest.raises(ResultError, match="the evaluation wrote no file; older files do not count: "):
        read(output)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_is_cut_off_is_an_error_of_one_line_that_names_it(output, name):
    for path in write(output, name):
        os.truncate(path, path.stat().st_size - 2)
        os.utime(path, (BEGAN + 1, BEGAN + 1))
    with pytest.raises(ResultError, match="was its writer interrupted") as caught:
        read(output, name)
    assert "\n" not in str(caught.value) and str(output) in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_the_numbers_are_written_as_a_result_that_everything_else_reads(output, tmp_path, name):
    write(output, name)
    found = Readers().read(output, BEGAN)
    folder = tmp_path / "results" / "model" / "checkpoint-5"
    write_output(folder, found)
    result = read_result(folder / "metrics.json")
    assert (result.metrics, result.left_out) == (values(found.measurements), ())
    details = json.loads((folder / "details.json").read_text())
    assert (details["version"], details["digest"], details["reader"]) == (1, result.digest, name)
    assert list(details["metrics"]) == list(result.metrics)
    assert [(folder / path).resolve() for path in details["files"]] == list(found.measurements.files)


def test_lm_eval_names_directions_errors_and_samples(output):
    write(output, "lm-eval")
    found = read(output)
    assert list(found.by_name) == [
        *("sums_choice/acc", "sums_choice/acc_norm", "sums_choice_b/acc", "sums_choice_b/acc_norm"),
        *("sums_gen/exact_match/strict-match", "sums_gen/exact_match/flexible-extract"),
        *("sums_pages/word_perplexity", "sums_pages/byte_perplexity", "sums_pages/bits_per_byte", "sums/acc"),
    ]
    norm = found.by_name["sums_choice/acc_norm"]
    assert (norm.value, norm.direction, norm.samples, norm.task_version) == (0.75, "max", 12, "1")
    assert norm.stderr == pytest.approx(0.1306, abs=1e-4)
    bits = found.by_name["sums_pages/bits_per_byte"]
    assert (bits.direction, bits.stderr) == ("min", None)
    assert found.by_name["sums/acc"].samples == 24  # of the group
    assert found.left_out == ()
    assert [path.name[:17] for path in found.sample_files] == ["samples_sums_gen_"]


def test_lm_eval_s_file_named_by_the_user_is_known_by_its_content(output):
    [path] = [path for path in write(output, "lm-eval") if path.suffix == ".json"]
    path.rename(output / path.name.replace("results_", "mine_"))
    assert Readers().read(output, BEGAN).reader == "lm-eval"


def test_two_calls_of_lm_eval_in_one_evaluation_are_one_output_and_the_newer_counts(output):
    first = {"results": {"a": {"acc,none": 0.5}, "b": {"acc,none": 0.25}}, "model_name": "m"}
    second = {"results": {"b": {"acc,none": 0.75}, "c": {"acc,none": 1}}, "model_name": "m"}
    put(output / "m" / "results_2.json", first)
    put(output / "m" / "results_1.json", second, at=BEGAN + 2)
    found = read(output)
    assert values(found) == {"a/acc": 0.5, "b/acc": 0.75, "c/acc": 1.0}
    assert found.left_out == ("b/acc (also there as 0.25; the newer value counts)",)


@pytest.mark.parametrize("name", ["lm-eval", "lighteval"])
def test_results_of_several_models_are_refused_instead_of_mixed(output, name):
    [path] = [path for path in write(output, name) if path.name.startswith("results_")]
    put(output / "other" / path.name, path.read_text().replace("models/tiny", "models/other"))
    with pytest.raises(ResultError, match=r"several models .*an output folder of its own"):
        read(output)


def test_a_value_that_is_not_finite_is_left_out_and_said_first(output):
    put(output / "results_1.json", '{"results": {"a": {"acc,none": NaN, "ppl,none": 2.5}}}')
    found = read(output)
    assert values(found) == {"a/ppl": 2.5}
    assert found.left_out == ("a/acc (nan, not finite)",)
    assert found.by_name["a/ppl"].direction == "min"  # nothing but the name says so


def test_a_metric_with_parts_is_a_metric_for_each_part(output):
    put(output / "results_1.json", {"results": {"a": {"f1,none": {"yes": 0.5, "no": 0.25}}}})
    assert values(read(output)) == {"a/f1/yes": 0.5, "a/f1/no": 0.25}


def test_lighteval_names_directions_and_errors(output):
    write(output, "lighteval")
    found = read(output)
    distance = found.by_name["sums_gen:0/edit_distance"]
    assert (distance.value, distance.direction, distance.task_version) == (1.0, "min", "1")
    assert distance.stderr == pytest.approx(0.0014, abs=1e-4)
    assert found.by_name["sums:choice_a:0/acc"].direction == "max"
    # Means over tasks have no configuration of their own: what all tasks say.
    assert found.by_name["all/edit_distance"].direction == "min"
    assert found.by_name["sums:_average:0/acc"].direction == "max"
    assert found.by_name["sums:choice_a:0/acc"].samples is None


def test_a_trainer_s_results_are_its_metrics_without_speed_and_progress(output):
    write(output, "hf")
    found = read(output)
    assert set(found.by_name) == {"eval_loss", "perplexity"}
    assert {(measured.direction, measured.samples) for measured in found.by_name.values()} == {("min", 6)}
    assert "epoch (progress)" in found.left_out and "eval_runtime (speed)" in found.left_out


def test_numbers_of_the_training_are_not_those_of_the_evaluation(output):
    put(output / "all_results.json", {"train_loss": 0.5, "eval_wiki_loss": 2, "predict_rouge-1": 30.5})
    assert values(read(output)) == {"eval_wiki_loss": 2.0, "predict_rouge-1": 30.5}


def test_opencompass_names_rows_and_leaves_out_what_has_no_value(output):
    write(output, "opencompass")
    found = read(output)
    assert values(found) == {
        "mmlu/naive_average": 45.3,
        "gsm8k/accuracy": 12.05,
        "wikitext/ppl": 18.78,
    }
    assert found.by_name["gsm8k/accuracy"].task_version == "1d7fe4"
    assert found.by_name["wikitext/ppl"].direction == "min"
    assert found.left_out == ("lambada/accuracy (no value)", "siqa (no value)")


def test_a_summary_of_two_models_is_refused(output):
    put(output / "summary_1.csv", "dataset,version,metric,mode,a,b\nx,1,accuracy,gen,1,2\n")
    with pytest.raises(ResultError, match=r"several models \(a, b\)"):
        read(output)


def test_a_metrics_json_goes_before_other_formats_and_stays_as_it_was_written(output):
    write(output, "hf")
    path = put(output / "metrics.json", '{"accuracy":0.5}')
    found = Readers().read(output, BEGAN)
    write_output(output, found)
    assert (found.reader, values(found.measurements)) == ("metrics", {"accuracy": 0.5})
    assert path.read_text() == '{"accuracy":0.5}'


def test_output_of_two_formats_is_not_guessed_at(output):
    write(output, "hf")
    write(output, "lm-eval")
    with pytest.raises(
        ResultError, match=r"several formats .*lm-eval: .*results_2.*; name the reader to use"
    ):
        read(output)
    assert "eval_loss" in read(output, "hf").by_name


def test_files_that_no_reader_knows_are_named(output):
    put(output / "scores.txt", "0.5")
    with pytest.raises(ResultError, match=r"no reader recognizes a file among .*\(scores.txt\); readers: hf"):
        read(output)


def test_a_folder_that_is_not_there_has_no_file(output):
    with pytest.raises(ResultError, match=r"the evaluation wrote no file$"):
        read(output)


def test_an_unknown_reader_is_refused_with_the_nearest_name():
    with pytest.raises(UsageError, match="no reader called lm_eval; did you mean lm-eval"):
        Readers().require("lm_eval")


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Installs a package with these modules' texts and readers by entry point."""

    def install(name: str, text: str, **points: str) -> None:
        site = tmp_path / f"site-{name}"
        put(site / f"{name}.py", text)
        lines = "".join(f"{key} = {value}\n" for key, value in points.items())
        put(
            site / f"{name}-1.0.dist-info" / "METADATA",
            f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        )
        put(site / f"{name}-1.0.dist-info" / "entry_points.txt", f"[eval_sidecar.readers]\n{lines}")
        monkeypatch.syspath_prepend(str(site))

    return install


MINE = """
from eval_sidecar.readers.base import Measurement, Measurements
class Mine:
    name = "mine"
    def find(self, folder, files):
        return [path for path in files if path.suffix == ".mine"]
    def read(self, files):
        return Measurements({"score": Measurement(float(files[-1].read_text()), "max")}, tuple(files))
"""


def test_an_installed_package_adds_a_reader(output, install):
    install("readers_mine", MINE, mine="readers_mine:Mine")
    put(output / "a.mine", "0.5")
    found = load_readers().read(output, BEGAN)
    assert (found.reader, values(found.measurements)) == ("mine", {"score": 0.5})


def test_a_package_that_cannot_be_loaded_is_one_line_and_costs_no_other_reader(output, install):
    install("readers_bad", "raise RuntimeError('no\\nway')", bad="readers_bad:Bad", worse="readers_bad_not:X")
    install("readers_none", "x = 3", none="readers_none:x", hf="readers_none:x")
    readers = load_readers()
    assert readers.broken["bad"].startswith("readers_bad:Bad cannot be loaded (RuntimeError: no way)")
    assert "ModuleNotFoundError" in readers.broken["worse"]
    assert readers.broken["none"] == "readers_none:x is not a reader: it has no find() and read()"
    assert readers.broken["hf"].endswith("hf is the name of a built-in reader")
    with pytest.raises(UsageError, match="reader bad: readers_bad:Bad cannot be loaded"):
        readers.require("bad")
    write(output, "hf")
    assert readers.read(output, BEGAN).reader == "hf"


def test_a_reader_that_fails_is_one_line_and_not_a_traceback(output, install):
    install("readers_mine", MINE, mine="readers_mine:Mine")
    put(output / "a.mine", "no number")
    with pytest.raises(
        ResultError, match=r"a.mine: reader mine failed \(ValueError: could not convert"
    ) as caught:
        load_readers().read(output, BEGAN)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        *("loss", "eval_loss", "evalLoss", "test/loss", "wikitext/word_perplexity", "PPL", "asr/WER", "cer"),
        *("word_error_rate", "error_rate", "errors", "mean_squared_error", "loss_mean", "eval.loss"),
    ],
)
def test_losses_and_errors_are_better_if_lower(name):
    assert direction_of(name) == "min"


@pytest.mark.parametrize(
    "name", ["acc", "HR@10", "loss/accuracy", "lossless", "error_free", "errors_fixed", "power", ""]
)
def test_other_names_say_nothing(name):
    assert direction_of(name) == "unknown"


def test_details_name_the_numbers_that_they_belong_to(tmp_path):
    write(tmp_path / "out", "hf")
    found: Output = Readers().read(tmp_path / "out", BEGAN)
    write_output(tmp_path / "result", found)
    details = json.loads((tmp_path / "result" / "details.json").read_text())
    assert details["digest"] == digest(values(found.measurements))
    assert details["metrics"]["eval_loss"] == {
        "direction": "min",
        "stderr": None,
        "samples": 6,
        "task_version": None,
    }
