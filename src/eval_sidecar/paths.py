"""Every path and file name that the sidecar writes."""

from __future__ import annotations

#: Where the sidecar keeps its own things, beside the model dirs.
OWN_FOLDER = ".eval-sidecar"


#: Folder, beside the logs of evaluations, of links to checkpoints whose parent has not the model's name.
LINKS = ".links"
