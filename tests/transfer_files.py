"""Results, bundles and archives from elsewhere for the tests of `eval_sidecar.transfer`."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Optional

from eval_sidecar.paths import MANIFEST
from eval_sidecar.transfer import Found, PackPlan, PackReport, UnpackReport, pack, unpack
from eval_sidecar.transfer.index import INDEX_NAME, TOP

SECOND = 10**9
#: Some moment; files of the tests are written at moments after it, whatever the clock says.
NOW = 1_700_000_000 * SECOND
MODEL = "Instruments-grec-sft-qwen4B-4-256-dsz0"

Tree = Mapping[str, bytes]


def metrics(value: float) -> bytes:
    return json.dumps({"HR@10": value, "NDCG@10": value / 2}).encode()


def result(step: int, model: str = MODEL) -> str:
    return f"{model}/checkpoint-{step}/metrics.json"


#: Three results of two models, one with a table beside it, and a manifest.
TREE: Tree = {
    result(100): metrics(0.1),
    f"{MODEL}/checkpoint-100/metrics.tsv": b"HR@10\t0.1\n",
    result(200): metrics(0.2),
    result(50, "Games-grec-sft"): metrics(0.3),
    MANIFEST: b'{"version": 1, "models": []}',
}


def write(path: Path, data: bytes, mtime_ns: int = NOW) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    os.utime(path, ns=(mtime_ns, mtime_ns))
    return path


def write_tree(root: Path, files: Tree = TREE, mtime_ns: int = NOW) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        write(root / name, data, mtime_ns)
    return root


def read_tree(root: Path) -> dict[str, bytes]:
    """Every file that is carried, and anything hidden that should not be there."""
    own = (".pack_cache.json", ".pack_history.json", ".unpack.lock", ".unpacked.json")
    paths = [path for path in root.rglob("*") if path.is_file() and path.name not in own]
    paths = [path for path in paths if ".before-unpack" not in str(path.relative_to(root))]
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


def read_times(root: Path) -> dict[str, int]:
    return {name: (root / name).stat().st_mtime_ns for name in read_tree(root)}


def make(root: Path, out: Path, **changes: Any) -> PackReport:
    out.mkdir(parents=True, exist_ok=True)
    return pack(PackPlan(root, root / MANIFEST, out, **changes))


def bundle(root: Path, out: Path, **changes: Any) -> Path:
    """Pack into one file."""
    (path,) = make(root, out, **changes).archive
    return path


def bring(archive: Path, root: Path, **changes: Any) -> UnpackReport:
    return unpack(Found((archive,), str(archive), 0), root, **changes)


def receipt(path: Path, confirmed: Mapping[str, Mapping[int, str]], run_id: Optional[str] = None) -> Path:
    models = {
        model: {
            "run_id": run_id,
            "confirmed": {str(step): {"digest": text, "revision": 0} for step, text in steps.items()},
        }
        for model, steps in confirmed.items()
    }
    path.write_text(json.dumps({"version": 1, "generated_at": "2026-01-01T00:00:00+00:00", "models": models}))
    return path


def member(name: str, data: bytes = b"x", kind: bytes = tarfile.REGTYPE, **fields: Any) -> tuple[Any, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.mtime = kind, len(data), NOW // SECOND
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def write_tar(path: Path, members: Iterable[tuple[Any, bytes]], form: int = tarfile.PAX_FORMAT) -> Path:
    """An archive as another program makes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz", format=form) as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return path


def members_of(path: Path) -> list[tuple[Any, bytes]]:
    """The members of a bundle, to be changed and written again."""
    with tarfile.open(path) as archive:
        return [(info, archive.extractfile(info).read()) for info in archive]  # type: ignore[union-attr]


def index_of(path: Path) -> Any:
    with tarfile.open(path) as archive:
        return json.loads(archive.extractfile(f"{TOP}/{INDEX_NAME}").read())  # type: ignore[union-attr]


def with_index(path: Path, target: Path, change: Any) -> Path:
    """Write a bundle again, with its list of members changed in place by a function."""
    listing = index_of(path)
    replaced = change(listing)
    data = json.dumps(listing if replaced is None else replaced).encode()
    return write_tar(target, [member(f"{TOP}/{INDEX_NAME}", data), *members_of(path)[1:]])


def repacked(path: Path, change: Any) -> Path:
    """Write an archive's tar again, changed by a function."""
    path.write_bytes(gzip.compress(change(gzip.decompress(path.read_bytes())), mtime=0))
    return path
