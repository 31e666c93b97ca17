"""kmemleak and page_owner against a capture: the set of leaks per step, and the form of the files.

The captured scenario is played on the model: a driver drops the only pointers to 3 x 100, 2 x 4000 and 5 x 8
bytes of kmalloc, to vmalloc(20000), and to a 192-byte object that alone points to a 96-byte one. ``kmemleak.1``
is the file after a first scan, ``.2`` after the third, ``.3`` after clear, ``.4`` after another scan, ``.5``
after a scan that followed one new leak. Which objects are reported is exact; lines are compared by form.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from kmemd.conformance import oops
from kmemd.conformance.case import Case
from kmemd.kernel import Kernel
from kmemd.machine import Machine
from kmemd.mm.gfp import GFP_KERNEL, F
from kmemd.mm.units import GIB
from kmemd.system import System

AGE_S = 6
POINTER_OFFSET = 64
WRITTEN = 0x6B
DRIVER = ("one", "cmd_write")
ABOVE = (
    "full_proxy_write",
    "vfs_write",
    "ksys_write",
    "__x64_sys_write",
    "x64_sys_call",
    "do_syscall_64",
    "entry_SYSCALL_64_after_hwframe",
)
CMDLINE = "page_owner=on kmemleak=on nokaslr"
OWNER_RECORDS = 200
_LEAK = re.compile(r"^unreferenced object 0x([0-9a-f]+) \(size (\d+)\):$", re.MULTILINE)
_NEW = re.compile(r"kmemleak: (\d+) new suspected memory leaks")


def run(folder: Path) -> Iterator[Case]:
    """The cases of a folder that holds ``kmemleak.1`` to ``.5``, ``kmemleak.dmesg`` and ``page_owner``."""
    system = System(Kernel.boot(_machine(folder), cmdline=_cmdline(folder)))
    steps = play(system)
    for step, text in steps.items():
        file = folder / f"kmemleak.{step}"
        if file.is_file():
            captured = file.read_text()
            yield _same_leaks(file.name, captured, text)
            yield from _same_form(file.name, captured, text)
    yield from _same_counts(folder / "kmemleak.dmesg", system)
    yield from _owner_form(folder / "page_owner", system)
    yield from oops.run(folder, system)


def _machine(folder: Path) -> Machine:
    """The captured machine had 1 GiB and two CPUs; the width of its addresses tells the architecture."""
    text = "".join(file.read_text() for file in sorted(folder.glob("kmemleak.[0-9]")))
    found = _LEAK.search(text)
    arch = "i386" if found is not None and len(found[1]) <= 8 else "x86_64"
    return Machine.of_memory("debug", arch, 2, (GIB,), ((0, 1),), ((10,),))


def _cmdline(folder: Path) -> str:
    """The command line that the captured kernel logged."""
    for name in ("kmemleak.dump", "kmemleak.dmesg"):
        file = folder / name
        found = re.search(r"^Kernel command line: (.*)$", file.read_text(), re.MULTILINE) if file.is_file() else None
        if found:
            return found[1]
    return CMDLINE


def play(system: System) -> dict[int, str]:
    """What the file says after each step of the scenario, on the model."""
    kernel = system.kernel
    kernel.context.switch(40, 40, "sh", 0)
    kernel.context.site = kernel.depot.save((*DRIVER, *ABOVE))
    _leak(kernel)
    said = {1: _scan(system)}
    system.advance(AGE_S)
    _scan(system)
    said[2] = _scan(system)
    system.write("/sys/kernel/debug/kmemleak", "clear\n")
    said[3] = system.read("/sys/kernel/debug/kmemleak").decode()
    said[4] = _scan(system)
    kernel.slub.kmalloc(100, GFP_KERNEL)
    said[5] = _scan(system)
    system.check()
    return said


def _leak(kernel: Kernel) -> None:
    """The driver's allocations, whose pointers nobody keeps; it fills what it does not zero with k."""
    for size, count in ((100, 3), (4000, 2), (8, 5)):
        for address in kernel.slub.kmalloc_bulk(size, GFP_KERNEL, count).tolist():
            kernel.kmemleak.memset(address, WRITTEN)
    kernel.vmalloc.vmalloc(20000)
    outer = kernel.slub.kmalloc(192, GFP_KERNEL | F.ZERO)
    inner = kernel.slub.kmalloc(96, GFP_KERNEL)
    kernel.kmemleak.memset(inner, WRITTEN)
    kernel.kmemleak.store(outer + POINTER_OFFSET, inner)


def _scan(system: System) -> str:
    system.write("/sys/kernel/debug/kmemleak", "scan\n")
    return system.read("/sys/kernel/debug/kmemleak").decode()


def leaks(text: str) -> Counter[int]:
    """How many objects of each size a kmemleak file reports."""
    return Counter(int(size) for _, size in _LEAK.findall(text))


def _same_leaks(name: str, captured: str, said: str) -> Case:
    expected, got = leaks(captured), leaks(said)
    detail = f"{dict(sorted(expected.items()))} but {dict(sorted(got.items()))}"
    return Case(name, expected == got, "" if expected == got else detail)


def _same_form(name: str, captured: str, said: str) -> Iterator[Case]:
    """Every line that the model prints has the form of a captured line at that place of a paragraph."""
    forms = {_place(line): set[str]() for line in captured.splitlines()}
    for line in captured.splitlines():
        forms[_place(line)].add(form(line))
    for number, line in enumerate(said.splitlines(), 1):
        known = forms.get(_place(line), set())
        if form(line) not in known:
            yield Case(f"{name}:{number}", False, f"{sorted(known)} but {form(line)!r}", "format")
            return
    if said:
        yield Case(f"{name} lines", True, kind="format")


def _place(line: str) -> str:
    """Which line of a paragraph this is."""
    return re.split(r"[0-9\[]", line.lstrip())[0][:12].strip()


def form(line: str) -> str:
    """A line with its values replaced by what kind of value they are."""
    line = re.sub(r"^(    )(?:[0-9a-f]{2} ){8,16} *\S.*$", r"\1<bytes>", line + " " if "  " in line[4:] else line)
    line = re.sub(r'"[^"]*"', '"<name>"', line)
    line = re.sub(r"\[<[0-9a-f]+>\]", lambda found: f"[<{'x' * (len(found[0]) - 4)}>]", line)
    line = re.sub(r"[\w.]+\+0x[0-9a-f]+/0x[0-9a-f]+( \[\w+\])?", "<symbol>", line)
    line = re.sub(r"0x[0-9a-f]{8,16}\b", lambda found: f"0x{'x' * (len(found[0]) - 2)}", line)
    return re.sub(r"\b\d+\b", "<n>", line).rstrip()


def _same_counts(file: Path, system: System) -> Iterator[Case]:
    """The kernel log tells of the same numbers of new leaks, in the same order."""
    if not file.is_file():
        return
    expected = _NEW.findall(file.read_text())
    got = [count for record in system.kernel.printk.since(0) for count in _NEW.findall(record.text)]
    yield Case(file.name, expected == got, "" if expected == got else f"{expected} but {got}")


def _owner_form(file: Path, system: System) -> Iterator[Case]:
    """Every line of the model's page_owner has the form of some captured line."""
    if not file.is_file():
        return
    known = {owner_form(line) for line in file.read_text().splitlines()}
    text = "".join(islice(system.kernel.page_owner.text(), 1))
    for paragraph in text.split("\n\n")[:OWNER_RECORDS]:
        strange = [line for line in paragraph.splitlines() if owner_form(line) not in known]
        if strange:
            yield Case(f"page_owner {paragraph.splitlines()[1][:12]}", False, f"no such line: {strange[0]}", "format")
            return
    yield Case("page_owner", bool(text), "" if text else "no record", "format")


def owner_form(line: str) -> str:
    """A line of page_owner with its values replaced."""
    line = re.sub(r"\(([\w:./|-]+)\), ts", "(<comm>), ts", line)
    line = re.sub(r"mask 0x[0-9a-f]+\([\w|]+\)", "mask <gfp>", line)
    line = re.sub(r"type (?:Unmovable|Movable|Reclaimable|HighAtomic|CMA|Isolate)\b", "type <mt>", line)
    line = re.sub(r"Flags 0x[0-9a-f]+\([\w|]*node=\d+\|zone=\d+\|lastcpupid=0x[0-9a-f]+\)", "Flags <flags>", line)
    line = re.sub(r"^ [\w.]+\+0x[0-9a-f]+/0x[0-9a-f]+( \[\w+\])?$", " <symbol>", line)
    return re.sub(r"\b\d+\b", "<n>", line)
