"""Trace events of mappings and of write-back: what the address space, a file's inode and a writer tell."""

from __future__ import annotations

import re

from tests.views.tracefs import Tracefs


def on(*events: str, cmdline: str = "") -> Tracefs:
    """A machine whose events of these names are on."""
    fs = Tracefs(cmdline=cmdline)
    for event in events:
        fs.write(f"events/{event}/enable", "1")
    return fs


def told(fs: Tracefs, event: str) -> list[str]:
    """What each event of a name says; the trace is empty then."""
    found = [line.partition(f": {event}: ")[2] for line in fs.lines() if f": {event}: " in line]
    fs.write("trace", "")
    return found


def stored(fs: Tracefs) -> list[tuple[int, int]]:
    """The ranges that were stored, as maps shows them."""
    return [
        (int(low), int(high) + 1) for low, high in re.findall(r"STORE, (\d+), (\d+),", "".join(told(fs, "vma_store")))
    ]


def test_mappings_that_are_made_split_and_merged_are_stored() -> None:
    fs = on("mmap/vma_store")
    fs.command("w = spawn walker")
    told(fs, "vma_store")
    address = int(re.findall(r"addr=(\S+)", fs.command("a = mmap w 64K"))[0], 16)
    (low, high), *others = stored(fs)
    assert low <= address < high
    assert others == []
    fs.command(f"mprotect w {address + 0x4000:#x} 16K r")
    # the part below, what is left above it; then the middle, and what is left above that
    assert stored(fs)[-1] == (address + 0x8000, high)
    fs.command(f"mprotect w {address + 0x4000:#x} 16K rw")
    assert stored(fs) == [(low, high)]
    fs.system.check()


def test_an_address_space_ends() -> None:
    fs = on("mmap/exit_mmap")
    fs.command("w = spawn walker")
    fs.command("exit w")
    assert [text.endswith(", DESTROY") for text in told(fs, "exit_mmap")] == [True]


def test_write_back_of_a_file_is_told() -> None:
    names = ("sb_mark_inode_writeback", "sb_clear_inode_writeback", "writeback_dirty_inode_enqueue", "wbc_writepage")
    fs = on(*(f"writeback/{name}" for name in (*names, "folio_wait_writeback", "global_dirty_state")))
    fs.command("create /mnt/f 256K")
    fs.command("write_file /mnt/f n=256K")
    lines = fs.lines()
    (enqueued,) = [line for line in lines if "writeback_dirty_inode_enqueue" in line]
    assert re.search(r" ino \d+ dirtied \d+ state I_DIRTY_SYNC\|I_DIRTY_DATASYNC mode 0100000$", enqueued)
    fs.write("trace", "")
    fs.command("p = spawn a")
    fs.command("fsync /mnt/f")
    ino = re.findall(r" ino (\d+) ", enqueued)[0]
    events = [line.split(": ")[1] for line in fs.lines() if re.search(rf"ino[ =]{ino} ", line)]
    assert (events.count("sb_mark_inode_writeback"), events.count("sb_clear_inode_writeback")) == (1, 1)
    assert events.index("sb_mark_inode_writeback") < events.index("sb_clear_inode_writeback")
    assert events.count("folio_wait_writeback") >= 1
    pages = [line for line in fs.lines() if ": wbc_writepage: " in line]
    pages = [line for line in pages if "end=0x7fffffffffffffff " in line]
    assert len(pages) == 64
    assert "mode=1 kupd=0 bgrd=0 reclm=0 cyclic=0" in pages[0]
    left = [int(re.findall(r"towrt=(-?\d+)", line)[0]) for line in pages]
    assert left == [left[0] - done for done in range(64)]


def test_a_flusher_writes_for_its_reason() -> None:
    fs = on("writeback/wbc_writepage", "writeback/writeback_start")
    fs.command("create /mnt/f 64K")
    fs.command("write_file /mnt/f n=64K")
    fs.command("sleep 40")
    reason, pages = "", 0
    words = {"background": "kupd=0 bgrd=1", "periodic": "kupd=1 bgrd=0"}
    for line in fs.lines():
        if ": writeback_start: " in line:
            reason = re.findall(r"reason=(\w+)", line)[0]
        else:
            assert f"mode=0 {words[reason]} reclm=0 cyclic=1 start=0x0 end=0x7fffffffffffffff" in line
            pages += 1
    assert pages >= 16


def test_limits_that_are_asked_for() -> None:
    fs = on("writeback/global_dirty_state")
    vmstat = dict(line.split() for line in fs.system.read("/proc/vmstat").decode().splitlines())
    (text,) = told(fs, "global_dirty_state")
    known = dict(re.findall(r"(\w+)=(\d+)", text))
    assert known["bg_thresh"] == vmstat["nr_dirty_background_threshold"]
    assert known["thresh"] == vmstat["nr_dirty_threshold"]
    assert (known["dirty"], known["written"]) == (vmstat["nr_dirty"], vmstat["nr_written"])


def test_a_range_that_is_wanted_is_tested() -> None:
    fs = on("page_isolation/test_pages_isolated", cmdline="cma=64M")
    kernel = fs.system.kernel
    area = kernel.cma.areas[0]
    pfn = kernel.cma.alloc(area, 1000, 4)
    (text,) = told(fs, "test_pages_isolated")
    found = re.fullmatch(r"start_pfn=(\w+) end_pfn=(\w+) fin_pfn=(\w+) ret=success", text)
    assert found is not None
    start, end, last = (int(word, 16) for word in found.groups())
    assert start <= pfn
    assert (end, last >= end) == (pfn + 1000, True)
    kernel.cma.release(pfn, 1000)
    fs.system.check()
