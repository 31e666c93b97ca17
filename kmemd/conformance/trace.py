"""Tracing: format files, the order of events, and records that whoever knows the format files can read.

``fmt/SYSTEM.EVENT`` must be the model's file byte for byte. A parser made from the captured files reads the model's
binary pages (``trace_pipe_raw``), and must find what ``trace`` says in words. The captured ``trace`` gives the header
and, for each event, which words its text is made of.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from kmemd.conformance.case import Case
from kmemd.conformance.trace_reader import PAGE, FormatFile, events_of_page
from kmemd.errors import KernelError
from kmemd.system import System

TRACING = "/sys/kernel/tracing"
WORK = """
p = alloc_pages order=2 n=3
k = kmalloc 100 n=5
c = kmem_cache_create widget 80
o = kmem_cache_alloc c n=3
kmem_cache_free c o
kfree k
free_pages p
walker = spawn walker
area = mmap walker 256K
access walker area 256K w
exit walker
"""
_LINE = re.compile(r".{16}-\d+ +\[(?P<cpu>\d{3})\] (?P<state>\S{5}) +\d+\.\d{6}: (?P<event>\w+): (?P<text>.*)")
_WORD = re.compile(r"([A-Za-z_]\w*)[=:]")


def run(folder: Path) -> Iterator[Case]:
    """Compare what the folder holds."""
    system = System.boot()
    yield from formats(system, folder / "fmt")
    if (folder / "available_events").is_file():
        yield listing(system, "available_events", (folder / "available_events").read_text())
    if (folder / "set_event").is_file():
        yield enabling(system, (folder / "set_event").read_text())
    yield from records(system, folder / "fmt")
    if (folder / "trace").is_file():
        yield from texts(System.boot(), (folder / "trace").read_text())
    for stats in sorted(folder.glob("cpu*.stats")):
        yield labels(system, stats)


def formats(system: System, folder: Path) -> Iterator[Case]:
    """Every captured format file."""
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        name, _, event = file.name.partition(".")
        path = f"{TRACING}/events/{name}/{event}/format"
        try:
            have = system.read(path).decode()
        except (OSError, KernelError):
            yield Case(path, False, absent=True)
            continue
        yield Case(path, have == file.read_text(), f"captured {_changed(file.read_text(), have)}", "exact")


def _changed(captured: str, have: str) -> str:
    pairs = zip(captured.split("\n"), have.split("\n"), strict=False)
    return next((f"{ours!r}, model {theirs!r}" for ours, theirs in pairs if ours != theirs), "another length")


def listing(system: System, name: str, captured: str) -> Case:
    """Those events of the captured list that the model has, in the captured order."""
    have = system.read(f"{TRACING}/{name}").decode().split()
    wanted = [word for word in captured.split() if word in set(have)]
    return Case(name, have == wanted, f"captured {wanted[:5]}, model {have[:5]}", "format")


def enabling(system: System, captured: str) -> Case:
    """The events that were on can be switched on by writing what the file read, and read the same."""
    events = captured.split()
    known = [word for word in events if word in set(system.read(f"{TRACING}/available_events").decode().split())]
    system.write(f"{TRACING}/set_event", "\n".join(known) + "\n")
    have = system.read(f"{TRACING}/set_event").decode().split()
    system.write(f"{TRACING}/events/enable", "0")
    return Case("set_event", sorted(have) == sorted(known), f"captured {known}, model {have}", "format")


def records(system: System, folder: Path) -> Iterator[Case]:
    """The binary records of some work, read by the captured format files, say what ``trace`` says."""
    known = [FormatFile.parse(file.read_text()) for file in sorted(folder.iterdir())] if folder.is_dir() else []
    if not known:
        return
    _work(system)
    by_id = {form.id: form for form in known}
    lines = [match for line in system.read(f"{TRACING}/trace").decode().split("\n") if (match := _LINE.match(line))]
    said = {cpu: [match for match in lines if int(match["cpu"]) == cpu] for cpu in range(system.kernel.machine.cpus)}
    for cpu, wanted in said.items():
        have = list(_raw(system, cpu))
        counts = f"text has {len(wanted)}, binary {len(have)}"
        yield Case(f"cpu{cpu} records", len(have) == len(wanted), counts, "format")
        for record, match in zip(have, wanted, strict=False):
            form = by_id.get(int.from_bytes(record[:2], "little"))
            if form is not None:
                text = form.text(record, system.kernel.tracing.plain)
                same = form.name == match["event"] and text.rstrip("\n") == match["text"]
                yield Case(f"cpu{cpu} {form.name}", same, f"text {match['text']!r}, binary {text!r}", "format")


def _work(system: System) -> None:
    """Something that makes events of the allocators and of programs."""
    system.write(f"{TRACING}/options/hash-ptr", "0")
    for name in ("kmem", "exceptions", "mmap", "filemap"):
        system.write(f"{TRACING}/events/{name}/enable", "1")
    system.run(WORK)
    system.write(f"{TRACING}/events/enable", "0")


def _raw(system: System, cpu: int) -> Iterator[bytes]:
    path = f"{TRACING}/per_cpu/cpu{cpu}/trace_pipe_raw"
    while True:
        page = system.read(path, 0, PAGE)
        if not page:
            return
        yield from events_of_page(page)


def texts(system: System, captured: str) -> Iterator[Case]:
    """The header of ``trace``, and the words that each event's text is made of."""
    _work(system)
    have = system.read(f"{TRACING}/trace").decode()
    ours, theirs = (re.sub(r"\d+", "N", "\n".join(_header(text))) for text in (have, captured))
    yield Case("trace header", ours == theirs, f"captured {theirs!r}, model {ours!r}", "format")
    wanted, made = _words(captured), _words(have)
    for event in sorted(set(wanted) & set(made)):
        detail = f"captured {wanted[event]}, model {made[event]}"
        yield Case(f"text of {event}", wanted[event] == made[event], detail, "format")


def _header(text: str) -> list[str]:
    return [line for line in text.split("\n") if line.startswith("#")]


def _words(text: str) -> dict[str, tuple[str, list[str]]]:
    """For each event the state columns and the names in its first line."""
    found: dict[str, tuple[str, list[str]]] = {}
    for line in text.split("\n"):
        match = _LINE.match(line)
        if match is not None and match["state"][2] == ".":
            found.setdefault(match["event"], (match["state"], _WORD.findall(match["text"])))
    return found


def labels(system: System, file: Path) -> Case:
    """The lines of a CPU's ``stats``."""
    have = system.read(f"{TRACING}/per_cpu/{file.stem}/stats").decode()
    ours, theirs = ([line.partition(":")[0] for line in text.split("\n")] for text in (have, file.read_text()))
    return Case(file.name, ours == theirs, f"captured {theirs}, model {ours}", "format")
