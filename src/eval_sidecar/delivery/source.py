"""Which models are uploaded: those of a manifest as it is now, and which results belong to none of them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Callable, Optional

from eval_sidecar.delivery.uploading import Uploader
from eval_sidecar.errors import ResultError, UsageError
from eval_sidecar.ledger import lookalikes
from eval_sidecar.ledger.stamps import stamp
from eval_sidecar.manifest.manifest import load_manifest
from eval_sidecar.system.logs import WarnOnce
from eval_sidecar.types import ModelSpec


class Source:
    """The models of a manifest, which is read again if it has changed.

    Args:
        manifest: The manifest's file.
        overrides: A file with changes to it, if there is one.
        filters: As for `choose_models`.
        check: Called with the models each time; returns warnings.
    """

    def __init__(
        self,
        manifest: Path,
        overrides: Optional[Path],
        filters: Sequence[str],
        check: Callable[[Sequence[ModelSpec]], Iterable[str]] = lambda models: (),
    ) -> None:
        self._manifest = manifest
        self._overrides = overrides
        self._filters = filters
        self._check = check
        self._all: list[ModelSpec] = []
        self._models: Optional[list[ModelSpec]] = None
        self._stamps: object = None
        self._warn_once = WarnOnce()

    @property
    def all_models(self) -> list[ModelSpec]:
        """Every model of the manifest, as `load` last found it."""
        return self._all

    def load(self) -> list[ModelSpec]:
        """Return the models to work on.

        Raises:
            UsageError: if the manifest is wrong. If it was good before, the error is logged and
                the last good one stays in use.
        """
        try:
            stamps = [stamp(path) for path in (self._manifest, self._overrides) if path is not None]
            if self._models is None or stamps != self._stamps:
                everything = load_manifest(self._manifest, self._overrides)
                models = choose_models(everything, self._filters)
                for line in self._check(models):
                    self._warn_once(line)
                self._models, self._all, self._stamps = models, everything, stamps
        except (UsageError, ResultError) as error:
            if self._models is None:
                raise
            self._warn_once(f"{error}; the manifest that was read before stays in use")
        return self._models

    def overlooked(self, uploader: Uploader) -> list[str]:
        """Return what in the results looks like a result and is not uploaded, one line each."""
        lines = uploader.overlooked(self._models or [])
        if not self._filters:
            listed = {spec.model_dir for spec in self._all}
            lines += lookalikes.outside(uploader.results_root, listed, self._manifest)
        return lines

    def warn_of_overlooked(self, uploader: Uploader) -> None:
        """Log each overlooked result once."""
        for line in self.overlooked(uploader):
            self._warn_once(line)


def choose_models(models: Sequence[ModelSpec], filters: Sequence[str]) -> list[ModelSpec]:
    """Return the models that a filter names; all if there is no filter.

    Args:
        models: All of the manifest.
        filters: Names; an entry may have several, separated by commas.

    Raises:
        UsageError: if a name matches nothing; names close ones.
    """
    wanted = [name.strip() for names in filters for name in names.split(",") if name.strip()]
    if filters and not wanted:
        raise UsageError(
            f"{filters[0]!r}: is empty; name a model, or omit it for all models", setting="model_filter"
        )
    known = {spec.model_dir for spec in models}
    for name in wanted:
        if name not in known:
            close = difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.4)
            near = f"; close to it: {', '.join(close)}" if close else f"; there are {len(known)} models in it"
            raise UsageError(f"{name}: there is no such model in the manifest{near}", setting="model_filter")
    return [spec for spec in models if not wanted or spec.model_dir in wanted]
