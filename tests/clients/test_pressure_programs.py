"""Programs that watch memory run short show it, while it happens: what should move in them moves.

One small machine on a real clock has a process that needs nearly all of its memory, a file that is read and one that is
written, over and over. All programs watch at the same time, for a few seconds each.
"""

from __future__ import annotations

import os
import re
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.clients.conftest import KMEMD, Mounted, program
from tests.clients.test_process_programs import first_victim, reply
from tests.clients.test_programs import free_port, node_exporter, scrape
from tests.fs.mounting import ROOT, end, start

pytestmark = pytest.mark.mount

MACHINE = """
arch = "x86_64"
cpus = 2
[[node]]
memory = "256M"
[[swap]]
path = "/dev/vdb"
size = "512M"
"""
WATCHERS = {
    "vmstat": ["vmstat", "-w", "1", "3"],
    "sar -B -W": ["sar", "-B", "-W", "1", "2"],
    "sar -r -S": ["sar", "-r", "-S", "1", "2"],
    "atop": ["atop", "-P", "MEM,SWP,PAG,PSI", "1", "2"],
}
ROUND = (
    "access hog anon 230M w pattern=random n=6000",
    "read_file /mnt/read n=8M",
    "write_file /mnt/written n=8M",
    "access hog anon 8M r",
    "fadvise /mnt/read DONTNEED",
)
DEADLINE_S = 100


@dataclass
class Watched:
    """What the programs printed, and the model's counters before and after."""

    mounted: Mounted
    said: dict[str, str]
    before: dict[str, int]
    after: dict[str, int]

    def moved(self, name: str) -> int:
        """By how much a line of vmstat grew."""
        return self.after[name] - self.before[name]


def watch(mounted: Mounted, argv: list[str], said: dict[str, str], name: str) -> None:
    """Run a program that sees the model as its /proc; its output, or its error."""
    done = subprocess.run(
        [*KMEMD, "run", "--at", str(mounted.path), "--", program(argv[0]), *argv[1:]],
        capture_output=True, text=True, timeout=DEADLINE_S, cwd=ROOT, env=os.environ | {"LC_ALL": "C"},
    )  # fmt: skip
    said[name] = done.stdout if (done.returncode, done.stderr) == (0, "") else f"failed: {done}"


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A machine under pressure, and what the programs saw of it."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("/dev/fuse is missing")
    path: Path = tmp_path_factory.mktemp("pressed")
    file = tmp_path_factory.mktemp("machines") / "small.toml"
    file.write_text(MACHINE)
    daemon = start(path, ["kmemd", "mount", "--machine", str(file), "--seed", "1", "--clock", "real", str(path)])
    try:
        mounted, said = Mounted(path), dict[str, str]()
        for line in ("hog = spawn hog", "anon = mmap hog 230M", "create /mnt/read 64M", "create /mnt/written"):
            mounted.command(line)
        reply(mounted, "access hog anon 230M w")
        before = mounted.vmstat()
        threads = [threading.Thread(target=watch, args=(mounted, argv, said, name)) for name, argv in WATCHERS.items()]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            for line in ROUND:
                reply(mounted, line)
        yield Watched(mounted, said, before, mounted.vmstat())
    finally:
        end(path, daemon)


def rows(text: str, *words: str) -> list[dict[str, float]]:
    """The lines below headings that have these words, by the words of the heading."""
    found: list[dict[str, float]] = []
    heading: list[str] = []
    for line in text.splitlines():
        fields = line.split()
        if set(words) <= set(fields):
            heading = fields
        elif not fields:
            heading = []
        elif heading and len(fields) == len(heading) and not fields[0].startswith("Average"):
            pairs = zip(heading, fields, strict=True)
            found.append({name: float(value) for name, value in pairs if re.fullmatch(r"[\d.]+", value)})
    return found


def test_vmstat(watched: Watched) -> None:
    _, *later = rows(watched.said["vmstat"], "swpd", "so")
    assert len(later) == 2
    for name, counter in (("si", "pswpin"), ("so", "pswpout"), ("bi", "pgpgin"), ("bo", "pgpgout")):
        pages = 1 if counter.startswith("pgpg") else 4
        assert 0 < sum(row[name] for row in later) <= watched.moved(counter) * pages, name
    assert all(row["swpd"] > 0 for row in later)


def test_sar_of_paging_and_swapping(watched: Watched) -> None:
    text = watched.said["sar -B -W"]
    swapping, paging = rows(text, "pswpin/s"), rows(text, "majflt/s")
    assert len(swapping) == len(paging) == 2
    for name in ("pswpin/s", "pswpout/s"):
        assert any(row[name] > 0 for row in swapping), name
    for name in ("pgpgin/s", "pgpgout/s", "fault/s", "majflt/s", "pgfree/s", "pgsteal/s"):
        assert any(row[name] > 0 for row in paging), name
    assert any(row["pgscank/s"] + row["pgscand/s"] > 0 for row in paging)


def test_sar_of_memory_and_swap(watched: Watched) -> None:
    text = watched.said["sar -r -S"]
    memory, swap = rows(text, "kbmemfree"), rows(text, "kbswpfree")
    total = watched.mounted.meminfo()
    assert all(0 < row["kbmemfree"] < total["MemTotal"] // 4 for row in memory)
    assert all(row["kbcached"] > 0 and row["kbdirty"] >= 0 for row in memory)
    assert all(row["kbswpused"] > 0 for row in swap)
    assert {row["kbswpfree"] + row["kbswpused"] for row in swap} == {total["SwapTotal"]}


def test_atop(watched: Watched) -> None:
    _, later = watched.said["atop"].split("SEP", 2)[:2]
    lines = {line.split()[0]: line.split()[6:] for line in later.splitlines() if line and line != "RESET"}
    page_size, frames, free = map(int, lines["MEM"][:3])
    assert (page_size, frames * 4) == (4096, watched.mounted.meminfo()["MemTotal"])
    assert 0 < free < frames // 4
    assert int(lines["SWP"][1]) * 4 == watched.mounted.meminfo()["SwapTotal"]
    assert int(lines["PAG"][1]) > 0, "pages were scanned"
    assert lines["PSI"][0] == "y"
    assert int(lines["PSI"][16]) > 0, "somebody waited for a disk"


def test_swapon_and_free(watched: Watched) -> None:
    mounted = watched.mounted
    reply(mounted, "sync")
    total = mounted.meminfo()
    lines = mounted.bound(program("swapon"), "-s").splitlines()
    assert lines[1].split() == mounted.text("proc/swaps").splitlines()[1].split()
    memory, swap = mounted.bound(program("free"), "-w").splitlines()[1:]
    shown = dict(
        zip(("total", "used", "free", "shared", "buffers", "cache", "available"), numbers(memory), strict=True)
    )
    assert shown["total"] == total["MemTotal"]
    assert shown["buffers"] > 0
    assert abs(shown["cache"] - total["Cached"] - total["SReclaimable"]) <= total["Cached"] // 4
    assert numbers(swap)[1] == total["SwapTotal"] - total["SwapFree"] > 0


def numbers(line: str) -> list[int]:
    """The numbers of a line."""
    return [int(word) for word in re.findall(r"\b\d+\b", line)]


def test_node_exporter(watched: Watched) -> None:
    mounted, port = watched.mounted, free_port()
    with node_exporter(mounted, port) as server:
        text = scrape(port, server)
    metrics = {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line[:1] != "#"}
    vmstat = mounted.vmstat()
    for name in ("pswpin", "pswpout", "pgmajfault"):
        assert 0 < watched.after[name] <= metrics[f"node_vmstat_{name}"] <= vmstat[name], name
    waited = int(mounted.text("proc/pressure/io").split("total=")[1].split()[0])
    # The exporter says seconds as a float: compare whole microseconds, as the kernel counts them.
    assert 0 < round(metrics["node_pressure_io_waiting_seconds_total"] * 1e6) <= waited
    assert metrics["node_pressure_memory_stalled_seconds_total"] > 0
    assert metrics["node_memory_SwapTotal_bytes"] - metrics["node_memory_SwapFree_bytes"] > 0


def test_earlyoom(watched: Watched) -> None:
    options = ["--dryrun", "-m", "50,49", "-s", "100"]
    text = first_victim([*KMEMD, "run", "--at", str(watched.mounted.path), "--", program("earlyoom"), *options])
    assert re.search(r"swap total: +511 MiB", text)
    victim = re.search(r"process \d+ uid 0 \"(\w+)\"", text)
    assert victim is not None, text
    assert victim[1] == "hog"
