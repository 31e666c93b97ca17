"""Boots a machine with the zones of a captured zoneinfo, for captures that hold little more than that."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from kmemd.kernel import Kernel
from kmemd.machine import Machine

_NAME = re.compile(r"(?:(?P<nodes>\d+)node-)?.*?(?P<cpus>\d+)cpu")
_CPU = re.compile(r"^ *cpu: (\d+)$", re.MULTILINE)


def machine_from_zoneinfo(zoneinfo: str, name: str = "", **files: str) -> Machine:
    """A machine of the zones in ``zoneinfo``; ``files`` are more captured files, ``buddyinfo=…`` for proc/buddyinfo.

    Its CPUs are those of the page sets, or those that a name such as ``x86_64-2node-4G-4cpu`` tells; each node has an
    equal run of them.
    """
    nodes = sorted({int(nid) for nid in re.findall(r"^Node (\d+),", zoneinfo, re.MULTILINE)})
    found = [int(cpu) for cpu in _CPU.findall(zoneinfo)]
    match = _NAME.search(name)
    cpus = max(found) + 1 if found else int(match["cpus"]) if match else 1
    share = max(1, cpus // len(nodes))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _put(root / "proc/zoneinfo", zoneinfo)
        for file, text in files.items():
            _put(root / "proc" / file, text)
        _put(root / "sys/devices/system/cpu/online", f"0-{cpus - 1}\n")
        for place, nid in enumerate(nodes):
            last = cpus - 1 if nid == nodes[-1] else (place + 1) * share - 1
            _put(root / f"sys/devices/system/node/node{nid}/cpulist", f"{place * share}-{last}\n")
        machine = Machine.from_capture(root, shape_only=not files)
        # the folder goes: have everything read that is read on demand
        machine.boot_memory(machine.command_line())
        return machine


def bare_kernel(zoneinfo: str, name: str = "") -> Kernel:
    """A kernel on such a machine, before anything is allocated."""
    return Kernel(machine_from_zoneinfo(zoneinfo, name))


def _put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
