"""Numbers and what they belong to, on the real command line: weights, places, names, settings."""

from __future__ import annotations

import json
import os
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional

import pytest

from toolbox import Repository, assert_refused, wait_until, write_checkpoint

pytest.importorskip("wandb")
from wandb_server import WandbServer

pytestmark = pytest.mark.wandb

_SCRIPT = """#!/usr/bin/env bash
# The number that it reports is in the weights: their last four bytes.
set -eu
name=$(basename "$CKPT_LIST")
result=results/$(basename "$(dirname "$CKPT_LIST")")/$name
echo "$name $(tail -c 4 "$CKPT_LIST/model.safetensors")" >>control/calls
if [ -e control/hook ]; then . control/hook; fi
mkdir -p "$result"
value=$(tail -c 4 "$CKPT_LIST/model.safetensors")
printf '{"HR@10": %s, "NDCG@10": 0.5}' "$value" >"$result/metrics.json.tmp"
mv "$result/metrics.json.tmp" "$result/metrics.json"
"""
RUN = "eval-identity"


def save(folder: Path, step: int, value: str) -> Path:
    """Save a step as a trainer does that found a folder of that name; its result is the value."""
    shutil.rmtree(folder / f"checkpoint-{step}", ignore_errors=True)
    path = write_checkpoint(folder, step)
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    (path / "model.safetensors").write_bytes(
        struct.pack("<Q", len(header)) + header + b"    " + value.encode()
    )
    return path


def machine(folder: Path, server: Optional[WandbServer] = None) -> Repository:
    made = Repository(folder)
    made.script.write_text(_SCRIPT)
    if server is not None:
        made.extra.update(WANDB_BASE_URL=server.url, WANDB_API_KEY=server.key)
    return made


@pytest.fixture
def server() -> Iterator[WandbServer]:
    with WandbServer() as running:
        yield running


@pytest.fixture
def mine(tmp_path: Path, server: WandbServer) -> Iterator[Repository]:
    made = machine(tmp_path / "GenRec", server)
    yield made
    made.clean_up()


def flags_of(repository: Repository, model_dir: Path, *more: str) -> list[str]:
    root = str(model_dir)
    flags = [root if flag == str(repository.model_dir) else flag for flag in repository.flags]
    return [*flags, *more]


def once(
    repository: Repository, *more: str, model_dir: Optional[Path] = None
) -> subprocess.CompletedProcess[str]:
    """One pass without W&B."""
    flags = flags_of(repository, model_dir or repository.model_dir, *more)
    return repository.sidecar("once", *flags)


def deliver(repository: Repository, *more: str, model_dir: Optional[Path] = None) -> Any:
    """One pass that delivers."""
    flags = [
        flag for flag in flags_of(repository, model_dir or repository.model_dir) if flag != "--disable-wandb"
    ]
    return repository.sidecar("once", *flags, "--wandb-mode", "online", "--wandb-run-id", RUN, *more)


def done(finished: subprocess.CompletedProcess[str]) -> str:
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout + finished.stderr


def number(repository: Repository, model: str, step: int) -> float:
    path = repository.root / "results" / model / f"checkpoint-{step}" / "metrics.json"
    return json.loads(path.read_text())["HR@10"]


def explained(repository: Repository, step: int, *more: str, model_dir: Optional[Path] = None) -> str:
    root = str(model_dir or repository.model_dir)
    return done(repository.sidecar("explain", "--sft-root", root, *more, str(step)))


# -- a step saved again ----------------------------------------------------------------------------------


def test_other_weights_under_a_delivered_step_become_a_revision_in_the_run(mine, server):
    save(mine.model_dir, 100, "0.10")
    done(deliver(mine))
    save(mine.model_dir, 100, "0.90")
    said = done(deliver(mine))
    assert "checkpoint-100: saved again at " in said
    assert "will evaluate it again as revision 1" in said
    rows = [(row.get("eval/revision", 0), row["eval/HR@10"]) for row in server.run(RUN).rows]
    assert rows == [(0, 0.1), (1, 0.9)]
    assert server.run(RUN).summary["best_hr@10"] == 0.9
    assert "nothing" not in done(deliver(mine)) and len(server.run(RUN).rows) == 2


def test_a_step_saved_again_during_its_evaluation_is_evaluated_again(mine, server):
    gate = mine.control / "go"
    (mine.control / "hook").write_text("while [ ! -e control/go ]; do sleep 0.02; done\n")
    save(mine.model_dir, 100, "0.10")
    flags = [flag for flag in mine.flags if flag != "--disable-wandb"]
    watching = mine.spawn(
        *("bash", "eval_wandb_sidecar.sh", "once", *flags),
        *("--wandb-mode", "online", "--wandb-run-id", RUN),
    )
    wait_until(lambda: mine.calls, "the evaluation")
    save(mine.model_dir, 100, "0.90")
    gate.touch()
    assert watching.wait() == 0, watching.output
    assert mine.calls == ["checkpoint-100", "0.10", "checkpoint-100", "0.90"]
    assert [row["eval/HR@10"] for row in server.run(RUN).rows][-1] == 0.9
    assert number(mine, mine.model, 100) == 0.9


def test_explain_and_status_say_that_a_result_is_of_other_weights(mine):
    save(mine.model_dir, 100, "0.10")
    done(once(mine))
    save(mine.model_dir, 100, "0.90")
    mine.script.write_text("exit 1\n")
    finished = once(mine)
    assert finished.returncode == 1
    assert "! of weights that were replaced" in finished.stdout
    text = explained(mine, 100)
    assert "weights that were replaced" in text
    assert "HR@10 0.1" in text
    # And its failure does not bring the old numbers back.
    mine.script.write_text(_SCRIPT)
    done(mine.sidecar("retry", "--sft-root", str(mine.model_dir)))
    done(once(mine))
    assert number(mine, mine.model, 100) == 0.9


def test_a_result_that_is_not_sent_any_more_is_not_shown_as_confirmed(mine):
    save(mine.model_dir, 100, "0.10")
    done(once(mine))
    save(mine.model_dir, 100, "0.90")
    mine.script.write_text("exit 1\n")
    shown = once(mine).stdout
    assert "not sent" in shown and "confirmed" not in shown
    assert "delivery     not sent" in explained(mine, 100)


def test_explain_says_that_the_folder_holds_other_weights_before_any_pass_has_seen_them(mine):
    save(mine.model_dir, 100, "0.10")
    done(once(mine))
    assert "these weights" in explained(mine, 100)
    save(mine.model_dir, 100, "0.90")
    told = explained(mine, 100)
    assert "the folder now holds other weights" in told
    assert (
        "of other weights than the folder holds now" in told.splitlines()[0] and "these weights" not in told
    )


def test_a_lost_state_and_other_weights_do_not_take_the_old_numbers(mine):
    save(mine.model_dir, 100, "0.10")
    done(once(mine))
    shutil.rmtree(mine.root / "state")
    save(mine.model_dir, 100, "0.90")
    assert "its result in " in done(once(mine))
    assert number(mine, mine.model, 100) == 0.9


def test_status_as_json_has_the_weights_of_each_result(mine):
    save(mine.model_dir, 100, "0.10")
    mine.start()
    wait_until(lambda: mine.metrics(100).exists(), "a result")
    wait_until(lambda: mine.status()["models"][0]["evaluated"] == 1, "a result in the ledger")
    (model,) = mine.status()["models"]
    (checkpoint,) = model["checkpoints"]
    assert checkpoint["result_of"] == checkpoint["weights"] and len(checkpoint["weights"]) == 16
    assert model["settings"][checkpoint["settings"]]["num_beams"] == 50
    assert model["place"].endswith(os.path.realpath(mine.model_dir))
    mine.sidecar("stop", "--instance", "cb64")


# -- two models of one name ------------------------------------------------------------------------------


@pytest.fixture
def two(mine) -> tuple[Path, Path]:
    """Two trainings in folders of one name; the first has a result."""
    first, second = (mine.root / place / "output" for place in ("A", "B"))
    save(first, 100, "0.10")
    save(second, 100, "0.90")
    done(once(mine, model_dir=first))
    return first, second


def test_a_second_place_of_a_known_name_is_refused_in_one_line_that_names_both(mine, two):
    first, second = two
    finished = once(mine, model_dir=second)
    assert_refused(finished, str(first), str(second), "--model-name", "--moved")
    assert finished.returncode == 2
    assert number(mine, "output", 100) == 0.1


@pytest.mark.parametrize(
    "more", [("--state-dir", "other"), ("--dataset", "Games"), ("--wandb-run-id", "x")], ids="".join
)
def test_so_it_is_whatever_keeps_the_ledgers_apart_but_one_folder_of_results(mine, two, more):
    assert_refused(once(mine, *more, model_dir=two[1]), str(two[0]), str(two[1]), "--model-name")


def test_explain_says_that_a_ledger_is_of_another_folder(mine, two):
    assert "which is not this folder" in explained(mine, 100, model_dir=two[1])
    assert "which is not this folder" not in explained(mine, 100, model_dir=two[0])


def test_a_name_of_its_own_keeps_results_run_ledger_and_logs_apart(mine, two):
    _, second = two
    done(once(mine, "--model-name", "B-output", model_dir=second))
    assert (number(mine, "output", 100), number(mine, "B-output", 100)) == (0.1, 0.9)
    states = sorted((mine.root / "state/wandb_eval_sidecar").glob("*.json"))
    ledgers = {state["model_dir"]: state for state in map(json.loads, map(Path.read_text, states))}
    assert ledgers["output"]["run_id"] != ledgers["B-output"]["run_id"]
    assert ledgers["B-output"]["run_name"] == "B-output-eval"
    assert (mine.manager / "evaluations/B-output/checkpoint-100.log").exists()
    assert "HR@10 0.9" in explained(mine, 100, "--model-name", "B-output", model_dir=second)
    assert mine.calls[::2] == ["checkpoint-100"] * 2


def test_with_a_name_of_its_own_a_checkpoint_that_is_not_pinned_finds_its_results_too(mine, two):
    _, second = two
    done(once(mine, "--model-name", "B-output", "--min-free-space", "99%", model_dir=second))
    assert number(mine, "B-output", 100) == 0.9
    assert not (mine.manager / "evaluations/.links").exists()


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "a\nb", "名" * 86])
def test_a_name_that_no_folder_can_have_is_refused(mine, name):
    save(mine.model_dir, 100, "0.10")
    assert_refused(once(mine, "--model-name", name), "--model-name")


def test_two_at_once_with_one_state_are_one_and_a_refusal(mine, two):
    first, second = two
    running = mine.spawn("bash", "eval_wandb_sidecar.sh", "run", *flags_of(mine, first))
    wait_until(lambda: "watching" in running.output, "the first")
    assert_refused(once(mine, model_dir=second), str(first), str(second), "--model-name")
    other_state = once(mine, "--state-dir", "other", model_dir=second)
    assert_refused(other_state, "--model-name")
    running.press_ctrl_c()
    running.wait()


def test_a_training_that_was_moved_is_known_by_a_checkpoint(mine, two):
    first, second = two
    shutil.rmtree(second)
    second.parent.mkdir(exist_ok=True)
    shutil.move(str(first), str(second))
    save(second, 200, "0.20")
    assert f", is now vm:{second}" in done(once(mine, model_dir=second)).replace(socket.gethostname(), "vm")
    assert (number(mine, "output", 100), number(mine, "output", 200)) == (0.1, 0.2)
    assert mine.calls[::2] == ["checkpoint-100", "checkpoint-200"]
    done(once(mine, model_dir=second))


def test_a_training_whose_parent_folder_was_moved_is_known_though_no_checkpoint_is_left(mine, two):
    first, _ = two
    shutil.rmtree(first / "checkpoint-100")
    moved = mine.root / "elsewhere"
    first.parent.rename(moved)
    save(moved / "output", 200, "0.20")
    assert "has another path" in done(once(mine, model_dir=moved / "output"))
    assert number(mine, "output", 100) == 0.1


def test_a_training_that_was_moved_without_its_checkpoints_is_taken_over_by_saying_so(mine, two):
    first, second = two
    shutil.rmtree(first)
    save(second, 200, "0.20")
    shutil.rmtree(second / "checkpoint-100")
    assert_refused(once(mine, model_dir=second), "--moved")
    done(once(mine, "--moved", model_dir=second))
    done(once(mine, model_dir=second))
    assert number(mine, "output", 100) == 0.1


def test_a_copy_that_went_its_own_way_is_another_training(mine, two):
    first, second = two
    shutil.rmtree(second)
    shutil.copytree(first, second)
    save(first, 200, "0.20")
    done(once(mine, model_dir=first))
    save(second, 200, "0.30")
    assert_refused(once(mine, model_dir=second), str(first), str(second))


def test_a_ledger_from_before_takes_the_first_place_that_comes(mine, two):
    _, second = two
    for path in (mine.root / "state/wandb_eval_sidecar").glob("*.json"):
        state = json.loads(path.read_text())
        path.write_text(json.dumps({key: state[key] for key in state if key != "places"}))
    (mine.root / "results/output/checkpoint-100/provenance.json").unlink()
    done(once(mine, model_dir=second))


def test_a_link_that_leads_to_another_training_is_another_place(mine):
    first, second, latest = (mine.root / "saves" / name for name in ("run1", "run2", "latest"))
    save(first, 100, "0.10")
    save(second, 100, "0.90")
    latest.symlink_to(first)
    done(once(mine, model_dir=latest))
    assert number(mine, "latest", 100) == 0.1
    latest.unlink()
    latest.symlink_to(second)
    assert_refused(once(mine, model_dir=latest), str(first), str(second), "--model-name")


def test_a_link_that_is_turned_while_it_is_watched_is_no_longer_followed(mine):
    first, second, latest = (mine.root / "saves" / name for name in ("run1", "run2", "latest"))
    save(first, 100, "0.10")
    save(second, 200, "0.90")
    latest.symlink_to(first)
    running = mine.spawn(
        *("bash", "eval_wandb_sidecar.sh", "run", *flags_of(mine, latest), "--poll-interval-seconds", "0.1")
    )
    wait_until(lambda: "HR@10 0.1" in running.output, "the first result")
    (mine.root / "saves/new").symlink_to(second)
    (mine.root / "saves/new").rename(latest)
    wait_until(lambda: "--model-name" in running.output, "a word about it")
    running.press_ctrl_c()
    running.wait()
    assert mine.calls[::2] == ["checkpoint-100"]


# -- results of two machines -----------------------------------------------------------------------------


@pytest.fixture
def trainers(tmp_path: Path) -> Iterator[tuple[Repository, Repository]]:
    """Two training machines without internet, each with a model of one name."""
    made = machine(tmp_path / "one" / "GenRec"), machine(tmp_path / "two" / "GenRec")
    for number_, (repository, value) in enumerate(zip(made, ("0.10", "0.90")), 1):
        save(repository.model_dir, 100 * number_, value)
        done(once(repository))
    yield made
    for repository in made:
        repository.clean_up()


def pack(repository: Repository) -> str:
    done(repository.execute("python3", "eval_wandb_sidecar.py", "pack"))
    (archive,) = repository.root.glob("results_sync_*")
    return str(archive)


def unpack(repository: Repository, archive: str, *more: str) -> subprocess.CompletedProcess[str]:
    return repository.execute("python3", "eval_wandb_sidecar.py", "unpack", archive, *more)


def upload(repository: Repository, *more: str) -> subprocess.CompletedProcess[str]:
    return repository.sidecar("once", "--results-root", "./results", "--wandb-mode", "online", *more)


def test_an_archive_with_another_model_of_a_known_name_is_refused(mine, trainers):
    first, second = trainers
    done(unpack(mine, pack(first)))
    assert_refused(unpack(mine, pack(second)), str(first.model_dir), str(second.model_dir), "--model-name")
    assert not (mine.root / "results" / first.model / "checkpoint-200").exists()
    done(unpack(mine, pack(second), "--moved"))


def test_results_of_two_trainings_that_were_copied_together_are_told_apart_by_the_upload(
    mine, trainers, server
):
    first, second = trainers
    done(unpack(mine, pack(first)))
    done(upload(mine))
    shutil.copytree(second.results, mine.results, dirs_exist_ok=True)
    finished = upload(mine)
    assert finished.returncode == 1
    line = finished.stderr.splitlines()[-1]
    assert str(first.model_dir) in line and str(second.model_dir) in line and "--model-name" in line
    (run,) = server.runs.values()
    assert [row["eval/HR@10"] for row in run.rows] == [0.1]


def test_two_machines_that_share_nothing_but_the_run_are_told_apart(mine, trainers, server):
    first, second = trainers
    for repository in trainers:
        repository.extra.update(WANDB_BASE_URL=server.url, WANDB_API_KEY=server.key)
    done(deliver(first))
    finished = deliver(second)
    assert finished.returncode == 1
    line = finished.stderr.splitlines()[-1]
    assert str(first.model_dir) in line and str(second.model_dir) in line
    assert [row["eval/HR@10"] for row in server.run(RUN).rows] == [0.1]
    done(deliver(second, "--moved"))
    assert len(server.run(RUN).rows) == 2


def test_a_model_that_was_watched_online_goes_on_in_its_run_from_its_archive(mine, trainers, server):
    first, _ = trainers
    first.extra.update(WANDB_BASE_URL=server.url, WANDB_API_KEY=server.key)
    flags = [flag for flag in first.flags if flag != "--disable-wandb"]
    done(
        first.sidecar(
            "once", *flags, "--wandb-mode", "online", "--dataset", "Instruments", "--eval-split", "test"
        )
    )
    save(first.model_dir, 200, "0.20")
    done(once(first))
    done(unpack(mine, pack(first)))
    finished = upload(mine)
    assert "another model" not in finished.stdout + finished.stderr


def test_results_that_say_nothing_of_where_they_are_from_are_taken_as_before(mine, trainers):
    first, second = trainers
    for repository in trainers:
        for path in repository.results.glob("*/provenance.json"):
            path.unlink()
    done(unpack(mine, pack(first)))
    done(unpack(mine, pack(second)))
    done(upload(mine))


# -- settings --------------------------------------------------------------------------------------------


def test_settings_that_change_are_said_once_and_old_results_keep_theirs(mine):
    save(mine.model_dir, 100, "0.10")
    done(once(mine))
    save(mine.model_dir, 200, "0.20")
    said = done(once(mine, "--num-beams", "5", "--seed", "7"))
    line = (
        "settings changed: num_beams 50 → 5, seed 42 → 7; 1 earlier result was made with the old ones;"
        " --force-eval evaluates them again"
    )
    assert said.count(line) == 1
    assert mine.calls[::2] == ["checkpoint-100", "checkpoint-200"]
    assert "* made with other settings" in said
    assert "num_beams 50" in explained(mine, 100) and "num_beams 50 → 5" in explained(mine, 100)
    said = done(once(mine, "--num-beams", "5", "--seed", "7", "--force-eval"))
    assert "* made" not in said
    assert "settings changed" not in done(once(mine, "--num-beams", "5", "--seed", "7"))


@pytest.mark.parametrize("what", ["script", "test_data", "index"])
def test_another_content_of_a_file_that_bears_on_the_numbers_is_a_change(mine, what):
    save(mine.model_dir, 100, "0.10")
    done(once(mine))
    path = getattr(mine, what)
    path.write_text(path.read_text() + "\n# other\n" if what == "script" else '["other"]')
    said = done(once(mine))
    assert "settings changed: the content of " in said and str(path) in said


def test_a_script_that_is_edited_while_it_is_used_is_a_change_from_then_on(mine):
    save(mine.model_dir, 100, "0.10")
    running = mine.spawn(
        *("bash", "eval_wandb_sidecar.sh", "run", *flags_of(mine, mine.model_dir)),
        *("--poll-interval-seconds", "0.1"),
    )
    wait_until(lambda: "HR@10 0.1" in running.output, "the first result")
    mine.script.write_text(_SCRIPT + "# edited\n")
    save(mine.model_dir, 200, "0.20")
    wait_until(lambda: "HR@10 0.2" in running.output, "the second result")
    running.press_ctrl_c()
    running.wait()
    assert running.output.count("settings changed: the content of eval_script") == 1
    assert "1 earlier result was made with the old ones" in running.output
    assert "settings now" in explained(mine, 100)
    assert "settings now" not in explained(mine, 200)


def test_a_result_that_was_put_there_has_unknown_settings(mine):
    save(mine.model_dir, 100, "0.10")
    mine.metrics(100).parent.mkdir(parents=True)
    mine.metrics(100).write_text('{"HR@10": 0.3}')
    assert "? settings unknown" in done(once(mine))
    assert "settings unknown" in explained(mine, 100)
    assert mine.calls == []


def test_what_does_not_bear_on_the_numbers_is_no_change(mine):
    save(mine.model_dir, 100, "0.10")
    done(once(mine))
    moved = mine.root / "data/Instruments_grec/sft/moved/sft/test.json"
    moved.parent.mkdir(parents=True)
    shutil.copy(mine.test_data, moved)
    said = done(once(mine, "--batch-size", "2", "--cuda-list", "1", "--python-bin", "python3"))
    assert "settings changed" not in said
