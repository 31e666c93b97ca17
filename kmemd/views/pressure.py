"""Pressure files: two lines of averages and a total, and a trigger for each open (kernel/sched/psi.c).

Used by ``/proc/pressure`` and by the files of control groups.
"""

from __future__ import annotations

import errno
import select
from collections.abc import Iterator

from kmemd.errors import KernelError
from kmemd.mm.capability import CAP_SYS_RESOURCE
from kmemd.mm.psi import FIXED_1, FSHIFT, Psi, Trigger, parse_trigger
from kmemd.steps import Steps
from kmemd.views.tree import Caller


class PressureFile:
    """One open file of one resource: at most one trigger per open. ``in_cgroup``: the whole text is the trigger."""

    pollable = True

    def __init__(self, psi: Psi, resource: str, caller: Caller, *, in_cgroup: bool = False) -> None:
        self._psi = psi
        self._resource = resource
        self._privileged = caller.capable(CAP_SYS_RESOURCE)
        self._in_cgroup = in_cgroup
        self._trigger: Trigger | None = None
        self._snapshot = b""

    def read(self, offset: int, size: int) -> bytes:
        """The two lines, taken anew at offset 0."""
        if offset == 0 or not self._snapshot:
            self._snapshot = "".join(pressure_lines(self._psi, self._resource)).encode()
        return self._snapshot[offset : offset + size]

    def write(self, data: bytes) -> Steps[int]:
        """Set the trigger. EINVAL; EBUSY when there is one."""
        if not data and self._in_cgroup:
            return 0
        if not data:
            raise KernelError(errno.EINVAL, "a trigger is 'some' or 'full', threshold and window in microseconds")
        if self._trigger is not None:
            raise KernelError(errno.EBUSY, "this open file has a trigger already")
        text = data.decode("utf-8", "surrogateescape") + ("\0" if self._in_cgroup else "")
        kind, threshold, window = parse_trigger(text, privileged=self._privileged)
        self._trigger = self._psi.add_trigger(self._resource, kind, threshold, window, privileged=self._privileged)
        return len(data)
        yield

    def poll(self) -> int:
        """POLLPRI once for each time that the trigger went off, with POLLERR for ever without one."""
        if self._trigger is None:
            return select.POLLERR | select.POLLPRI
        went_off, self._trigger.event = self._trigger.event, False
        return select.POLLPRI if went_off else 0

    def woken(self) -> bool:
        """Whether the trigger went off and nobody has noticed."""
        return self._trigger is None or self._trigger.event

    def close(self) -> None:
        """The trigger goes with the open file."""
        if self._trigger is not None:
            self._psi.remove_trigger(self._trigger)
            self._trigger = None


def pressure_lines(psi: Psi, resource: str) -> Iterator[str]:
    """The lines of one resource."""
    for kind, averages, total in psi.report(resource):
        shown = " ".join(
            f"avg{window}={_percent(average)}" for window, average in zip((10, 60, 300), averages, strict=True)
        )
        yield f"{kind} {shown} total={total}\n"


def _percent(fixed: int) -> str:
    return f"{fixed >> FSHIFT}.{(fixed % FIXED_1 * 100) >> FSHIFT:02}"
