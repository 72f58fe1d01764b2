"""Faults on purpose: the real command line and the real W&B client against a server that fails on request.

`scripts/faults` runs it. A trial is made from a seed and a number, breaks something at a random moment,
lets the command be started again until it ends by itself, and compares the server with the disk.
"""
