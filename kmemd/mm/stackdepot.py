"""Call stacks, each kept once and named by a small number (lib/stackdepot.c).

A stack is a tuple of frame names, innermost first: ``("post_alloc_hook", "prep_new_page", ...)``.
A frame is a symbol of the synthetic kallsyms, or ``symbol+0x2a`` / ``symbol+0x2a[module]``
as a user wrote it; addresses and sizes are the business of ``debug/kallsyms``.
"""

from __future__ import annotations


class StackDepot:
    """Interns stacks. Handle 0 is the empty stack."""

    def __init__(self) -> None:
        self._stacks: list[tuple[str, ...]] = [()]
        self._handles: dict[tuple[str, ...], int] = {(): 0}
        self._extended: dict[tuple[int, tuple[str, ...]], int] = {}

    def save(self, frames: tuple[str, ...]) -> int:
        """The handle of ``frames`` (innermost first)."""
        handle = self._handles.get(frames)
        if handle is None:
            handle = self._handles[frames] = len(self._stacks)
            self._stacks.append(frames)
        return handle

    def extend(self, outer: int, inner: tuple[str, ...]) -> int:
        """The handle of ``inner`` frames called from the stack ``outer``."""
        key = (outer, inner)
        handle = self._extended.get(key)
        if handle is None:
            handle = self._extended[key] = self.save(inner + self._stacks[outer])
        return handle

    def frames(self, handle: int) -> tuple[str, ...]:
        """The frames of a handle, innermost first."""
        return self._stacks[handle]

    def __len__(self) -> int:
        return len(self._stacks)
