"""Which W&B server and key are configured: by variables, and by what W&B's own commands have written.

Imports no wandb, and asks no server.
"""

from __future__ import annotations

import configparser
import netrc
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Optional

#: Names of the cloud's server in a netrc file: clients of different versions write different ones.
_CLOUD_HOSTS = ("api.forge.coreweave.com", "api.wandb.ai")
#: The server's name in messages if none is configured.
CLOUD = "W&B's cloud"


def configured_key(environment: Mapping[str, str] = os.environ) -> Optional[str]:
    """Return the W&B key that is in the environment or, for the server in use, in the netrc file."""
    given = environment.get("WANDB_API_KEY", "").strip()
    keys = {host: password for host, _, password in netrc_entries(environment)}
    return given or next(filter(None, map(keys.get, (*server_hosts(environment), "default"))), None)


def server_address(environment: Mapping[str, str] = os.environ) -> Optional[str]:
    """Return the server that WANDB_BASE_URL or else ``wandb login --host`` names; None for the cloud."""
    given = environment.get("WANDB_BASE_URL")
    written = (values.get("base_url", "").strip() for _, values in folder_settings(environment))
    return given or next(filter(None, written), None)


def server_hosts(environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Return the names that a netrc file may have for the server in use: some clients add the port."""
    address = server_address(environment)
    if address is None:
        return _CLOUD_HOSTS
    netloc = address.partition("://")[2].partition("/")[0]
    host = netloc.rpartition("@")[2]
    cloud = _CLOUD_HOSTS if host in _CLOUD_HOSTS else ()
    return (netloc, host, host.partition(":")[0], *cloud)


def folder_settings(
    environment: Mapping[str, str] = os.environ,
) -> Iterator[tuple[Path, Mapping[str, str]]]:
    """Yield each file that W&B's commands have written, of this folder and then of this user, and its values.

    Our own client works in another folder and would not see the first.
    """
    here = Path(environment.get("WANDB_DIR") or ".")
    hidden = here / ".wandb"
    config = Path(environment.get("WANDB_CONFIG_DIR") or "~/.config/wandb")
    for name in ((hidden if hidden.is_dir() else here / "wandb") / "settings", config / "settings"):
        try:
            path = name.expanduser().absolute()
            parser = configparser.ConfigParser(interpolation=None)
            parser.read_string(path.read_text(encoding="utf-8"))
            yield path, parser["default"]
        except (OSError, ValueError, KeyError, RuntimeError, configparser.Error):
            continue  # missing, or not readable for the client either


def netrc_entries(environment: Mapping[str, str] = os.environ) -> list[tuple[str, str, str]]:
    """Return host, user and password of every entry of the netrc file that the client reads."""
    path = Path(environment.get("NETRC") or "~/.netrc")
    try:
        hosts = netrc.netrc(str(path.expanduser())).hosts
    except (OSError, ValueError, RuntimeError, netrc.NetrcParseError):
        return []
    return [(host, user or "", password or "") for host, (user, _, password) in hosts.items()]
