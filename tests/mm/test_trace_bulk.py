"""What is done to many pages at a time emits the events of one page after the other, and tracing changes no count."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from kmemd import System
from kmemd.machine import Machine

TRACING = "/sys/kernel/tracing/"
TOML = """
arch = "x86_64"
cpus = 2
[[node]]
memory = "128M"
cpus = "0-1"
[[swap]]
path = "/dev/vdb"
size = "32M"
"""
KINDS = ("filemap", "pagemap", "kmem", "vmscan", "compaction", "migrate", "writeback", "oom", "huge_memory", "mmap")


class Traced:
    """A machine whose events of some systems are on, with room for all of them."""

    def __init__(self, *systems: str, machine: str | Machine = "two-node") -> None:
        self.system = System.boot(machine=machine, seed=3, clock="manual")
        self.write("buffer_size_kb", "65536")
        for system in systems:
            self.write(f"events/{system}/enable", "1")

    def write(self, name: str, text: str) -> None:
        self.system.write(TRACING + name, text)

    def run(self, *lines: str) -> None:
        for line in lines:
            self.system.command(line)

    def events(self, name: str) -> list[dict[str, str]]:
        """The fields of each event of a name."""
        lines = self.system.read(TRACING + "trace").decode().splitlines()
        found = [line.partition(f": {name}: ")[2] for line in lines if f": {name}: " in line]
        return [dict(re.findall(r"(\S+?)=([^\s,]*)", line)) for line in found]

    def count(self) -> Counter[str]:
        text = self.system.read(TRACING + "trace").decode()
        return Counter(re.findall(r"\d: (\w+): ", text))

    def vmstat(self, name: str) -> int:
        (line,) = re.findall(rf"^{name} (\d+)$", self.system.read("/proc/vmstat").decode(), re.M)
        return int(line)

    def checked(self) -> None:
        self.system.check()


def places(traced: Traced, event: str) -> dict[str, list[int]]:
    """Offsets by inode."""
    text = traced.system.read(TRACING + "trace").decode()
    found: dict[str, list[int]] = {}
    for ino, offset in re.findall(rf": mm_filemap_{event}: dev \S+ ino (\w+) pfn=\S+ ofs=(\d+) order=0", text):
        found.setdefault(ino, []).append(int(offset) >> 12)
    return found


def test_pages_of_a_bulk_read_are_added_one_by_one() -> None:
    traced = Traced("filemap")
    traced.run("create /mnt/f 8M")
    traced.write("trace", "")
    traced.run("read_file /mnt/f pattern=random n=3000")
    added = places(traced, "add_to_page_cache")
    ino = max(added, key=lambda ino: len(added[ino]))
    assert len(added[ino]) == len(set(added[ino])) > 1000
    traced.system.write("/proc/sys/vm/drop_caches", "1")
    assert sorted(places(traced, "delete_from_page_cache")[ino]) == sorted(added[ino])
    traced.checked()


def test_reading_traced_counts_as_reading_untraced() -> None:
    traced, quiet = Traced(*KINDS), Traced()
    for machine in (traced, quiet):
        machine.run("create /mnt/f 8M", "read_file /mnt/f pattern=zipf:1.0 n=4000")
    for name in ("pgpgin", "nr_file_pages", "nr_inactive_file", "nr_active_file", "workingset_refault_file"):
        assert traced.vmstat(name) == quiet.vmstat(name), name


def test_each_migrated_page_has_its_two_entries() -> None:
    traced = Traced("migrate")
    traced.run("p = spawn a", "m = mmap p 2M", "madvise p m 2M MADV_NOHUGEPAGE", "access p m 2M w")
    traced.run("mbind p m 2M MPOL_BIND 1 flags=MPOL_MF_MOVE")
    set_, removed = (traced.events(f"{kind}_migration_pte") for kind in ("set", "remove"))
    assert len(set_) == traced.vmstat("pgmigrate_success") > 0
    assert [event["addr"] for event in set_] == [event["addr"] for event in removed]
    assert all(event["order"] == "0" for event in set_)
    traced.checked()


def test_each_page_that_comes_to_a_list_is_inserted() -> None:
    traced = Traced("pagemap")
    traced.run("p = spawn a", "m = mmap p 1M", "madvise p m 1M MADV_NOHUGEPAGE", "access p m 1M w")
    inserted = traced.events("mm_lru_insertion")
    mapped = [event for event in inserted if event["flags"].startswith("Ma")]
    assert len(inserted) >= 240
    assert {event["lru"] for event in mapped} == {"0"}
    assert len({event["pfn"] for event in mapped}) == len(mapped)


@pytest.fixture(scope="module")
def pressure(tmp_path_factory: pytest.TempPathFactory) -> Traced:
    """A small machine on which a process wants more memory than there is."""
    path = tmp_path_factory.mktemp("machine") / "small.toml"
    path.write_text(TOML)
    traced = Traced(*KINDS, machine=Machine.load(path))
    traced.system.write("/proc/sys/vm/overcommit_memory", "1")
    traced.run("create /mnt/f 16M", "read_file /mnt/f pattern=seq n=4096")
    traced.run("p = spawn hog", "m = mmap p 512M", "madvise p m 512M MADV_NOHUGEPAGE")
    with pytest.raises(OSError, match="SIGKILL"):
        traced.run("access p m 512M w")
    return traced


def test_what_begins_ends(pressure: Traced) -> None:
    count = pressure.count()
    for begin, end in (
        ("mm_vmscan_direct_reclaim_begin", "mm_vmscan_direct_reclaim_end"),
        ("mm_shrink_slab_start", "mm_shrink_slab_end"),
        ("mm_compaction_begin", "mm_compaction_end"),
        ("start_task_reaping", "finish_task_reaping"),
    ):
        assert abs(count[begin] - count[end]) <= 1, (begin, count[begin], count[end])
    assert count["mm_vmscan_kswapd_wake"] > 0
    assert count["mm_vmscan_lru_isolate"] > 0
    pressure.checked()


def test_whoever_runs_short_says_what_it_may_do(pressure: Traced) -> None:
    flags = {event["gfp_flags"] for event in pressure.events("mm_vmscan_wakeup_kswapd")}
    assert any("GFP_HIGHUSER_MOVABLE" in flag for flag in flags)


def test_the_victim_is_chosen_after_retries(pressure: Traced) -> None:
    count = pressure.count()
    assert count["mark_victim"] == pressure.vmstat("oom_kill") > 0
    assert count["reclaim_retry_zone"] > 0


def test_a_flusher_tells_what_it_does() -> None:
    traced = Traced("writeback")
    traced.run("create /mnt/f 4M", "write_file /mnt/f n=4M", "sleep 40")
    count = traced.count()
    assert len(traced.events("writeback_dirty_folio")) >= 1024
    assert count["writeback_start"] == count["writeback_written"] > 0
    assert count["writeback_single_inode_start"] == count["writeback_single_inode"] > 0
    assert count["writeback_pages_written"] > 0
    reasons = {event["reason"] for event in traced.events("writeback_start")}
    assert "periodic" in reasons <= {"periodic", "background"}
    wrote = sum(int(event["wrote"]) for event in traced.events("writeback_single_inode"))
    assert wrote >= 1024
    traced.checked()


def test_khugepaged_tells_what_it_found() -> None:
    traced = Traced("huge_memory")
    traced.run("p = spawn a", "m = mmap p 4M", "madvise p m 4M MADV_NOHUGEPAGE", "access p m 4M w")
    traced.run("madvise p m 4M MADV_HUGEPAGE", "sleep 60")
    found = traced.events("mm_khugepaged_scan_pmd")
    collapsed = [event for event in traced.events("mm_collapse_huge_page") if event["status"] == "succeeded"]
    assert len(collapsed) == traced.vmstat("thp_collapse_alloc") > 0
    assert len([event for event in found if event["status"] == "succeeded"]) >= len(collapsed)
    assert {event["writable"] for event in found} <= {"0", "1"}


def test_an_error_of_write_back_is_set_and_told() -> None:
    traced = Traced("filemap")
    traced.run("p = spawn a", "create /mnt/f 64K", "write_file /mnt/f n=64K", "disk_error ram0 write")
    with pytest.raises(OSError, match="EIO"):
        traced.run("fsync /mnt/f")
    (event,) = traced.events("file_check_and_advance_wb_err")
    assert traced.events("filemap_set_wb_err")
    assert event["old"] != event["new"]


def test_a_shrinker_is_known_by_its_function(pressure: Traced) -> None:
    text = pressure.system.read(TRACING + "trace").decode()
    shrinkers = set(re.findall(r"mm_shrink_slab_start: (\w+)\+0x0/0x", text))
    assert "super_cache_scan" in shrinkers <= {"super_cache_scan", "scan_shadow_nodes", "deferred_split_scan"}
