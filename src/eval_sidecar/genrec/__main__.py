"""``python -m eval_sidecar.genrec``: see :mod:`eval_sidecar.genrec.cli`."""

import sys

from eval_sidecar.genrec.cli import main

if __name__ == "__main__":
    # `-m` searches the working directory first, where a folder may have a library's name.
    if not getattr(sys.flags, "safe_path", False):
        del sys.path[0]
    sys.exit(main())
