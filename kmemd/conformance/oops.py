"""Oops reports against captured ones: a write past a vmalloc area, a write to kernel text, a call of data.

The captured driver's three accesses are made by the model; the reports must have the same lines in the same order, with
the same error code, words and class of address. Values, frames of the trace and what the system call's registers were
are not compared; nor are the trace's guesses (``? name``), which the model does not make.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from kmemd.conformance.case import Case
from kmemd.system import System, SystemCallError

BY = "by=one+0xc0b,cmd_write,full_proxy_write"
SCENARIOS = {
    "oops.guard": ("a = vmalloc 4K", f"WRITE_ONCE a+4K 0 {BY}"),
    "oops.wtext": (f"WRITE_ONCE 0x{{text:x}} 0 {BY}",),
    "oops.xdata": ("b = kmalloc 64", f"call b {BY}"),
}
"""What the driver did, as commands; ``text`` is an address of a function."""
_USER = re.compile(r"^RIP: 0033:")


def run(folder: Path, system: System) -> Iterator[Case]:
    """The cases of the reports that are there, in the order in which the driver made them."""
    for name, commands in SCENARIOS.items():
        file = folder / name
        if file.is_file() and file.stat().st_size:
            want, have = forms(file.read_text()), forms(_report(system, commands))
            differ = next((pair for pair in zip(want, have, strict=False) if pair[0] != pair[1]), None)
            detail = f"{differ[0]!r} but {differ[1]!r}" if differ else f"{len(want)} lines but {len(have)}"
            yield Case(name, want == have, "" if want == have else detail, "format")


def _report(system: System, commands: tuple[str, ...]) -> str:
    """The kernel's log of the last command, which fails."""
    kernel = system.kernel
    text = kernel.kallsyms.symbol("one").address & -8
    for number, command in enumerate(commands):
        first = kernel.printk.next_seq
        try:
            system.command(command.format(text=text))
        except SystemCallError:
            if number < len(commands) - 1:
                raise
    return "\n".join(record.text for record in kernel.printk.since(first) if not record.text.startswith("kmemd:"))


def forms(text: str) -> list[str]:
    """The lines of a report with their values replaced, without trace and system call."""
    lines: list[str] = []
    inside = False
    for line in text.splitlines():
        if line.startswith(" <TASK>"):
            inside = True
            lines.append(line)
        elif line.startswith(" </TASK>"):
            inside = False
        if not inside and not line.startswith("note: "):
            lines.append(form(line))
    return lines


def form(line: str) -> str:
    """A line with what differs from run to run replaced."""
    line = re.sub(r"^Code: .*", "Code: <bytes>", line)
    line = re.sub(r"\[#\d+\]", "[#n]", line)
    line = re.sub(r"^CPU: \d+ PID: \d+ Comm: (\S+) .*", r"CPU: Comm: \1", line)
    line = re.sub(r"^RIP: 0010:\w+\+0x\w+/0x\w+( \[\w+\])?$", "RIP: 0010:<symbol>", line)
    line = re.sub(r"\b(0x)?[0-9a-f]{16}\b", "<address>", line)
    line = re.sub(r"EFLAGS: [0-9a-f]{8}", "EFLAGS: <flags>", line)
    return re.sub(r"\b(PGD|P4D|PUD|PMD|PTE) ([0-9a-f]+)", _entry, line).rstrip()


def _entry(found: re.Match[str]) -> str:
    """An entry of a page table: none, one that leads on, or a large page's, with its protection."""
    value = int(found[2], 16)
    kind = "0" if not value else "large" if value & 0x80 else "table"
    if kind == "large":
        kind += f" {'w' if value & 2 else 'r'}{'-' if value >> 63 else 'x'}"
    return f"{found[1]} <{kind}>"
