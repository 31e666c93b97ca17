"""kmemd: a deterministic model of the Linux memory manager.

``System`` is the way in from Python; ``KernelError`` is what the model raises. Both are loaded when first
used, so that importing one module of the package does not import all of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kmemd.errors import KernelError

if TYPE_CHECKING:
    from kmemd.system import System

__version__ = "0.1.0"
__all__ = ["KernelError", "System"]


def __getattr__(name: str) -> object:
    """``System``, on first use."""
    if name == "System":
        from kmemd.system import System

        return System
    raise AttributeError(f"module 'kmemd' has no attribute {name!r}")
