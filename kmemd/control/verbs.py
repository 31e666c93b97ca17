"""All verbs: importing the modules that declare them is what fills ``VERBS``."""

from __future__ import annotations

from kmemd.control import (  # isort: skip
    verbs_pages,
    verbs_slab,
    verbs_vmalloc,
    verbs_highmem,
    verbs_devices,
    verbs_memory,
    verbs_tasks,
    verbs_mm,
    verbs_access,
    verbs_files,
    verbs_numa,
    verbs_signals,
    verbs_general,
)
from kmemd.control.language import VERBS
from kmemd.control.verbs_general import listing, sections

MODULES = (
    verbs_pages,
    verbs_slab,
    verbs_vmalloc,
    verbs_highmem,
    verbs_devices,
    verbs_memory,
    verbs_tasks,
    verbs_mm,
    verbs_access,
    verbs_files,
    verbs_numa,
    verbs_signals,
    verbs_general,
)
"""In the order in which the verbs are listed."""

__all__ = ["MODULES", "VERBS", "listing", "sections"]
