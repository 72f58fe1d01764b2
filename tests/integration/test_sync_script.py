"""The commands of the second document that carry results, as a user types them."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from eval_sidecar.transfer.changes import digest_of
from toolbox import CHECKOUT, Repository, assert_refused
from transfer_files import MODEL, TREE, metrics, read_tree, receipt, result, write, write_tree

SCRIPT = "scripts/sync_results_from_remote.sh"
REAL = CHECKOUT.parent / "shared/data/results"
RESULTS = {name: data for name, data in TREE.items() if not name.startswith(".")}


@pytest.fixture(params=["made up", "real"])
def training(request, repository: Repository) -> Repository:
    """A repository on the machine without internet, with results in it."""
    results = repository.root / "results"
    if request.param == "made up":
        write_tree(results, RESULTS)
    elif not REAL.is_dir():
        pytest.skip("there are no real results beside this checkout")
    else:
        shutil.copytree(REAL, results, copy_function=shutil.copyfile, dirs_exist_ok=True)
        (results / ".wandb_eval_manifest.json").unlink(missing_ok=True)
    return add_script(repository)


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Repository]:
    """The machine with internet."""
    made = add_script(Repository(tmp_path / "with internet"))
    yield made
    made.clean_up()


def add_script(repository: Repository) -> Repository:
    target = repository.root / SCRIPT
    target.parent.mkdir(exist_ok=True)
    shutil.copy(CHECKOUT / SCRIPT, target)
    return repository


def typed(repository: Repository, line: str) -> str:
    done = repository.type(line)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def archives(repository: Repository) -> list[Path]:
    return sorted(repository.root.glob("result*.tar.gz*"))


def carried(repository: Repository) -> dict[str, bytes]:
    return read_tree(repository.root / "results")


def test_packed_there_and_unpacked_here_by_the_documents_commands(training, local):
    said = typed(training, f"bash {SCRIPT} pack")
    (archive,) = archives(training)
    assert f"archive      {archive.name}\n" in said and "manifest)" in said
    before = archive.read_bytes()
    typed(training, f"bash {SCRIPT} pack")
    assert archives(training) == [archive] and archive.read_bytes() == before
    shutil.copy(archive, local.root)
    said = typed(local, f'bash {SCRIPT} unpack "$PWD"/result*.tar.gz')
    assert carried(local) == carried(training)
    assert (
        "next         bash eval_wandb_sidecar.sh once --results-root ./results --manifest-path"
        " ./results/.wandb_eval_manifest.json --wandb-mode online\n"
    ) in said
    manifest = json.loads((local.root / "results/.wandb_eval_manifest.json").read_bytes())
    assert {model["model_dir"] for model in manifest["models"]} == {
        path.parts[-3] for path in (training.root / "results").glob("*/*/metrics.json")
    }


def test_the_command_that_is_printed_runs(training, local):
    typed(training, f"bash {SCRIPT} pack")
    shutil.move(archives(training)[0], local.root)
    said = typed(local, f"bash {SCRIPT} unpack")
    (command,) = [line[13:] for line in said.splitlines() if line.startswith("next  ")]
    typed(local, f"{command} --disable-wandb")


def test_without_a_name_downloads_are_looked_into(training, local):
    typed(training, f"bash {SCRIPT} pack")
    (archive,) = archives(training)
    (local.home / "Downloads").mkdir()
    shutil.move(archive, local.home / "Downloads")
    assert archive.name in typed(local, f"bash {SCRIPT} unpack")
    assert carried(local) == carried(training)


def test_several_archives_that_a_shell_found_mean_the_newest(repository):
    add_script(repository)
    write_tree(repository.root / "results", RESULTS)
    typed(repository, f"bash {SCRIPT} pack --name result_a")
    write(repository.root / "results" / result(200), metrics(0.9))
    typed(repository, f"bash {SCRIPT} pack --name result_b")
    os.utime(repository.root / "result_a.tar.gz", (1, 1))
    shutil.rmtree(repository.root / "results")
    assert "result_b.tar.gz (the newest of 2)" in typed(repository, f"bash {SCRIPT} unpack ./result*.tar.gz")
    assert carried(repository)[result(200)] == metrics(0.9)


def test_parts_are_packed_and_unpacked(repository):
    add_script(repository)
    write_tree(repository.root / "results", {**RESULTS, f"{MODEL}/noise": os.urandom(150_000)})
    before = carried(repository)
    assert "3 parts; carry all of them" in typed(repository, f"bash {SCRIPT} pack --chunk-size 64K")
    assert len(archives(repository)) == 3
    shutil.move(repository.root / "results", repository.root / "elsewhere")
    typed(repository, f'bash {SCRIPT} unpack "{archives(repository)[1].name}"')
    assert {name: data for name, data in carried(repository).items() if name in before} == before
    archives(repository)[2].unlink()
    assert_refused(repository.type(f"bash {SCRIPT} unpack"), "part 3 of 3 is missing")


def test_an_incremental_archive_has_what_the_receipt_does_not_confirm(repository):
    add_script(repository)
    results = write_tree(repository.root / "results", RESULTS)
    said = typed(repository, f"bash {SCRIPT} pack --incremental")
    assert "no receipt" in said and "3 results of 2 models" in said
    confirmed = {
        MODEL: {100: digest_of(metrics(0.1)), 200: digest_of(metrics(0.2))},
        "Games-grec-sft": {50: digest_of(metrics(0.3))},
    }
    receipt(results / ".wandb_eval_receipt.json", confirmed)
    assert "nothing new" in typed(repository, f"bash {SCRIPT} pack --incremental")
    write(results / result(300), metrics(0.4))
    assert "1 result of 1 model" in typed(repository, f"bash {SCRIPT} pack --incremental")


def test_mirror_and_force_are_passed_on(repository):
    add_script(repository)
    results = write_tree(repository.root / "results", RESULTS)
    typed(repository, f"bash {SCRIPT} pack")
    write(results / "Old-model/checkpoint-1/metrics.json", metrics(0.1), mtime_ns=1)
    os.utime(write(results / result(100), b"newer"))
    said = typed(repository, f"bash {SCRIPT} unpack --mirror --force")
    assert "removed      1 file that" in said
    assert carried(repository)[result(100)] == metrics(0.1)


def a_result(repository: Repository) -> str:
    return min(name for name in carried(repository) if name.endswith("metrics.json"))


def test_an_old_archive_after_a_newer_one_changes_nothing_and_that_is_said(training, local):
    name = a_result(training)
    typed(training, f"bash {SCRIPT} pack --name result_old")
    write(training.root / "results" / name, metrics(0.9), mtime_ns=1)
    typed(training, f"bash {SCRIPT} pack --name result_new")
    for archive in archives(training):
        shutil.copy(archive, local.root)
    typed(local, f"bash {SCRIPT} unpack result_new.tar.gz")
    before = carried(local)
    said = typed(local, f"bash {SCRIPT} unpack result_old.tar.gz")
    assert f"kept         {name}: a newer archive was unpacked before" in said
    assert carried(local) == before == carried(training)


def test_a_local_result_that_no_archive_brought_is_kept_beside_and_named_once(training, local):
    name = a_result(training)
    typed(training, f"bash {SCRIPT} pack")
    shutil.copy(archives(training)[0], local.root)
    path = write(local.root / "results" / name, metrics(0.7))  # now: newer than what is packed
    said = typed(local, f"bash {SCRIPT} unpack")
    (kept,) = path.parent.glob("metrics.json.*")
    assert f"kept beside  {name}: no archive had brought what was here; it is now {kept.name}" in said
    assert (path.read_bytes(), kept.read_bytes()) == (carried(training)[name], metrics(0.7))
    assert "kept beside" not in typed(local, f"bash {SCRIPT} unpack")
    typed(local, f"bash {SCRIPT} pack --name result_here")
    assert "before-unpack" not in typed(local, "tar tzf result_here.tar.gz")


def test_an_archive_that_a_browser_unzipped_beside_an_older_copy_is_unpacked(training, local):
    typed(training, f"bash {SCRIPT} pack --name results_sync_x")
    (archive,) = archives(training)
    cut = local.root / "results_sync_x.tar.gz"
    cut.write_bytes(archive.read_bytes()[:300])
    (local.root / "results_sync_x (1).tar").write_bytes(gzip.decompress(archive.read_bytes()))
    assert "results_sync_x (1).tar\n" in typed(local, f'bash {SCRIPT} unpack "$PWD"/results_sync_x*')
    assert carried(local) == carried(training)


def test_flags_of_the_manifest_are_passed_through(repository):
    add_script(repository)
    results = write_tree(repository.root / "results", RESULTS)
    write(repository.root / "over.json", json.dumps({MODEL: {"seed": 7}}).encode())
    typed(
        repository,
        f"bash {SCRIPT} pack --overrides over.json --default-project P --default-entity E"
        " --default-eval-split dev --run-id-prefix r",
    )
    models = json.loads((results / ".wandb_eval_manifest.json").read_bytes())["models"]
    (model,) = [model for model in models if model["model_dir"] == MODEL]
    assert (model["wandb_project"], model["wandb_entity"], model["eval_split"], model["seed"]) == (
        "P",
        "E",
        "dev",
        7,
    )
    assert model["wandb_run_id"].startswith("r-")


def test_the_results_root_can_be_elsewhere(repository):
    add_script(repository)
    write_tree(repository.root / "my results", RESULTS)
    typed(repository, f'bash {SCRIPT} pack --results-root "my results"')
    said = typed(repository, f"bash {SCRIPT} unpack --results-root 'your results/'")
    assert "--results-root 'your results/' --manifest-path 'your results/.wandb_eval_manifest.json'" in said
    assert set(RESULTS) < set(read_tree(repository.root / "your results"))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("unpack nothing", ["nothing: there is no such archive"]),
        ("unpack", ["there is no result*.tar.gz in", "Downloads"]),
        ("unpack '/path/to/result*.tar.gz'", ["/path/to/result*.tar.gz: there is no such archive"]),
        ("pack --results-root none", ["none"]),
        ("pack --output-dir none", ["--output-dir none"]),
        ("pack --max-file-size much", ["--max-file-size", "much"]),
        ("pack --chunk-size 3", ["--chunk-size 3"]),
        ("pack --incremental --receipt none", ["--receipt none"]),
        ("pick", ["unknown command pick", "pack", "unpack"]),
    ],
)
def test_a_mistake_is_named_in_one_line(repository, line, words):
    add_script(repository)
    write_tree(repository.root / "results", RESULTS)
    done = repository.type(f"bash {SCRIPT} {line}")
    assert_refused(done, *words)
    assert done.returncode == 2


def test_help_names_what_there_is(repository):
    add_script(repository)
    for line in ("", "help", "--help"):
        done = repository.type(f"bash {SCRIPT} {line}")
        assert done.returncode == (0 if line else 2)
        assert all(word in done.stdout for word in ("pack", "unpack", "PYTHON_BIN", "SIDECAR_PY"))
    for command in ("pack", "unpack"):
        assert "--results-root" in typed(repository, f"bash {SCRIPT} {command} --help")


def test_another_python_can_be_named_and_a_missing_one_is(repository):
    add_script(repository)
    assert_refused(repository.type(f"PYTHON_BIN=nopython bash {SCRIPT} pack"), "nopython", "PYTHON_BIN")
    assert_refused(repository.type(f"SIDECAR_PY=no.py bash {SCRIPT} pack"), "no.py", "SIDECAR_PY")


def test_the_script_works_from_elsewhere_too(repository, tmp_path):
    add_script(repository)
    write_tree(tmp_path / "results", RESULTS)
    done = subprocess.run(
        ["bash", str(repository.root / SCRIPT), "pack"],
        cwd=tmp_path,
        env=repository.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("results_sync_*.tar.gz"))) == 1
