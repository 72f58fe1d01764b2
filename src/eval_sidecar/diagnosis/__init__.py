"""Looks at what a machine has and tries what the sidecar does there: ``eval-sidecar doctor``."""
