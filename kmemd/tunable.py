"""Knobs as data: a subsystem lists its tunables, and they are mounted generically.

A ``Tunable`` names the file, the attribute of the owner that holds the value, and the handler that
parses and prints as the kernel's own does (kernel/sysctl.c ``proc_dointvec_minmax`` and friends,
sysfs ``kstrtoul`` stores).
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from kmemd.errors import KernelError
from kmemd.steps import Steps, finish


@dataclass(frozen=True)
class Tunable:
    """One knob.

    ``path`` is relative to the mount, "proc/sys/vm/swappiness". ``attr`` is the owner's attribute.
    ``show(value) -> str`` prints it; ``parse(text, current, tunable) -> (value, bytes taken)`` reads a write
    or raises ``KernelError``. ``on_change`` names the owner's method that recomputes what depends on the
    value; it is called after the attribute is set, also when the value is what it was. ``when`` names an
    attribute of the owner that says whether this machine has the file. ``long_bits`` is the width of the
    machine's ``unsigned long``; ``text`` marks a string, where a later write of the same open continues.
    ``steps`` names the owner's method that sets the value in slices, for one that is much work.
    """

    path: str
    attr: str
    show: Callable[[Any], str]
    parse: Callable[[str, Any, Tunable], tuple[Any, int]]
    mode: int = 0o644
    min: int | None = None
    max: int | None = None
    on_change: str | None = None
    when: str | None = None
    long_bits: int = 64
    text: bool = False
    steps: str | None = None

    def bounded(self, value: int) -> int:
        """``value``, when it is within ``min`` and ``max``. EINVAL."""
        if (self.min is not None and value < self.min) or (self.max is not None and value > self.max):
            low, high = ("" if bound is None else bound for bound in (self.min, self.max))
            raise KernelError(errno.EINVAL, f"{value} is out of range {low}..{high} of {self.path}")
        return value


class PartialWriteError(KernelError):
    """A vector of numbers went wrong after some were taken: those stay, the write fails."""

    def __init__(self, error: KernelError, value: Any) -> None:
        super().__init__(error.errno, error.reason)
        self.value = value


class Tuned:
    """A subsystem with knobs."""

    TUNABLES: ClassVar[tuple[Tunable, ...]] = ()
    long_bits: int = 64

    def knob(self, tunable: Tunable) -> Tunable | None:
        """The row as it stands on this machine; None if this machine has no such file."""
        if tunable.when is not None and not getattr(self, tunable.when):
            return None
        return tunable if self.long_bits == tunable.long_bits else replace(tunable, long_bits=self.long_bits)

    def tune(self, tunable: Tunable, text: str) -> int:
        """Take a write to a knob and return the bytes taken. Errors are those of the knob's handler."""
        return finish(self.tune_steps(tunable, text))

    def tune_steps(self, tunable: Tunable, text: str) -> Steps[int]:
        """``tune`` in slices."""
        try:
            value, taken = tunable.parse(text, getattr(self, tunable.attr), tunable)
        except PartialWriteError as partial:
            setattr(self, tunable.attr, partial.value)
            raise
        if tunable.steps is None:
            setattr(self, tunable.attr, value)
        else:
            yield from getattr(self, tunable.steps)(value)
        self.changed(tunable)
        return taken

    def restore(self, captured: Mapping[str, str]) -> None:
        """Take over what the files of a real machine read, by path; what already is so is not touched."""
        for declared in self.TUNABLES:
            row, text = self.knob(declared), captured.get(declared.path, "").strip()
            if row is None or not text or not row.mode & 0o222:
                continue
            chosen = text.partition("[")[2].partition("]")[0] or text
            try:
                value, _ = row.parse(chosen, getattr(self, row.attr), row)
            except KernelError:
                continue
            if value != getattr(self, row.attr):
                setattr(self, row.attr, value)
                self.changed(row)

    def changed(self, tunable: Tunable) -> None:
        """Recompute what depends on the knob."""
        if tunable.on_change is not None:
            getattr(self, tunable.on_change)()
