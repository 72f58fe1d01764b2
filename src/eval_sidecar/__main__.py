"""``python -m eval_sidecar``."""

from eval_sidecar.cli import main

if __name__ == "__main__":
    main()
