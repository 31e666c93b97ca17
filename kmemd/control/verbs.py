"""All verbs: importing the modules that declare them is what fills ``VERBS``."""

from __future__ import annotations

from kmemd.control import verbs_pages, verbs_slab, verbs_vmalloc, verbs_memory, verbs_tasks, verbs_general  # isort: skip
from kmemd.control.language import VERBS
from kmemd.control.verbs_general import listing

MODULES = (verbs_pages, verbs_slab, verbs_vmalloc, verbs_memory, verbs_tasks, verbs_general)
"""In the order in which the verbs are listed."""

__all__ = ["MODULES", "VERBS", "listing"]
