"""Brings the ledger's due points to trackers, each exactly once."""
