"""``python -m faults``, with ``tests`` on the path."""

from faults.harness import main

if __name__ == "__main__":
    main()
