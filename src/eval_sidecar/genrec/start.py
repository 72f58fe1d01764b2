"""Runs a module of this package: ``python start.py MODULE [ARGUMENT ...]``, by any Python with torch.

The package need not be installed in that Python, and the folder that holds it is not searched for anything
else: if it is installed, that folder is another environment's site-packages.
"""

import importlib.util
import sys
from pathlib import Path


def main() -> None:
    """Find the package, import the module that is named, and run its ``main``."""
    if not getattr(sys.flags, "safe_path", False):
        del sys.path[0]  # the folder of this file: nothing in it is to be imported by its own name
    package = Path(__file__).resolve().parent.parent
    spec = importlib.util.spec_from_file_location(
        "eval_sidecar", package / "__init__.py", submodule_search_locations=[str(package)]
    )
    assert spec is not None and spec.loader is not None
    sys.modules["eval_sidecar"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["eval_sidecar"])
    sys.exit(importlib.import_module(sys.argv.pop(1)).main())


if __name__ == "__main__":
    main()
