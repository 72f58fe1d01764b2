"""eval-sidecar: every checkpoint of a training evaluated once, on one curve per model."""

__version__ = "0.1.0"
