#!/usr/bin/env python3
"""The command line of eval-sidecar, runnable from a checkout: ``python eval_wandb_sidecar.py --sft-root …``.

Where this Python lacks what eval-sidecar needs, the one that ``scripts/setup`` made takes over.
"""

import importlib.util
import os
import sys

ROOT = os.path.dirname(os.path.abspath(__file__))
NEEDED = ("click", "filelock", "psutil", "rich", "watchfiles")


def main():
    """Hand over to the package."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    own_python = os.path.join(ROOT, ".venv", "bin", "python")
    if missing and os.path.exists(own_python) and os.path.realpath(sys.prefix) != os.path.join(ROOT, ".venv"):
        os.execv(own_python, [own_python, os.path.abspath(__file__), *sys.argv[1:]])
    if missing:
        sys.exit(
            "eval-sidecar: {} has no {}: run scripts/setup in {}, or `pip install {}` there".format(
                sys.executable, ", ".join(missing), ROOT, ROOT
            )
        )
    sys.path.insert(0, os.path.join(ROOT, "src"))
    from eval_sidecar.cli import main as run

    run()


if __name__ == "__main__":
    main()
