"""All verbs: importing the modules that declare them is what fills ``VERBS``."""

from __future__ import annotations

from importlib import import_module

from kmemd.control.language import VERBS
from kmemd.control.verbs_general import listing, sections

SUBJECTS = (
    *("pages", "slab", "vmalloc", "highmem", "devices", "memory", "tasks", "mm", "access", "files", "numa"),
    *("signals", "general"),
)
MODULES = tuple(import_module(f"kmemd.control.verbs_{subject}") for subject in SUBJECTS)
"""In the order in which the verbs are listed."""

__all__ = ["MODULES", "VERBS", "listing", "sections"]
