"""Where points go: one contract (`base`), one module a service."""
