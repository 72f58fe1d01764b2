"""``python -m eval_sidecar.genrec``: see :mod:`eval_sidecar.genrec.cli`."""

import sys

from eval_sidecar.genrec.cli import main

if __name__ == "__main__":
    sys.exit(main())
