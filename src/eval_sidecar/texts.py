"""Texts from elsewhere as they may be shown and kept: without secrets, on one line, obeyed by no terminal.

Names of files, and what scripts and servers say, may hold anything. As data they stay as they are.
"""

from __future__ import annotations

import base64
import netrc
import os
import re
import urllib.parse
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Optional

_DEFAULT_SERVER = "https://api.wandb.ai"
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
#: User and password in an address.
_USERINFO = re.compile(r"(?<=://)[^/\s@\"'<>]+@")
#: Shorter ones are no keys of W&B, and may be part of any text.
_SHORTEST_SECRET = 8


def printable(text: str, keep: str = "") -> str:
    r"""A text with everything as an escape (``\n``, ``\x1b``, ``\u202e``) that is no visible character.

    Args:
        text: Any text, with lone surrogates too (bytes of a name that are no UTF-8).
        keep: Characters to leave as they are.
    """
    return "".join(char if char.isprintable() or char in keep else ascii(char)[1:-1] for char in text)


def configured_key() -> Optional[str]:
    """The W&B key that is in the environment or, for the server in use, in the netrc file."""
    keys = {host: password for host, _, password in _netrc_entries()}
    return os.environ.get("WANDB_API_KEY") or next(filter(None, map(keys.get, (*_hosts(), "default"))), None)


def without_secrets(text: str, more: Iterable[Optional[str]] = ()) -> str:
    """A text with ``***`` for the W&B key, for passwords of server and proxy, and for users in addresses.

    Args:
        text: Whatever a server, a client or a script has said.
        more: Secrets beside those that are configured.
    """
    secrets = {secret.strip() for secret in (*_secrets(), *more) if secret}
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= _SHORTEST_SECRET:
            # Basic authentication sends it as the password of the user "api".
            encoded = base64.b64encode(f"api:{secret}".encode("utf-8", "surrogateescape")).decode()
            text = text.replace(secret, "***").replace(encoded, "***")
    return _USERINFO.sub("***@", text)


def _secrets() -> Iterator[str]:
    yield os.environ.get("WANDB_API_KEY", "")
    hosts = _hosts()
    # `wandb login` writes the user "user".
    yield from (
        password for host, user, password in _netrc_entries() if user == "user" or host in (*hosts, "default")
    )
    for name in ("WANDB_BASE_URL", *_PROXIES):
        userinfo, found, _ = os.environ.get(name, "").partition("://")[2].rpartition("@")
        if found:
            plain = urllib.parse.unquote(userinfo)
            yield from (userinfo.partition(":")[2], plain.partition(":")[2])
            yield base64.b64encode(plain.encode("utf-8", "surrogateescape")).decode()


def _hosts() -> tuple[str, ...]:
    """The server in use as a netrc file may name it: clients differ in whether the port belongs to it."""
    address = os.environ.get("WANDB_BASE_URL") or _DEFAULT_SERVER
    netloc = address.partition("://")[2].partition("/")[0]
    host = netloc.rpartition("@")[2]
    return (netloc, host, host.partition(":")[0])


def _netrc_entries() -> list[tuple[str, str, str]]:
    """Host, user and password of every entry of the netrc file that the client reads."""
    path = Path(os.environ.get("NETRC") or "~/.netrc")
    try:
        hosts = netrc.netrc(str(path.expanduser())).hosts
    except (OSError, ValueError, RuntimeError, netrc.NetrcParseError):
        return []
    return [(host, user or "", password or "") for host, (user, _, password) in hosts.items()]
