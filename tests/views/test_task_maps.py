"""maps, map_files, numa_maps, status and mem of a process."""

import re

import pytest

from kmemd import System
from kmemd.views.task_maps import header, mangle
from kmemd.views.tree import Caller
from tests.views.process import MIB, PAGE, TWO_NODES, Process

MAPS_LINE = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) ([0-9a-f]{8,}) (\w+:\w+) (\d+) (?: *(\S.*))?$")


@pytest.fixture
def system():
    return System.boot("two-node", seed=1)


def rows(text):
    """(pages, permissions) of each line of maps, by address."""
    found = [MAPS_LINE.match(line) for line in text.splitlines()]
    return {int(m[1], 16): ((int(m[2], 16) - int(m[1], 16)) // PAGE, m[3]) for m in found}


def test_protection_splits_a_mapping_as_captured(system):
    process = Process(system)
    address = process.mmap(MIB)
    process.do("mprotect", hex(address + PAGE), PAGE, "r")
    process.do("mprotect", hex(address + 4 * PAGE), 2 * PAGE, "rx")
    process.do("munmap", hex(address + 16 * PAGE), PAGE)
    ours = [row for at, row in rows(process.read("maps")).items() if address <= at < address + MIB]
    text = (TWO_NODES / "uo_prot").read_text()
    lines = [line for line in text.splitlines() if MAPS_LINE.match(line) and line.startswith("7f9e")]
    assert ours == list(rows("\n".join(lines)).values())


@pytest.mark.parametrize(("arch", "column"), [("x86_64", 73), ("i386", 49)])
def test_names_begin_in_their_column(arch, column):
    line = header(arch, 0x1000, 0x2000, "r--p", "/bin/x", (0x3000, "00:02", 9))
    assert line.index("/bin/x") == column
    assert line.startswith("00001000-00002000 r--p 00003000 00:02 9 ")
    assert header(arch, 0x1000, 0x2000, "rw-p", "") == "00001000-00002000 rw-p 00000000 00:00 0 \n"


def test_a_long_line_still_has_a_space_before_the_name():
    origin = (1 << 60, "fe:1234567", 1 << 63)
    assert header("i386", 1 << 44, 1 << 45, "rw-s", "/x", origin).endswith(" 9223372036854775808  /x\n")


def test_characters_that_would_end_a_name_are_octal():
    assert mangle("/a b\nc\t=", "\n") == "/a b\\012c\t="
    assert mangle("/a b\nc\t=", "\n\t= ") == "/a\\040b\\012c\\011\\075"


def test_map_files_lead_to_the_files(system):
    mapped = [line for line in system.read("/proc/1/maps").decode().splitlines() if "/bin/busybox" in line]
    directory = system.tree.lookup("/proc/1/map_files")
    names = [node.path.rpartition("/")[2] for node in system.tree.children(directory)]
    bounds = [line.split()[0].split("-") for line in mapped]
    assert names == [f"{int(first, 16):x}-{int(last, 16):x}" for first, last in bounds]
    link = system.tree.child(directory, names[0], Caller())
    assert system.tree.readlink(link, Caller()) == "/bin/busybox"
    for name, caller, error in (
        ("0-1000", Caller(), "ENOENT"),
        (f"0{names[0]}", Caller(), "ENOENT"),
        ("nonsense", Caller(), "ENOENT"),
        (names[0], Caller(5, 1000), "EACCES"),
    ):
        with pytest.raises(Exception, match=error):
            system.tree.child(directory, name, caller)


def test_numa_maps_shows_the_policy_and_the_nodes(system):
    process = Process(system)
    address = process.mmap(8 * MIB)
    process.do("madvise", hex(address), 8 * MIB, "MADV_NOHUGEPAGE")
    process.do("mbind", hex(address), 8 * MIB, "MPOL_INTERLEAVE", "0-1")
    process.do("access", hex(address), 8 * MIB, "w")
    line = next(line for line in process.read("numa_maps").splitlines() if line.startswith(f"{address:08x} "))
    captured = (TWO_NODES / "uo_numa_8_3_3").read_text().splitlines()[1]
    ours, theirs = line.split()[1:], captured.split()[1:]
    assert [word for word in ours if not word.startswith("active")] == [w for w in theirs if not w.startswith("active")]


def test_memory_is_read_and_written_at_its_address(system):
    process = Process(system)
    address = process.mmap(4 * PAGE)
    process.do("access", hex(address), PAGE, "w")
    file = system.tree.open(system.tree.lookup(f"/proc/{process.pid}/mem"), Caller())
    assert file.read(address, 8) == bytes(8)
    run(file.write_at(address + PAGE - 3, b"across pages"))
    assert file.read(address + PAGE - 4, 14) == b"\0across pages\0"
    assert len(file.read(address + 3 * PAGE + 4000, 4096)) == 96
    child = process.fork()
    run(file.write_at(address + PAGE - 3, b"parent"))
    other = system.tree.open(system.tree.lookup(f"/proc/{child.pid}/mem"), Caller())
    assert other.read(address + PAGE - 3, 12) == b"across pages"
    assert file.read(address + PAGE - 3, 12) == b"parent pages"
    system.check()


def test_memory_that_is_not_there_gives_eio(system):
    process = Process(system)
    address = process.mmap(PAGE)
    file = system.tree.open(system.tree.lookup(f"/proc/{process.pid}/mem"), Caller())
    for where in (0, address + PAGE, 1 << 62, (1 << 64) - PAGE):
        with pytest.raises(Exception, match="EIO"):
            file.read(where, 8)
        with pytest.raises(Exception, match="EIO"):
            run(file.write_at(where, b"x"))
    kernel_thread = system.tree.open(system.tree.lookup("/proc/2/mem"), Caller())
    assert kernel_thread.read(0x1000, 8) == b""
    process.do("exit")
    assert file.read(address, 8) == b""


def test_what_the_owner_may_not_write_is_written_by_force(system):
    process = Process(system)
    address = process.mmap(PAGE)
    process.do("access", hex(address), PAGE, "w")
    process.do("mprotect", hex(address), PAGE, "r")
    file = system.tree.open(system.tree.lookup(f"/proc/{process.pid}/mem"), Caller())
    assert run(file.write_at(address, b"forced")) == 6
    assert file.read(address, 6) == b"forced"
    system.command(f"sigaction {process.pid} SIGSEGV catch")
    assert "signal=11" in process.do("access", hex(address), PAGE, "w")
    system.check()


def run(steps):
    """The result of a write."""
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            return stop.value


def test_status_counts_what_the_kernel_counted(system):
    process = Process(system)
    address = process.mmap(2 * MIB + PAGE)
    process.do("madvise", hex(address), 2 * MIB + PAGE, "MADV_NOHUGEPAGE")
    process.do("access", hex(address), 100 * PAGE, "w")
    status, rollup = process.fields("status"), process.fields("smaps_rollup")
    resident, seen = rollup["Anonymous"] // 4, status["RssAnon"] // 4
    assert 0 <= resident - seen < 66
    assert status["VmRSS"] == status["RssAnon"] + status["RssFile"] + status["RssShmem"]
    size, rss, shared, _, _, data, _ = map(int, process.read("statm").split())
    assert (size * 4, rss * 4, shared * 4) == (
        status["VmSize"],
        status["VmRSS"],
        status["RssFile"] + status["RssShmem"],
    )
    assert data * 4 == status["VmData"] + status["VmStk"]
    stat = process.read("stat").rpartition(")")[2].split()
    assert (int(stat[20]), int(stat[21])) == (status["VmSize"] << 10, rss)
    assert status["VmPeak"] >= status["VmSize"]
    assert int(stat[7]) >= 100
