"""All verbs: importing the modules that declare them is what fills ``VERBS``."""

from __future__ import annotations

from importlib import import_module

from kmemd.control.language import VERBS
from kmemd.control.verbs_general import SECTIONS, listing, sections

MODULES = tuple(import_module(f"kmemd.control.{module}") for module in SECTIONS)

__all__ = ["MODULES", "VERBS", "listing", "sections"]
