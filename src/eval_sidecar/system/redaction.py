"""Makes texts from elsewhere safe to show and log: without secrets, on one line, harmless to a terminal.

Names of files, and what scripts and servers say, may hold anything. As data they stay unchanged.
"""

from __future__ import annotations

import base64
import os
import re
import urllib.parse
from collections.abc import Iterable, Iterator
from typing import Optional

from eval_sidecar.system.accounts import netrc_entries, server_hosts

_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
#: User and password in an address.
_USERINFO = re.compile(r"(?<=://)[^/\s@\"'<>]+@")
#: Shorter ones are not keys of W&B, and may be part of any text.
_SHORTEST_SECRET = 8


def printable(text: str, keep: str = "") -> str:
    r"""Return a text with every invisible character as an escape (``\n``, ``\x1b``, ``\u202e``).

    Args:
        text: Any text, with lone surrogates too (bytes of a name that are not UTF-8).
        keep: Characters to leave as they are.
    """
    return "".join(char if char.isprintable() or char in keep else ascii(char)[1:-1] for char in text)


def without_secrets(text: str, more: Iterable[Optional[str]] = ()) -> str:
    """Return a text with ``***`` for the W&B key, passwords of server and proxy, and users in addresses.

    Args:
        text: Output of a server, a client or a script.
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
    hosts = server_hosts()
    # `wandb login` writes the user "user".
    yield from (
        password for host, user, password in netrc_entries() if user == "user" or host in (*hosts, "default")
    )
    for name in ("WANDB_BASE_URL", *_PROXIES):
        userinfo, found, _ = os.environ.get(name, "").partition("://")[2].rpartition("@")
        if found:
            plain = urllib.parse.unquote(userinfo)
            yield from (userinfo.partition(":")[2], plain.partition(":")[2])
            yield base64.b64encode(plain.encode("utf-8", "surrogateescape")).decode()
