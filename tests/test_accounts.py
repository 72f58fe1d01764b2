"""Which W&B server and key are configured, by variables and by what W&B's commands have written."""

from __future__ import annotations

from pathlib import Path

import pytest

from eval_sidecar.system.accounts import configured_key, server_address, server_hosts

KEY = "k" * 40


def told(folder: Path, *, netrc: str = "", settings: str = "", **variables: str) -> dict[str, str]:
    (folder / "netrc").write_text(netrc)
    (folder / "config").mkdir()
    (folder / "config" / "settings").write_text(settings)
    here = {"NETRC": f"{folder}/netrc", "WANDB_DIR": f"{folder}", "WANDB_CONFIG_DIR": f"{folder}/config"}
    return {**here, **variables}


@pytest.mark.parametrize("host", ["api.wandb.ai", "api.forge.coreweave.com", "default"])
def test_the_clouds_key_is_found_under_the_name_that_any_version_has_written(tmp_path, host):
    machine = "default" if host == "default" else f"machine {host}"
    assert configured_key(told(tmp_path, netrc=f"{machine}\n  login user\n  password {KEY}\n")) == KEY


def test_an_address_of_the_cloud_finds_the_key_of_its_other_name(tmp_path):
    netrc = f"machine api.forge.coreweave.com login user password {KEY}\n"
    assert configured_key(told(tmp_path, netrc=netrc, WANDB_BASE_URL="https://api.wandb.ai")) == KEY


def test_a_key_of_another_server_is_none_of_this_one(tmp_path):
    netrc = f"machine wandb.lab login user password {KEY}\n"
    assert configured_key(told(tmp_path, netrc=netrc)) is None


def test_the_server_of_wandb_login_is_known_and_a_variable_is_stronger(tmp_path):
    netrc = f"machine wandb.lab:8080 login user password {KEY}\n"
    found = told(tmp_path, netrc=netrc, settings="[default]\nbase_url = http://wandb.lab:8080\n")
    assert (server_address(found), configured_key(found)) == ("http://wandb.lab:8080", KEY)
    assert server_address({**found, "WANDB_BASE_URL": ""}) == "http://wandb.lab:8080"
    assert server_hosts({**found, "WANDB_BASE_URL": "http://u:p@other"})[1] == "other"


def test_no_server_that_is_named_is_the_cloud(tmp_path):
    found = told(tmp_path)
    assert (server_address(found), configured_key(found)) == (None, None)
    assert configured_key({**found, "WANDB_API_KEY": f" {KEY}\n"}) == KEY
