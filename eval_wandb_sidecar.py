#!/usr/bin/env python3
"""The command line of eval-sidecar, runnable from a checkout: ``python eval_wandb_sidecar.py --sft-root …``.

Where this Python lacks what eval-sidecar needs, the one that ``scripts/setup`` made takes over.
"""

import importlib.util
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
NEEDED = ("click", "filelock", "psutil", "rich", "watchfiles")


def main() -> None:
    """Hand over to the package."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    own = ROOT / ".venv"
    own_python = own / "bin" / "python"
    if missing and own_python.exists() and Path(sys.prefix).resolve() != own.resolve():
        os.execv(str(own_python), [str(own_python), str(Path(__file__).resolve()), *sys.argv[1:]])
    sys.path.insert(0, str(ROOT / "src"))
    if missing:
        from eval_sidecar.installation import install_command

        sys.exit(
            "eval-sidecar: {} has no {}: run scripts/setup in {}, or {}".format(
                sys.executable, ", ".join(missing), ROOT, install_command()
            )
        )
    from eval_sidecar.cli import main as run

    run()


if __name__ == "__main__":
    main()
