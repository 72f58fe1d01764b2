"""What W&B would refuse is known before it is asked; what is a training's own does not reach our client."""

from __future__ import annotations

from dataclasses import replace

import pytest

from eval_sidecar.errors import UsageError
from eval_sidecar.manifest.manifest import Defaults
from eval_sidecar.paths import StatePaths, name_in_files
from eval_sidecar.trackers.wandb_checks import check_runs, check_server, display_name, folder_mode, is_ours
from eval_sidecar.trackers.wandb_errors import describe
from tracking import spec_of

REQUEST = {"op": "read", "entity": None, "project": "P", "run_id": "r"}


@pytest.mark.parametrize(
    "name",
    [
        *("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_ENTITY", "WANDB_CONFIG_DIR", "WANDB_CREDENTIALS_FILE"),
        *(
            "WANDB_IDENTITY_TOKEN_FILE",
            "WANDB_INSECURE_DISABLE_SSL",
            "WANDB_HTTP_TIMEOUT",
            "WANDB_HTTP_PROXY",
        ),
        *(
            "WANDB_X_EXTRA_HTTP_HEADERS",
            "WANDB__EXTRA_HTTP_HEADERS",
            "WANDB_ERROR_REPORTING",
            "WANDB_DATA_DIR",
        ),
        *("WANDB_CACHE_DIR", "HTTPS_PROXY", "PATH", "MY_WANDB_RESUME"),
    ],
)
def test_what_is_about_account_server_and_network_reaches_the_client(name):
    assert is_ours(name)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "WANDB_RUN_ID",
            "WANDB_RESUME",
            "WANDB_RESUME_FROM",
            "WANDB_FORK_FROM",
            "WANDB_NAME",
            "WANDB_NOTES",
        ),
        *("WANDB_RUN_GROUP", "WANDB_TAGS", "WANDB_JOB_TYPE", "WANDB_MODE", "WANDB_DISABLED", "WANDB_DIR"),
        *("WANDB_SWEEP_ID", "WANDB_SERVICE", "WANDB_START_METHOD", "WANDB_SILENT", "WANDB_CONSOLE"),
        *(
            "WANDB_CONFIG_PATHS",
            "WANDB_X_PRIMARY",
            "WANDB__REQUIRE_CORE",
            "WANDB_INIT_TIMEOUT",
            "WANDB_DOCKER",
        ),
    ],
)
def test_what_a_training_sets_for_its_own_run_does_not(name):
    assert not is_ours(name)


@pytest.mark.parametrize(
    "address", ["https://api.wandb.ai", "http://localhost:8080/", "https://u:p@w.lab/wb", ""]
)
def test_an_address_is_taken(address):
    check_server({"WANDB_BASE_URL": address})


def test_a_wrong_address_is_shown_without_its_password():
    with pytest.raises(UsageError) as caught:
        check_server({"WANDB_BASE_URL": "htp://user:secret@host"})
    assert "secret" not in str(caught.value)


def test_names_that_the_server_takes_are_left_as_they_are():
    assert check_runs([spec_of("eval-1"), spec_of("r" * 128, project="p" * 128, run_name="n" * 128)]) == []


def test_a_longer_display_name_is_shortened_with_a_word_and_stays_its_own():
    first, second = ("n" * 150 + end for end in "ab")
    assert len(display_name(first)) == 128 and display_name(first) != display_name(second)
    (line,) = check_runs([spec_of("eval-1", run_name=first)])
    assert display_name(first) in line and "--wandb-run-name" in line


def test_several_wrong_names_are_one_line_that_names_each_once():
    specs = [spec_of(f"a/{n}", project="x/y") for n in range(2)]
    with pytest.raises(UsageError) as caught:
        check_runs(specs)
    assert str(caught.value).count("--wandb-project 'x/y'") == 1
    assert "a/0" in str(caught.value) and "a/1" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "mode"),
    [
        ("[default]\nmode = offline\n", "offline"),
        ("[default]\nmode = disabled\n", "disabled"),
        ("[default]\ndisabled = true\n", "disabled"),
        ("[default]\nmode = dryrun\n", "offline"),
        ("[default]\nproject = a%b\nmode = online\n", "online"),
        ("[default]\nproject = x\n", None),
        ("[other]\nmode = offline\n", None),
        ("no ini", None),
        ("[default]\nmode = maybe\n", None),
    ],
)
def test_what_the_client_has_been_switched_to_in_a_folder(tmp_path, content, mode):
    environment = {"WANDB_DIR": str(tmp_path), "WANDB_CONFIG_DIR": str(tmp_path / "config")}
    assert folder_mode(environment) is None
    for folder in ("wandb", ".wandb"):  # the second hides the first, as for the client
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "settings").write_text(content)
        found = folder_mode(environment)
        assert (found.mode if found else None) == mode
        assert found is None or found.path == tmp_path / folder / "settings"


@pytest.mark.parametrize(
    "text",
    [
        "Failed to verify credentials with h: the service process is busy and did not respond in time.",
        "Run initialization has timed out after 30.0 sec.",
        "HTTPConnectionPool: Max retries exceeded with url: /graphql (Connection refused)",
        "Failed to establish a new connection: Name or service not known",
    ],
)
def test_a_server_that_nobody_hears_of_is_no_wrong_key(monkeypatch, text):
    monkeypatch.setenv("WANDB_BASE_URL", "http://h")
    said = describe(RuntimeError(text), REQUEST)
    assert said["error"].startswith("no answer from http://h: check WANDB_BASE_URL")
    assert said["permanent"] is False


def test_names_of_files_are_as_they_were_and_no_longer_than_a_file_system_takes(tmp_path):
    assert name_in_files("m" * 223) == "m" * 223
    paths = {StatePaths(tmp_path).ledger("模" * 83 + end, "r") for end in ("a", "b")}
    assert len(paths) == 2
    assert all(len(f".{path.name}.01234567.tmp".encode()) <= 255 for path in paths)


def test_the_default_project_is_one_that_the_server_takes():
    assert check_runs([replace(spec_of("r"), project=Defaults().project)]) == []
