"""Reports of slub_debug against captured ones: use after free, double free, writes past an object.

What the captured driver did follows from its report: which cache, which bytes it wrote where, and whether before or
after the object was freed. The model does the same; its report must have the same lines in the same order, with the
same bytes of red zones, poison and padding, and the same functions from the report up to the driver. Addresses, counts,
ages, the caller's frames and the state of the kernel are not compared, nor are the trace's guesses (``? name``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kmemd.conformance.case import Case
from kmemd.errors import KernelError
from kmemd.kernel import Kernel
from kmemd.mm.gfp import GFP_KERNEL

NAMES = ("slub_debug.uaf", "slub_debug.redzone", "slub_debug.doublefree")
ENTRIES = {"kmalloc_trace": "__kmalloc"}
"""kmalloc of a constant size has an entry of its own in Linux."""
MOST_TRIES = 64
_BUG = re.compile(r"^BUG kmalloc-(\d+)(k?) \((?:Tainted: .*|Not tainted)\): (.*)$", re.MULTILINE)
_SPAN = re.compile(r"^0x([0-9a-f]+)-0x([0-9a-f]+) @offset=\d+\. First byte 0x([0-9a-f]+) ", re.MULTILINE)
_OBJECT = re.compile(r"^Object 0x([0-9a-f]+) @offset", re.MULTILINE)
_DUMP = re.compile(r"^(\w+(?: b4)?) +[0-9a-f]+: ")


@dataclass(frozen=True)
class Misdeed:
    """What a report tells: the cache's size, the kind of report, and the bytes that were written at an offset."""

    size: int
    what: str
    offset: int = 0
    count: int = 0
    byte: int = 0

    @classmethod
    def of(cls, text: str) -> Misdeed | None:
        """Read a report."""
        bug, at, span = _BUG.search(text), _OBJECT.search(text), _SPAN.search(text)
        if bug is None or at is None:
            return None
        size = int(bug[1]) << (10 if bug[2] else 0)
        if span is None:
            return cls(size, bug[3])
        first, last, start = int(span[1], 16), int(span[2], 16), int(at[1], 16)
        return cls(size, bug[3], first - start, last - first + 1, int(span[3], 16))

    @property
    def after_free(self) -> bool:
        """Whether the object was free when the bytes were written."""
        return "Poison" in self.what


def run(folder: Path, kernel: Kernel, frames: tuple[str, ...]) -> Iterator[Case]:
    """The cases of the reports that are there; ``frames`` is the driver's call site."""
    for name in NAMES:
        file = folder / name
        captured = file.read_text() if file.is_file() else ""
        misdeed = Misdeed.of(captured)
        if misdeed is not None:
            yield from _compare(name, captured, _play(kernel, misdeed, frames), frames[0])


def _compare(name: str, captured: str, said: str, driver: str) -> Iterator[Case]:
    want, have = forms(captured), forms(said)
    differ = next((pair for pair in zip(want, have, strict=False) if pair[0] != pair[1]), None)
    detail = f"{differ[0]!r} but {differ[1]!r}" if differ else f"{len(want)} lines but {len(have)}"
    yield Case(name, want == have, "" if want == have else detail, "format")
    calls, own = trace(captured, driver), trace(said, driver)
    yield Case(f"{name} trace", calls == own, "" if calls == own else f"{calls} but {own}", "format")


def _play(kernel: Kernel, misdeed: Misdeed, frames: tuple[str, ...]) -> str:
    """Do the same, and give what the kernel said."""
    kernel.context.switch(40, 40, "sh", 0)
    kernel.context.site = kernel.depot.save(frames)
    first = kernel.printk.next_seq
    address = kernel.slub.kmalloc(misdeed.size, GFP_KERNEL)
    if misdeed.after_free or not misdeed.count:
        kernel.slub.kfree(address)
    if misdeed.count:
        kernel.kernel_write.store(address + misdeed.offset, bytes([misdeed.byte]) * misdeed.count)
    try:
        for _ in range(MOST_TRIES if misdeed.after_free else 1):
            if misdeed.after_free:
                kernel.slub.kmalloc(misdeed.size, GFP_KERNEL)
            else:
                kernel.slub.kfree(address)
            if kernel.printk.next_seq > first:
                break
    except KernelError:  # what is reported is refused
        pass
    return "\n".join(record.text for record in kernel.printk.since(first))


def forms(text: str) -> list[str]:
    """The lines of a report with their values replaced, without the stacks."""
    lines: list[str] = []
    inside, used = False, "First byte" in text and " overwritten" in text and "Poison overwritten" not in text
    for line in text.splitlines():
        if line.startswith(" <TASK>") or line.startswith(" </TASK>"):
            inside = line.startswith(" <TASK>")
            lines.append(line)
        elif not inside and not re.match(r" [\w.]+\+0x", line):
            lines.append(_form(line, used))
    return lines


def _form(line: str, used: bool) -> str:
    """A line with its values replaced. The bytes of an object in use are the driver's own."""
    dump = _DUMP.match(line)
    if dump:
        return f"{dump[1]} <bytes>" if used and dump[1] == "Object" else _DUMP.sub(r"\1 <address>: ", line)
    line = re.sub(r"\((?:Tainted: [A-Z ]+|Not tainted)\)", "(<taint>)", line)
    line = re.sub(r"^CPU: \d+ PID: \d+ Comm: (\S+) .*", r"CPU: Comm: \1", line)
    line = re.sub(r"[\w.]+\+0x[0-9a-f]+/0x[0-9a-f]+( \[\w+\])?", "<symbol>", line)
    line = re.sub(r"0x0{8,16}\b|0x[0-9a-f]{8,16}\b", "<address>", line)
    return re.sub(
        r"(\bused|\bage|\bcpu|\bpid|@offset|\bnode|\bzone|\blastcpupid|\bflags)=(?:<address>|0x[0-9a-f]+|\d+)",
        r"\1=<n>",
        line,
    )


def trace(text: str, driver: str) -> list[str]:
    """The functions of the report's own stack, from the innermost to the driver."""
    found: list[str] = []
    for line in text.partition(" <TASK>\n")[2].splitlines():
        name = line.strip().split("+")[0]
        if not name.startswith("?"):
            found.append(ENTRIES.get(name, name))
        if name == driver:
            break
    return found
