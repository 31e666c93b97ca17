"""Page tables of five levels: addresses beyond 47 bits, and what VmPTE counts."""

from __future__ import annotations

import re

import pytest

from kmemd import System
from kmemd.mm.units import PAGE_SIZE

HIGH = 1 << 55
"""An address that four levels do not reach."""


def tables_kb(system: System, pid: int) -> int:
    found = re.search(r"VmPTE:\s+(\d+) kB", system.read(f"/proc/{pid}/status").decode())
    assert found is not None
    return int(found[1])


@pytest.mark.parametrize(("cmdline", "high"), [("", False), ("la57", True)])
def test_only_a_hint_beyond_the_window_leads_there(cmdline: str, high: bool) -> None:
    system = System.boot("default", cmdline=cmdline)
    system.command("p = spawn worker")
    assert int(re.search(r"addr=(\S+)", system.command("m = mmap p 1M"))[1], 16) < 1 << 47
    reply = system.command(f"h = mmap p 1M addr={HIGH:#x}")
    assert (f"addr={HIGH:#x} " in reply) == high
    pid = system.kernel.handles.get("p").pid
    before = tables_kb(system, pid)
    system.command("access p h 1 w")
    grown = (tables_kb(system, pid) - before) * 1024 // PAGE_SIZE
    assert not high or grown == 3, "tables of PTEs, PMDs and PUDs count, the P4D's does not"
    system.check()
    system.command("exit p")
    system.check()
