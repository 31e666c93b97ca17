"""The scripts in examples/ run as written and show what they promise."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.mount

ROOT = Path(__file__).parent.parent.parent
DEADLINE_S = 120


@pytest.fixture(scope="session")
def command_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A PATH on which ``kmemd`` is the code under test."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("/dev/fuse is missing")
    folder = tmp_path_factory.mktemp("bin")
    script = folder / "kmemd"
    script.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m kmemd "$@"\n')
    script.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def run_example(name: str, path: str) -> str:
    """Output of a script that must exit with 0 and say nothing on stderr."""
    environment = os.environ | {"PATH": path, "LC_ALL": "C"}
    argv = ["sh", str(ROOT / "examples" / name)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=DEADLINE_S, env=environment)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    return done.stdout


def test_find_slab_leak(command_path: str) -> None:
    output = run_example("find-slab-leak.sh", command_path)
    assert "kmalloc-192" in output
    assert "300 unreferenced objects" in output
    assert "leaky_open+0x4c" in output


def largest_free_blocks(section: str) -> int:
    """Free blocks of the highest order in the zone DMA32, by the buddyinfo line of a section."""
    line = next(line for line in section.splitlines() if re.match(r"Node 0, zone +DMA32 +\d+ ", line))
    return int(line.split()[-1])


def test_fragment_memory(command_path: str) -> None:
    _, before, after, blocks, indices = run_example("fragment-memory.sh", command_path).split("== ")
    assert largest_free_blocks(before) > 400
    assert largest_free_blocks(after) < 60
    got = re.search(r"^(\d+) blocks; (\d+) more would fit", blocks, re.MULTILINE)
    assert got is not None
    assert int(got[1]) < int(got[2])
    assert re.search(r"DMA32.* 0\.9\d\d", indices)


def test_watch_zone_fill(command_path: str) -> None:
    output = run_example("watch-zone-fill.sh", command_path)
    rows = re.findall(r"^ *(?:\d+ MiB|full|min) +(\d+) +(\d+)$", output, re.MULTILINE)
    minimum, *free = [(int(low_zone), int(high_zone)) for low_zone, high_zone in rows]
    assert len(free) > 10
    assert free == sorted(free, reverse=True)
    assert free[-1][1] <= minimum[1]
    assert "page allocation failure" in output


def test_copy_on_write(command_path: str) -> None:
    _, alone, forked, written, ended = run_example("copy-on-write.sh", command_path).split("== ")
    free = [int(re.search(r"MemFree: +(\d+)", part)[1]) for part in (alone, forked, written)]  # type: ignore[index]
    assert free[0] - free[1] < 1024, "a fork copies page tables, not pages"
    assert free[1] - free[2] > 16_000
    assert re.search(r"^child +65556 +32778 +0 +65556$", forked, re.MULTILINE)
    assert re.search(r"^child +65556 +40970 +16384 +49172$", written, re.MULTILINE)
    assert "4096 pages copied" in written
    assert "0 pages copied, 16384 pages reused" in ended


def test_swap_out(command_path: str) -> None:
    _, fresh, out, clean, back, areas = run_example("swap-out.sh", command_path).split("== ")
    resident = [int(re.search(r"VmRSS:\s+(\d+)", part)[1]) for part in (fresh, out, clean, back)]  # type: ignore[index]
    assert resident[0] > 65000 > 20000 > resident[3] > 16000 > 100 > max(resident[1:3])
    assert re.search(r"SwapCached: +65536 kB", out)
    assert "pswpout 16384\n" in out
    assert "pswpout 16384\n" in clean, "clean pages are not written again"
    assert re.search(r"SwapCached: +0 kB", clean)
    assert re.search(r"n=4096 faults=4096 major=51\d ", back)
    assert re.search(r"^Swap: +49152 kB", areas, re.MULTILINE)


def test_out_of_memory(command_path: str) -> None:
    _, before, after, log = run_example("out-of-memory.sh", command_path).split("== ")
    names = [re.findall(r"^(\w+) +pid ", part, re.MULTILINE) for part in (before, after)]
    assert names == [["web", "batch", "database"], ["web", "database"]]
    assert "oom_kill 1\n" in after
    assert "web invoked oom-killer" in log
    assert re.search(r"Out of memory: Killed process \d+ \(batch\)", log)


def test_thrash(command_path: str) -> None:
    _, fits, thrashes, later, few = run_example("thrash.sh", command_path).split("== ")
    counts = [
        {name: int(number) for name, number in re.findall(r"^(\w+) (\d+)$", part, re.MULTILINE)}
        for part in (fits, thrashes, later, few)
    ]
    refaults = [count["workingset_refault_anon"] for count in counts]
    assert refaults[0] == counts[0]["pswpin"] == 0
    assert refaults[1] > 10_000
    assert refaults[2] - refaults[1] > 20_000
    assert refaults[3] - refaults[2] < 3_000, "what is used all the time stays"
    stalls = [int(re.search(r"memory: some .*total=(\d+)", part)[1]) for part in (fits, thrashes, later)]  # type: ignore[index]
    assert stalls[0] * 100 < stalls[1] < stalls[2]
    assert re.search(r"memory: some avg10=(?!0\.00)", later)


def test_cgroup_leak(command_path: str) -> None:
    _, fresh, leaks, slow, killed, left = run_example("cgroup-leak.sh", command_path).split("== ")
    events = [
        {name: int(number) for name, number in re.findall(r"^(\w+) (\d+)$", part, re.MULTILINE)}
        for part in (fresh, leaks, slow, killed)
    ]
    assert events[0] == events[1] == {"high": 0, "max": 0, "oom": 0, "oom_kill": 0}
    assert events[2]["high"] > 0 == events[2]["oom_kill"]
    assert (events[3]["oom"], events[3]["oom_kill"]) == (1, 1)
    assert events[3]["high"] > 100
    assert left.splitlines()[1] == "1", "the database is still there"
    assert "oom_kill 1\n" in left
    assert "oom_memcg=/services" in left
    assert re.search(r"Memory cgroup out of memory: Killed process \d+ \(leaky\)", left)


def test_dirty_throttling(command_path: str) -> None:
    _, _, fast, slow, broken, clean = run_example("dirty-throttling.sh", command_path).split("== ")
    times = [int(re.search(r" ns=(\d+)", part)[1]) for part in (fast, slow)]  # type: ignore[index]
    assert times[0] < 32 * 1e9 / 50 / 10, "the first 32 MiB do not wait for the disk"
    assert 0.5 < times[1] / (200 * 1e9 / 50) < 1.1, "the others are as fast as it"
    under_way = [int(re.search(rf"{name} +(\d+)", slow)[1]) for name in ("nr_dirty", "nr_writeback")]  # type: ignore[index]
    assert sum(under_way) <= 64
    assert "EIO: pages of /mnt/log could not be written" in broken
    assert re.search(r"^path=/mnt/log pages=0 ", broken, re.MULTILINE), "told once"
    assert re.search(r"nr_dirty +0 MiB\nnr_writeback +0 MiB", clean)


def test_demo(command_path: str) -> None:
    output = run_example("demo.sh", command_path)
    assert "unreferenced object" in output
    assert "pages reused" in output
    assert re.search(r"^swap_reads [1-9]", output, re.MULTILINE)
    assert output.endswith("ok\n")
