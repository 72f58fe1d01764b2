"""``python -m eval_sidecar.genrec``: see :mod:`eval_sidecar.genrec.cli`."""

import sys

from eval_sidecar.genrec.cli import main
from eval_sidecar.genrec.libraries import forget_working_directory

if __name__ == "__main__":
    forget_working_directory()
    sys.exit(main())
