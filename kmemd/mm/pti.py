"""Page table isolation: whether programs run on tables of their own, with hardly any of the kernel in them
(arch/x86/mm/pti.c).

Which tables have what is in mm/init_mm.py; here is only the decision. Left out: the second page of a top table and the
tables below it as memory, what switching costs, ``cpu_tss_rw`` in the programs' tables, pti on i386, which needs PAE.
"""

from __future__ import annotations

from dataclasses import dataclass

from kmemd.mm.layout import X86_64
from kmemd.mm.params import CommandLine

TITLE = "Kernel/User page tables isolation: "
MELTDOWN = "cpu_meltdown"


@dataclass(frozen=True)
class Pti:
    """Whether isolation is on, and what boot says of how that came about, "" for nothing."""

    enabled: bool
    why: str = ""


def check_boottime_disable(arch: str, bugs: str, cmdline: CommandLine) -> Pti:
    """What ``pti=``, ``nopti``, ``mitigations=off`` and the CPU's ``bugs`` come to (``pti_check_boottime_disable``)."""
    if arch != X86_64:
        return Pti(enabled=False)
    insecure = MELTDOWN in bugs.split()
    asked = cmdline.get("pti")
    if asked == "on":
        return Pti(enabled=True, why="" if insecure else f"{TITLE}force enabled on command line.")
    off = asked == "off" or (asked != "auto" and (cmdline.has("nopti") or cmdline.get("mitigations") == "off"))
    if off:
        return Pti(enabled=False, why=f"{TITLE}disabled on command line." if insecure else "")
    return Pti(enabled=insecure)
