"""Carries results between two machines: `pack` makes one file of them, `unpack` brings it in.

A bundle is an ordinary ``.tar.gz`` with a list of its members, each with its SHA-256, at its beginning.
Nothing here prints, and nothing here knows how a manifest is made.
"""

from eval_sidecar.transfer.find import Found, find_bundle
from eval_sidecar.transfer.packing import PackPlan, PackReport, pack
from eval_sidecar.transfer.scan import Rules
from eval_sidecar.transfer.unpacking import UnpackReport, unpack

__all__ = ["Found", "PackPlan", "PackReport", "Rules", "UnpackReport", "find_bundle", "pack", "unpack"]
