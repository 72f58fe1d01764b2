"""Writes the receipt after uploads; its content is in `manifest.receipt`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from eval_sidecar.delivery.uploading import ModelUpload, Uploader
from eval_sidecar.errors import StateError
from eval_sidecar.ledger.ledger import Ledger
from eval_sidecar.ledger.store import load
from eval_sidecar.manifest.receipt import part_of, read_parts, write_parts
from eval_sidecar.system.logs import WarnOnce
from eval_sidecar.types import ModelSpec


class ReceiptWriter:
    """Keeps a receipt up to date with the ledgers of a manifest's models.

    Attributes:
        path: The receipt.
        problem: Why the last `renew` could not write it; None if it could.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problem: Optional[str] = None
        self._written: object = None
        self._warn_once = WarnOnce()

    def renew(
        self, models: Sequence[ModelSpec], uploader: Uploader, uploads: Sequence[ModelUpload]
    ) -> Optional[Path]:
        """Write the receipt after a pass; return its path, or None if that was not possible."""
        try:
            self.write(models, uploader, uploads)
        except StateError as error:
            self.problem = f"{error}; `pack --incremental` elsewhere packs more than needed until then"
            self._warn_once(self.problem)
            return None
        self.problem = None
        return self.path

    def write(
        self, models: Sequence[ModelSpec], uploader: Uploader, uploads: Sequence[ModelUpload] = ()
    ) -> None:
        """Write what the ledgers of all these models say is confirmed.

        Args:
            models: All of the manifest.
            uploader: Knows where the ledgers are.
            uploads: Of the pass that has just ended; ledgers that it did not open are unchanged.

        Raises:
            StateError: if the file cannot be written.
        """
        files = {spec.model_dir: uploader.state_file(spec) for spec in models}
        new = {upload.spec.model_dir: upload.receipt for upload in uploads if upload.receipt}
        same = {upload.spec.model_dir for upload in uploads if not upload.was_opened}
        is_known = uploader.knows_receipt(self.path)
        if is_known and self._written == files and len(same) == len(files):
            return
        before = read_parts(self.path) if is_known else {}
        parts = {}
        for spec in models:
            model = spec.model_dir
            if model in new:
                parts[model] = new[model]
            elif model in same and before.get(model, {}).get("run_id") == spec.run_id:
                parts[model] = before[model]
            elif (ledger := _readable(files[model])) is not None:
                parts[model] = part_of(ledger)
        write_parts(self.path, parts)
        self._written = files


def _readable(path: Path) -> Optional[Ledger]:
    try:
        return load(path, keep_corrupt=True)
    except StateError:
        return None  # the upload of its model reports it
