"""The settings that affect an evaluation's numbers: kept with each result, and compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from eval_sidecar.ledger.stamps import FolderStamp, folder_stamp
from eval_sidecar.system.digests import digest_file

#: Suffix of the name under which a file's hash is kept.
_SHA = "_sha256"
#: Files up to this size are hashed whole, in bytes; of larger ones, blocks from everywhere.
_WHOLE = 64 << 20


@dataclass
class Settings:
    """Flags that affect the numbers, and files whose content does.

    Attributes:
        values: By name, as the flags have them.
        files: By name, the files; each is hashed again when it may have changed.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)
    _known: dict[str, tuple[Optional[FolderStamp], Optional[str]]] = field(default_factory=dict)

    def now(self) -> dict[str, Any]:
        """Return the current settings by name: plain values; for a file, its path and its content's hash."""
        found = dict(self.values)
        for name, path in self.files.items():
            found[name] = str(path)
            found[name + _SHA] = self._digest(name, path)
        return found

    def _digest(self, name: str, path: Path) -> Optional[str]:
        stamp = folder_stamp(path)
        known = self._known.get(name)
        if known is None or known[0] != stamp or stamp is None:
            try:
                digest: Optional[str] = digest_file(path, _WHOLE).hex()[:16]
            except OSError:
                digest = None  # the evaluation will report what is wrong with it
            known = self._known[name] = (stamp, digest)
        return known[1]


def key_of(settings: Mapping[str, Any]) -> Optional[str]:
    """Return a short name for settings, the same wherever their files are; None if there are none."""
    if not settings:
        return None
    counted = {name: value for name, value in settings.items() if settings.get(name + _SHA) is None}
    return hashlib.sha256(json.dumps(counted, sort_keys=True, default=str).encode()).hexdigest()[:8]


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return what has changed, as ``num_beams 50 → 5``; a moved file with the same content has not."""
    found = []
    for name in [*before, *(name for name in now if name not in before)]:
        old, new = before.get(name), now.get(name)
        if old == new or (name + _SHA in now and before.get(name + _SHA) == now[name + _SHA]):
            continue
        if name.endswith(_SHA):
            file = name[: -len(_SHA)]
            if before.get(file) == now.get(file):
                found.append(f"the content of {file} ({now.get(file)})")
            continue
        found.append(f"{name} {_shown(old)} → {_shown(new)}")
    return found


def _shown(value: Any) -> str:  # noqa: ANN401 - plain JSON
    return "unknown" if value is None else str(value)
