"""20 readers and 4 writers at once on a real machine: nothing torn, nothing lost, no contradiction.

KMEMD_STRESS_S says for how long (default 3 s).
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fs.mounting import end, start

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="/dev/fuse is missing"),
]
SECONDS = float(os.environ.get("KMEMD_STRESS_S", "3"))
READERS = 20
WRITERS = 4


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "m"
    path.mkdir()
    process = start(path, ["kmemd", "mount", "--machine", "two-node", str(path)])
    try:
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        yield path
    finally:
        end(path, process)


def check_meminfo(text: str) -> None:
    """Sums within one read."""
    kb = {name: int(value) for name, value in re.findall(r"^(\S+): +(\d+)", text, re.M)}
    assert kb["Slab"] == kb["SReclaimable"] + kb["SUnreclaim"]
    assert kb["Active"] == kb["Active(anon)"] + kb["Active(file)"]
    assert kb["Inactive"] == kb["Inactive(anon)"] + kb["Inactive(file)"]
    assert kb["MemFree"] <= kb["MemTotal"]


def check_zoneinfo(text: str) -> None:
    """A zone's free pages as said twice, and the per-cpu lists within what is managed."""
    zones = re.split(r"^Node ", text, flags=re.M)[1:]
    assert zones
    for zone in zones:
        free = re.search(r"pages free +(\d+)", zone)
        again = re.search(r"nr_free_pages +(\d+)", zone)
        managed = re.search(r"managed +(\d+)", zone)
        assert free is not None
        assert managed is not None
        assert int(free[1]) <= int(managed[1])
        assert again is None or free[1] == again[1]


def check_buddyinfo(text: str) -> None:
    """Whole lines of eleven orders."""
    lines = text.splitlines()
    assert len(lines) >= 2
    assert all(len(line.split()) == 15 for line in lines)


FILES: list[tuple[str, Callable[[str], None]]] = [
    ("proc/meminfo", check_meminfo),
    ("proc/zoneinfo", check_zoneinfo),
    ("proc/buddyinfo", check_buddyinfo),
]


def read(mount: Path, number: int, stop: threading.Event) -> int:
    """Read one file over and over; how often."""
    name, check = FILES[number % len(FILES)]
    times = 0
    while not stop.is_set():
        check((mount / name).read_text())
        times += 1
    return times


def write(mount: Path, number: int, stop: threading.Event) -> int:
    """Commands and a knob, over and over; how often."""
    times = 0
    descriptor = os.open(mount / "kmemd/ctl", os.O_RDWR)
    try:
        while not stop.is_set():
            for line in (
                f"w{number} = alloc_pages order={times % 4} n=2000 gfp=GFP_KERNEL",
                f"free_pages w{number}",
            ):
                os.write(descriptor, line.encode() + b"\n")
                assert b"=" in os.read(descriptor, 4096)
            (mount / "proc/sys/vm/min_free_kbytes").write_text(f"{4096 + 64 * number + times % 7}\n")
            times += 1
    finally:
        os.close(descriptor)
    return times


def test_readers_and_writers_at_once(mount: Path) -> None:
    stop = threading.Event()
    done: list[int] = []
    failed: list[BaseException] = []

    def work(function: Callable[[Path, int, threading.Event], int], number: int) -> None:
        try:
            done.append(function(mount, number, stop))
        except BaseException as error:
            failed.append(error)
            stop.set()

    jobs = [(read, number) for number in range(READERS)] + [(write, number) for number in range(WRITERS)]
    threads = [threading.Thread(target=work, args=job) for job in jobs]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline and not stop.wait(0.1):
        (mount / "proc/buddyinfo").read_text()
    stop.set()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    assert failed == []
    assert len(done) == READERS + WRITERS
    assert min(done) > 0
    assert (mount / "kmemd/check").read_text() == "ok\n"
