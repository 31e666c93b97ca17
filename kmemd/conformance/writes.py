"""Writes to control files: bytes taken, errno, and what the file reads afterwards.

``writes.tsv`` has a row per ``write(2)``, each on the state that the rows before left, on a machine of 1 GiB and two
CPUs unless the folder is named as a machine. Three things about how rows were taken are modelled here. After the rows
of a file in /proc/sys its old value was put back: the huge page pool is empty again where the sysfs rows begin. Reading
back was done by a program of its own, which cannot start while max_map_count is below its number of mappings. The
machine ran without transparent huge pages: with khugepaged's min_free_kbytes, its pool could not have grown as far.

Files that report the machine's own numbers (buddyinfo, pressure) are compared by outcome, not by text. How many huge
pages a pool gets when it is asked for more than there are depends on how much memory was in use: as much is taken here
as the table's own vmstat row says, and such a count may differ by 3 % (class shape).
"""

from __future__ import annotations

import errno
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from kmemd.conformance.case import Case, guarded
from kmemd.core import stats
from kmemd.errors import KernelError
from kmemd.machine import Machine
from kmemd.mm.gfp import GFP_KERNEL
from kmemd.mm.units import GIB
from kmemd.system import System

CMDLINE = "transparent_hugepage=never page_owner=on"
READ_LIMIT = 300
POOL_TOLERANCE = 0.03
READER_MAPPINGS = 8
"""Mappings of the statically linked program that read the files back."""
_MACHINE = re.compile(r"(x86_64|i386)-(\d+)([MG])\S*?-(\d+)cpu")
_KNOB = re.compile(r"/proc/sys/|/proc/\d+/|/sys/(?!kernel/debug/page_owner)")
_FREE_PAGES = re.compile(r"nr_free_pages (\d+)")
POOL_FILES = ("/nr_hugepages", "/free_hugepages")
_ESCAPE = re.compile(r"\\(.)")
_UNESCAPED = {"n": "\n", "t": "\t", "r": "\r", "0": "\0", "\\": "\\"}


@dataclass(frozen=True)
class Row:
    """One captured write."""

    number: int
    path: str
    text: str
    result: int
    errno: int
    reads_back: str


def run(folder: Path) -> Iterator[Case]:
    """One case per row of every table in the folder."""
    for file in sorted(folder.rglob("*.tsv")):
        yield from guarded(file.name, compare(machine_for(file), read_rows(file)))


def machine_for(file: Path) -> Machine:
    """The machine that a table was taken on, by the names above it."""
    match = _MACHINE.search(str(file.relative_to(file.parents[1])))
    arch, size, cpus = "x86_64", GIB, 2
    if match is not None:
        arch, cpus = match[1], int(match[4])
        size = int(match[2]) << (30 if match[3] == "G" else 20)
    return Machine.of_memory("writes", arch, cpus, (size,), (tuple(range(cpus)),), ((10,),))


def read_rows(file: Path) -> Iterator[Row]:
    """The rows of a table; the first line names the columns."""
    for number, line in enumerate(file.read_text(errors="surrogateescape").split("\n")[1:], 2):
        cells = line.split("\t")
        if len(cells) >= 4:
            back = cells[4] if len(cells) > 4 else ""
            yield Row(number, cells[0], unescape(cells[1]), int(cells[2]), int(cells[3]), back)


def unescape(text: str) -> str:
    r"""Undo the table's ``\n``, ``\t`` and ``\\``."""
    return _ESCAPE.sub(lambda match: _UNESCAPED.get(match[1], match[0]), text)


def compare(machine: Machine, rows: Iterable[Row]) -> Iterator[Case]:
    """Do the writes in order on one fresh machine."""
    system = System.boot(machine=machine, cmdline=CMDLINE)
    rows = list(rows)
    occupy(system, rows)
    for path, group in groupby(rows, key=lambda row: row.path):
        if not exists(system, path):
            yield from (Case(path, False, absent=True) for _ in group)
            continue
        before = read_back(system, path) if path.startswith("/proc/sys/") else None
        for row in group:
            yield compare_row(system, row)
        if before:
            put_back(system, path, before)


def occupy(system: System, rows: list[Row]) -> None:
    """Take memory until as much is free as the captured machine had."""
    for row in rows:
        match = _FREE_PAGES.match(row.reads_back)
        if match is not None:
            surplus = system.kernel.vmstat.zone_total(stats.NR_FREE_PAGES) - int(match[1])
            system.kernel.page_alloc.alloc_pages_bulk(GFP_KERNEL, 0, max(0, surplus))
            return


def exists(system: System, path: str) -> bool:
    """Whether the model has the file."""
    try:
        system.tree.lookup(path)
    except KernelError as error:
        if error.errno != errno.ENOENT:
            raise
        return False
    return True


def compare_row(system: System, row: Row) -> Case:
    """One write."""
    result, error = write(system, row.path, row.text)
    have: tuple[object, ...] = (result, error)
    wanted: tuple[object, ...] = (row.result, row.errno)
    if _KNOB.match(row.path):
        have, wanted = (*have, captured_form(read_back(system, row.path))), (*wanted, row.reads_back.strip())
    name = f"row {row.number} {row.path} {row.text!r}"
    if row.path.endswith(POOL_FILES) and have[:2] == wanted[:2] and have != wanted:
        near = math.isclose(_number(str(have[2])), _number(str(wanted[2])), rel_tol=POOL_TOLERANCE)
        return Case(name, near, f"captured {wanted}, model {have}", "shape")
    return Case(name, have == wanted, f"captured {wanted}, model {have}")


def _number(text: str) -> int:
    return int(text) if text.isdigit() else -1


def write(system: System, path: str, text: str) -> tuple[int, int]:
    """Result and errno of one ``write(2)``."""
    try:
        return system.write(path, text.encode("utf-8", "surrogateescape")), 0
    except OSError as error:
        return -1, error.errno or 0


def read_back(system: System, path: str) -> str:
    """What a fresh program reads from the file; nothing when it cannot read or cannot start."""
    if system.kernel.mmap.max_map_count < READER_MAPPINGS:
        return ""
    try:
        return system.read(path).decode("utf-8", "surrogateescape")
    except OSError:
        return ""


def captured_form(text: str) -> str:
    """Text as the table's last column has it."""
    return text.replace("\n", " ")[:READ_LIMIT].strip()


def put_back(system: System, path: str, before: str) -> None:
    """Write the old value, as far as the file takes it."""
    write(system, path, before)
