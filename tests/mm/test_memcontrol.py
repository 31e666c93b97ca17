"""Charging: limits, stock, reclaim, the OOM killer of a group, swap, kernel memory, groups that are gone."""

from __future__ import annotations

import errno

import numpy as np
import pytest

from kmemd.conformance.uo import machine_of
from kmemd.machine import SwapDevice
from kmemd.mm.memcontrol_group import HIGH, MAX, OOM, OOM_GROUP_KILL, OOM_KILL, SWAP_MAX, MemCgroup
from kmemd.mm.units import GIB
from kmemd.system import System, SystemCallError
from kmemd.views.tree import Caller

ROOT = "/sys/fs/cgroup"
CMDLINE = "transparent_hugepage=never"


class World:
    """A machine with the memory controller on, and a way to fill groups."""

    def __init__(self, cmdline: str = CMDLINE, *, swap: bool = False) -> None:
        device = SwapDevice("/dev/vdb", GIB // 4, active=swap)
        self.system = System.boot(machine_of("x86_64-512M-2cpu", swap=(device,)), cmdline=cmdline)
        self.kernel = self.system.kernel
        self.system.write(f"{ROOT}/cgroup.subtree_control", "+memory")
        self.turn = 0

    def group(self, path: str) -> MemCgroup:
        self.system.mkdir(f"{ROOT}/{path}")
        found: MemCgroup = self.kernel.cgroups.find(path).memcg
        return found

    def set(self, path: str, text: str) -> None:
        self.system.write(f"{ROOT}/{path}", text)

    def show(self, path: str) -> str:
        return self.system.read(f"{ROOT}/{path}").decode()

    def spawn(self, path: str) -> int:
        pid = int(self.system.command("spawn hog").split("pid=")[1].split()[0])
        self.set(f"{path}/cgroup.procs", str(pid))
        return pid

    def hog(self, path: str, size: str) -> int:
        """A process in a group that wrote so much memory."""
        pid = self.spawn(path)
        self.write(pid, size)
        return pid

    def write(self, pid: int, size: str) -> None:
        self.turn += 1
        self.system.command(f"m{self.turn} = mmap {pid} {size}")
        self.system.command(f"access {pid} m{self.turn} {size} w")

    def value(self, path: str, label: str) -> int:
        return next(int(line.split()[1]) for line in self.show(path).splitlines() if line.split()[0] == label)


@pytest.fixture
def world() -> World:
    return World(CMDLINE + " cgroup.memory=nokmem")


def test_charges_come_in_batches(world: World) -> None:
    a = world.group("a")
    pid = world.hog("a", "4M")
    assert a.pages == 1024
    assert world.show("a/memory.current") == f"{1024 * 4096}\n"
    world.write(pid, "4K")
    assert (a.pages, world.show("a/memory.current")) == (1025, f"{(1024 + 64) * 4096}\n")
    assert world.value("a/memory.stat", "anon") == 1025 * 4096
    assert world.value("a/memory.stat", "pgfault") == 1025
    world.system.check()
    world.system.command(f"exit {pid}")
    assert (a.pages, world.show("a/memory.current")) == (0, f"{63 * 4096}\n")
    assert world.show("a/memory.peak") == f"{(1024 + 64) * 4096}\n"
    world.set("a/memory.max", "0")  # what is only in stock is given back
    assert (world.show("a/memory.current"), a.events[MAX]) == ("0\n", 0)
    world.system.check()


def test_the_root_is_charged_nothing(world: World) -> None:
    pid = int(world.system.command("spawn hog").split("pid=")[1].split()[0])
    world.write(pid, "4M")
    assert not world.kernel.pages.memcg.any()
    assert world.value("memory.stat", "anon") >= 4 << 20
    with pytest.raises(SystemCallError) as caught:
        world.show("memory.current")
    assert caught.value.errno == errno.ENOENT


def test_a_limit_above_counts_too(world: World) -> None:
    a = world.group("a")
    world.set("a/cgroup.subtree_control", "+memory")
    b = world.group("a/b")
    world.set("a/memory.max", "2M")
    pid = world.spawn("a/b")
    with pytest.raises(SystemCallError):
        world.write(pid, "4M")
    assert pid not in world.kernel.tasks
    assert (b.events_local[MAX], b.events_local[OOM_KILL]) == (0, 1)
    assert (a.events_local[MAX] > 16, a.events_local[OOM], a.events[OOM_KILL]) == (True, 1, 1)
    log = world.system.read("/dev/kmsg").decode()
    assert "oom_memcg=/a,task_memcg=/a/b,task=hog" in log
    assert "memory: usage 2048kB, limit 2048kB, failcnt" in log
    world.system.check()


def test_all_of_a_group_go_together(world: World) -> None:
    a = world.group("a")
    world.set("a/memory.max", "4M")
    world.set("a/memory.oom.group", "1")
    small, large = world.hog("a", "1M"), world.spawn("a")
    with pytest.raises(SystemCallError):
        world.write(large, "8M")
    assert small not in world.kernel.tasks
    assert large not in world.kernel.tasks
    assert (a.events[OOM_KILL], a.events[OOM_GROUP_KILL]) == (2, 1)
    assert "Tasks in /a are going to be killed due to memory.oom.group set" in world.system.read("/dev/kmsg").decode()


def test_at_its_limit_a_group_swaps() -> None:
    world = World(CMDLINE + " cgroup.memory=nokmem", swap=True)
    a = world.group("a")
    world.set("a/memory.max", "8M")
    pid = world.hog("a", "12M")
    assert pid in world.kernel.tasks
    assert a.memory.usage <= 2048
    assert a.swap.usage >= 1024
    assert a.memory.watermark == 2048
    assert world.value("a/memory.stat", "pgsteal") >= 1024
    assert "total=0" not in world.show("a/memory.pressure")
    world.system.check()
    world.system.command(f"access {pid} m1 12M r")
    world.system.check()
    world.system.command(f"exit {pid}")
    assert a.pages == 0
    assert 0 < a.swapped <= 64, "what a CPU keeps of slots that came back is charged until it gives them away"
    world.system.command("swapoff /dev/vdb")
    assert a.swapped == a.swap.usage == 0
    world.system.check()


def test_swap_has_a_limit_of_its_own() -> None:
    world = World(CMDLINE + " cgroup.memory=nokmem", swap=True)
    a = world.group("a")
    world.set("a/memory.max", "8M")
    world.set("a/memory.swap.max", "1M")
    pid = world.spawn("a")
    with pytest.raises(SystemCallError):
        world.write(pid, "12M")
    assert a.swap.watermark == 256
    assert a.events[SWAP_MAX] > 0
    assert world.value("a/memory.swap.events", "fail") == a.events[SWAP_MAX]
    world.system.check()


def test_above_high_who_charges_reclaims_and_waits() -> None:
    world = World(CMDLINE + " cgroup.memory=nokmem")
    a = world.group("a")
    world.set("a/memory.high", "4M")
    before = world.kernel.clock.now
    pid = world.hog("a", "6M")
    assert pid in world.kernel.tasks
    assert a.events[HIGH] > 0
    assert a.events[MAX] == 0
    assert world.kernel.clock.now - before > 2_000_000_000, "nothing can be reclaimed: the task is slowed down"
    assert a.cgroup.psi.report("memory")[0][2] > 2_000_000


def test_huge_pages_that_khugepaged_makes_are_the_groups() -> None:
    world = World("cgroup.memory=nokmem")
    a = world.group("a")
    pid = world.spawn("a")
    start = int(world.system.command(f"mmap {pid} 8M").split("addr=")[1].split()[0], 16)
    world.system.command(f"access {pid} {start:#x} 8M w")
    world.system.write("/sys/kernel/mm/transparent_hugepage/enabled", "always")
    world.system.command(f"madvise {pid} {start:#x} 8M MADV_HUGEPAGE")
    world.system.advance(60)
    made = world.value("a/memory.stat", "thp_collapse_alloc")
    assert made == world.value("a/memory.stat", "anon_thp") >> 21 > 0
    assert made == world.value("memory.stat", "thp_collapse_alloc")
    world.system.check()
    assert a.pages >= made << 9


def test_huge_pages_above_high_are_an_event_too() -> None:
    """A fault's huge page is charged by who may not wait there: the group is looked at when the fault is over."""
    world = World("cgroup.memory=nokmem")
    world.system.write("/sys/kernel/mm/transparent_hugepage/enabled", "always")
    a = world.group("a")
    world.set("a/memory.high", "48M")
    pid = world.spawn("a")
    start = int(world.system.command(f"mmap {pid} 64M").split("addr=")[1].split()[0], 16)
    aligned = (start + (2 << 20) - 1) & -(2 << 20)
    world.system.command(f"access {pid} {aligned:#x} 48M w")
    assert (a.events[HIGH], a.cgroup.psi.report("memory")[0][2]) == (0, 0)
    world.system.command(f"access {pid} {aligned + (48 << 20):#x} 4M w")
    assert world.value("a/memory.stat", "anon_thp") == 52 << 20
    assert a.events[HIGH] >= 2
    assert a.cgroup.psi.report("memory")[0][2] > 0
    world.system.check()


def test_a_writer_in_a_group_is_bound_by_the_thresholds_of_the_machine(world: World) -> None:
    """There is no io controller, hence no write-back of groups: half of a small group may be dirty."""
    world.group("a")
    world.set("a/memory.max", "32M")
    assert world.show("cgroup.controllers") == "memory\n"
    world.system.command("create /mnt/data 16M")
    pid = world.spawn("a")
    world.system.command(f"f = mmap {pid} 16M file=/mnt/data flags=MAP_SHARED")
    world.system.command(f"access {pid} f 16M w")
    assert world.value("a/memory.stat", "file_dirty") == 16 << 20
    assert world.kernel.user.block.throttle.pauses == 0
    world.system.check()


def test_charges_stay_where_they_were_made(world: World) -> None:
    a, b = world.group("a"), world.group("b")
    pid = world.hog("a", "1M")
    world.set("b/cgroup.procs", str(pid))
    world.write(pid, "2M")
    assert (a.pages, b.pages) == (256, 512)
    world.system.rmdir(f"{ROOT}/a")
    assert world.show("cgroup.stat") == "nr_descendants 1\nnr_dying_descendants 1\n"
    inode = world.kernel.cgroups.root.ino
    charged = np.flatnonzero(world.kernel.pages.memcg == a.id)
    words = np.frombuffer(world.system.read("/proc/kpagecgroup", int(charged[0]) * 8, 8), dtype="<u8")
    assert words.tolist() == [inode], "pages of a group that was removed are shown as its parent's"
    world.system.check()
    world.system.command(f"exit {pid}")
    assert world.show("cgroup.stat") == "nr_descendants 1\nnr_dying_descendants 0\n"
    assert world.kernel.memcg.groups[a.id] is None
    assert world.group("c").id == a.id
    world.system.check()


def test_kernel_memory_is_charged() -> None:
    world = World()
    a = world.group("a")
    pid = world.hog("a", "8M")
    assert a.kmem > 0
    assert world.value("a/memory.stat", "kernel") == a.kmem * 4096
    assert world.value("a/memory.stat", "pagetables") >= 4 * 4096
    world.system.check()
    world.system.command(f"exit {pid}")
    assert a.kmem <= 1, "the rest of a page that objects were charged from stays in stock"
    assert a.slab.sum() == 0
    world.system.check()


def test_huge_pages_and_their_parts() -> None:
    world = World("cgroup.memory=nokmem")
    world.system.write("/sys/kernel/mm/transparent_hugepage/enabled", "always")
    a = world.group("a")
    pid = world.hog("a", "8M")
    huge = world.value("a/memory.stat", "anon_thp")
    assert huge >= 2 << 21
    assert a.pages >= huge // 4096
    assert world.value("a/memory.stat", "thp_fault_alloc") == huge >> 21
    world.system.command(f"munmap {pid} m1 4K")
    world.system.check()
    world.system.command(f"exit {pid}")
    assert a.pages == 0
    world.system.check()


def test_files_are_charged_to_who_reads_them_first(world: World) -> None:
    a = world.group("a")
    world.system.command("create /mnt/data 1M")
    world.spawn("a")
    before = a.pages
    assert before == 0
    pid = world.spawn("a")
    world.system.command(f"f = mmap {pid} 1M file=/mnt/data flags=MAP_SHARED")
    world.system.command(f"access {pid} f 1M r")
    charged = world.value("a/memory.stat", "file")
    assert charged > 0
    assert charged == a.pages * 4096
    world.system.check()


def test_protection_counts_against_reclaim() -> None:
    world = World(CMDLINE + " cgroup.memory=nokmem")
    a = world.group("a")
    world.set("a/memory.min", "2M")
    world.set("a/memory.low", "4M")
    world.hog("a", "3M")
    assert world.kernel.memcg.protection(0, a.id) == (512, 1024, a.memory.usage)
    assert world.kernel.memcg.protection(a.id, a.id) == (0, 0, 0)


def test_a_fork_stays_in_the_group(world: World) -> None:
    a = world.group("a")
    pid = world.hog("a", "1M")
    child = int(world.system.command(f"fork {pid}").split("pid=")[1].split()[0])
    assert world.show("a/cgroup.procs") == f"{pid}\n{child}\n"
    assert world.system.read(f"/proc/{child}/cgroup") == b"0::/a\n"
    assert a.pages == 256
    world.system.command(f"access {child} m1 1M w")
    assert a.pages == 512
    world.set("a/cgroup.kill", "1")
    assert (world.show("a/cgroup.procs"), a.pages) == ("", 0)
    world.system.check()


def test_without_the_controller() -> None:
    system = System.boot("default", cmdline="cgroup_disable=memory")
    assert system.read(f"{ROOT}/cgroup.controllers") == b""
    system.mkdir(f"{ROOT}/a")
    with pytest.raises(SystemCallError) as caught:
        system.write(f"{ROOT}/cgroup.subtree_control", "+memory")
    assert caught.value.errno == errno.EINVAL
    pid = system.command("spawn hog").split("pid=")[1].split()[0]
    system.write(f"{ROOT}/a/cgroup.procs", pid)
    system.command(f"exit {pid}")
    system.check()


def test_a_thousand_groups_are_cheap(world: World) -> None:
    for number in range(1000):
        world.group(f"g{number}")
    pid = world.hog("g500", "1M")
    assert world.kernel.memcg.by_id(501).pages == 256
    world.system.command(f"exit {pid}")
    for number in range(1000):
        world.system.rmdir(f"{ROOT}/g{number}")
    assert world.kernel.memcg.groups[1:] == [None] * 1000
    world.system.check()


def test_slab_objects_are_charged_by_the_byte() -> None:
    world = World()
    a = world.group("a")
    pid = world.spawn("a")
    world.system.command(f"mmap {pid} 4K")
    before = a.slab.copy()
    assert before[0, 0] > 0, "the mapping has a vm_area_struct"
    assert world.value("a/memory.stat", "slab_unreclaimable") == before[0, 0]
    assert world.value("a/memory.stat", "slab") == before.sum()
    world.system.check()
    for _ in range(200):
        world.system.command(f"mmap {pid} 4K prot=r")
        world.system.command(f"mmap {pid} 4K prot=rw")
    grown = int((a.slab - before)[0, 0])
    cache = world.kernel.slub.cache("vm_area_struct")
    assert grown == 400 * (cache.size + 8), "each with a pointer to the group that pays"
    assert a.kmem * 4096 >= grown
    world.system.check()
    world.system.command(f"exit {pid}")
    assert a.slab.sum() == 0
    world.system.check()


def many_mappings(world: World, pid: int) -> None:
    """Mappings side by side that cannot be merged."""
    for _ in range(20_000):
        world.system.command(f"mmap {pid} 4K prot=r")
        world.system.command(f"mmap {pid} 4K prot=rw")


def test_a_limit_is_one_of_the_kernels_memory_too() -> None:
    world = World()
    a = world.group("a")
    pid = world.spawn("a")
    world.set("a/memory.max", "1M")
    with pytest.raises(SystemCallError):
        many_mappings(world, pid)
    assert a.events[MAX] > 0
    assert a.memory.usage <= 256
    world.system.check()


def test_kernel_memory_of_a_removed_group_is_its_parents() -> None:
    world = World()
    world.group("a")
    world.set("a/cgroup.subtree_control", "+memory")
    a, b = world.kernel.cgroups.find("a").memcg, world.group("a/b")
    own = world.value("a/memory.stat", "percpu")
    assert own > 0, "the counters of a/b"
    pid = world.hog("a/b", "2M")
    kernel = b.kmem
    world.set("cgroup.procs", str(pid))
    assert kernel > 0
    table = np.flatnonzero(world.kernel.pages.memcg == -b.id)[:1]
    world.system.rmdir(f"{ROOT}/a/b")
    assert (b.kmem, b.slab.sum()) == (0, 0)
    assert a.kmem >= kernel
    assert world.kernel.memcg.page_group(int(table[0])) is a
    words = np.frombuffer(world.system.read("/proc/kpagecgroup", int(table[0]) * 8, 8), dtype="<u8")
    assert words.tolist() == [a.cgroup.ino]
    world.system.check()
    world.system.rmdir(f"{ROOT}/a")
    world.system.check()
    world.system.command(f"exit {pid}")
    assert world.kernel.memcg.groups[1:] == [None, None]
    assert world.kernel.memcg.kernel.objcgs[1:] == [None, None]
    assert world.show("cgroup.stat") == "nr_descendants 0\nnr_dying_descendants 0\n"
    world.system.check()


def test_what_zswap_keeps_is_charged() -> None:
    world = World(CMDLINE + " zswap.enabled=1", swap=True)
    a = world.group("a")
    pid = world.hog("a", "8M")
    world.set("a/memory.reclaim", "4M")
    held = int(world.show("a/memory.zswap.current"))
    assert 0 < held < 4 << 20
    assert world.value("a/memory.stat", "zswap") == held
    assert world.value("a/memory.stat", "zswapped") == world.value("a/memory.stat", "zswpout") * 4096
    assert a.kmem * 4096 >= held
    world.system.check()
    world.set("a/memory.zswap.max", "0")
    world.set("a/memory.reclaim", "1M")
    assert int(world.show("a/memory.zswap.current")) == held, "nothing more is taken"
    world.set("cgroup.procs", str(pid))
    world.system.rmdir(f"{ROOT}/a")
    world.system.check()
    world.system.command(f"exit {pid}")
    world.system.command("swapoff /dev/vdb")
    assert world.kernel.memcg.groups[1:] == [None]
    world.system.check()


def test_protection_that_nobody_claims_is_shared_out_when_mounted_so() -> None:
    world = World(CMDLINE + " cgroup.memory=nokmem")
    world.group("a")
    world.set("a/cgroup.subtree_control", "+memory")
    b, c = world.group("a/b"), world.group("a/c")
    world.set("a/memory.low", "4M")
    world.hog("a/b", "3M")
    world.hog("a/c", "1M")
    memcg = world.kernel.memcg
    memcg.protection(0, b.parent.id if b.parent is not None else 0)
    assert memcg.protection(0, b.id)[1] == memcg.protection(0, c.id)[1] == 0
    world.system.command("remount /sys/fs/cgroup memory_recursiveprot")
    low = [memcg.protection(0, group.id)[1] for group in (b, c)]
    assert sum(low) in (1023, 1024)
    assert low[0] == pytest.approx(3 * low[1], rel=0.1)
    world.system.command("remount /sys/fs/cgroup rw")
    assert memcg.protection(0, b.id)[1] == 0
    with pytest.raises(SystemCallError) as caught:
        world.system.command("remount /sys/fs/cgroup nonsense")
    assert caught.value.errno == errno.EINVAL


def test_events_stay_local_when_mounted_so(world: World) -> None:
    a = world.group("a")
    world.set("a/cgroup.subtree_control", "+memory")
    b = world.group("a/b")
    world.system.command("remount /sys/fs/cgroup memory_localevents")
    b.event(OOM)
    assert (a.events[OOM], b.events[OOM]) == (0, 1)
    world.system.command("remount /sys/fs/cgroup rw")
    b.event(OOM)
    assert (a.events[OOM], b.events[OOM]) == (1, 2)


def test_reclaim_of_many_groups_lets_others_in() -> None:
    world = World(CMDLINE + " cgroup.memory=nokmem", swap=True)
    for number in range(20):
        world.group(f"g{number}")
        world.hog(f"g{number}", "1M")
    file = world.system.tree.open(world.system.tree.lookup(f"{ROOT}/memory.reclaim"), Caller())
    steps = file.write(b"4M")
    for at, _ in enumerate(steps):
        if at == 10:  # groups that go meanwhile are left out
            pid = next(iter(world.kernel.cgroups.find("g19").members))
            world.system.command(f"exit {pid}")
            world.system.rmdir(f"{ROOT}/g19")
    assert at > 20
    assert sum(world.value(f"g{number}/memory.stat", "pgsteal") for number in range(19)) > 0
    world.system.check()


def test_statistics_are_what_the_pages_say() -> None:
    """The one pass over all groups, against counting page by page."""
    world = World(CMDLINE)
    a, b = world.group("a"), world.group("b")
    world.system.command("create /mnt/data 1M")
    for name, size in (("a", "3M"), ("b", "1M")):
        pid = world.hog(name, size)
        world.system.command(f"f{pid} = mmap {pid} 1M file=/mnt/data flags=MAP_SHARED")
        world.system.command(f"access {pid} f{pid} 512K w")
    pages = world.kernel.pages
    for group, name in ((a, "a"), (b, "b")):
        mine = np.flatnonzero(pages.memcg == group.id)
        anon, file = mine[pages.mapping[mine] > 0], mine[pages.mapping[mine] < 0]
        assert world.value(f"{name}/memory.stat", "anon") == 4096 * int((pages.mapcount[anon] > 0).sum())
        assert world.value(f"{name}/memory.stat", "file") == 4096 * len(file)
        dirty = file[pages.flags[file] >> 3 & 1 == 1]
        assert world.value(f"{name}/memory.stat", "file_dirty") == 4096 * len(dirty)
        tables = np.flatnonzero((pages.memcg == -group.id) & (pages.flags >> 30 & 1 == 1))
        assert world.value(f"{name}/memory.stat", "pagetables") == 4096 * len(tables) > 0
        lists = [f"{age}_{kind}" for age in ("active", "inactive") for kind in ("anon", "file")]
        listed = sum(world.value(f"{name}/memory.stat", each) for each in lists)
        assert listed == 4096 * int((pages.flags[mine] >> 4 & 1).sum())


def test_owners_of_pages_are_named() -> None:
    world = World(CMDLINE + " page_owner=on")
    a = world.group("a")
    pid = world.hog("a", "64K")
    text = world.system.read("/sys/kernel/debug/page_owner", 0, 1 << 28).decode()
    assert text.count("Charged to memcg a\n") == a.pages
    assert "Charged (via objcg) to memcg a\n" in text
    world.set("cgroup.procs", str(pid))
    world.system.rmdir(f"{ROOT}/a")
    text = world.system.read("/sys/kernel/debug/page_owner", 0, 1 << 28).decode()
    assert text.count("Charged to offline memcg a\n") == a.pages
    assert "(via objcg) to memcg a" not in text
