"""kswapd beside who allocates: when it is woken, how long it works, whose time that is, and when it gives up."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from kmemd.conformance.uo import machine_of
from kmemd.core import stats
from kmemd.machine import SwapDevice
from kmemd.mm.gfp import GFP_HIGHUSER_MOVABLE, F
from kmemd.mm.mmzone import Zone
from kmemd.mm.sched import Task
from kmemd.mm.units import MIB
from kmemd.mm.vmscan_balance import SWAP_CLUSTER_MAX
from kmemd.mm.vmscan_kswapd import NAP, SHORT_SLEEP_NS, SLEEP, Kswapd
from kmemd.mm.vmscan_reclaim import MAX_RECLAIM_RETRIES
from kmemd.system import System

NORMAL = 3
FILE = 60 * MIB


def boot(size: str = "x86_64-128M-2cpu", *, swap: bool = False) -> System:
    device = (SwapDevice("/dev/vdb", 512 * MIB),) if swap else ()
    return System.boot(machine=replace(machine_of(size), swap=device), cmdline="transparent_hugepage=never")


def number(reply: str, name: str) -> int:
    match = re.search(rf"\b{name}=(\w+)", reply)
    assert match is not None, reply
    return int(match[1], 0)


def event(system: System, item: int) -> int:
    return int(system.kernel.vmstat.events[item])


def stalls(system: System) -> int:
    return int(system.kernel.vmstat.events[stats.ALLOCSTALL : stats.ALLOCSTALL + stats.ZONES_PER_NODE].sum())


def zone(system: System) -> Zone:
    return max(system.kernel.zones, key=lambda zone: zone.managed)


def thread(system: System) -> Task:
    return next(task for task in system.kernel.tasks if task.comm == "kswapd0")


def cached(system: System) -> None:
    """A machine with a clean file in its memory."""
    system.command(f"create /mnt/data {FILE}")
    system.command(f"read_file /mnt/data n={FILE}")
    no_dma(system)
    system.advance(1)


def no_dma(system: System) -> None:
    """Use up the lowest zone, which would keep the node balanced."""
    dma = system.kernel.zones[0]
    take(system, dma.free_pages - 20, F.NOWARN | F.MEMALLOC | F.DMA)


def take(system: System, pages: int, gfp: int = GFP_HIGHUSER_MOVABLE) -> int:
    return len(system.kernel.page_alloc.alloc_pages_bulk(gfp | F.NOWARN | F.NORETRY, 0, pages))


def down_to(system: System, left: int) -> None:
    """Allocate, without waking anybody, until the zone has so many pages free."""
    spare = zone(system).free_pages - left
    assert spare > 0
    assert take(system, spare, F.NOWARN | F.MEMALLOC) == spare


def test_it_sleeps_above_high_and_is_woken_below_low() -> None:
    system = boot()
    cached(system)
    kswapd, normal = system.kernel.user.page_reclaim.kswapd, zone(system)
    assert kswapd.threads[0].sleep == SLEEP
    down_to(system, normal.watermark_high + 200)
    runs = event(system, stats.PAGEOUTRUN)
    assert take(system, 50) == 50
    system.advance(1)
    assert event(system, stats.PAGEOUTRUN) == runs
    down_to(system, normal.watermark_low - 20)
    assert take(system, 1) == 1
    assert kswapd.is_awake(0)
    system.advance(0.01)
    assert event(system, stats.PAGEOUTRUN) == runs + 1
    assert normal.free_pages >= normal.watermark_high
    assert kswapd.threads[0].sleep == NAP
    system.advance(1)
    assert kswapd.threads[0].sleep == SLEEP
    system.check()


def test_who_wakes_it_again_within_the_short_sleep_is_counted() -> None:
    system = boot()
    cached(system)
    kswapd, normal = system.kernel.user.page_reclaim.kswapd, zone(system)
    for expected in (0, 1):
        down_to(system, normal.watermark_low - 20)
        before = event(system, stats.KSWAPD_LOW_WMARK_HIT_QUICKLY)
        take(system, 1)
        system.advance(0.01)
        assert event(system, stats.KSWAPD_LOW_WMARK_HIT_QUICKLY) - before == expected
        assert kswapd.threads[0].at <= system.kernel.clock.now + SHORT_SLEEP_NS
    system.check()


def test_its_work_costs_nobody_elses_time() -> None:
    system = boot()
    cached(system)
    ran = thread(system).stime_ns
    down_to(system, zone(system).watermark_low - 20)
    start = system.kernel.clock.now
    take(system, 1)
    assert system.kernel.clock.now - start < 20_000
    system.advance(0.05)
    worked = thread(system).stime_ns - ran
    assert 5_000 < worked < 50_000_000
    thread(system).stime_ns += 10_000_000
    stat = system.read(f"/proc/{thread(system).pid}/stat").decode().split()
    assert int(stat[14]) == thread(system).stime_ns // 10_000_000 > 0


def test_it_never_works_ahead_of_its_time() -> None:
    system = boot()
    cached(system)
    kswapd = system.kernel.user.page_reclaim.kswapd
    down_to(system, zone(system).watermark_min + 10)
    before = event(system, stats.PGSTEAL_KSWAPD)
    take(system, 1)
    assert event(system, stats.PGSTEAL_KSWAPD) - before <= 64
    stolen = []
    for _ in range(4):
        system.advance(0.00001)
        kswapd.catch_up()
        stolen.append(event(system, stats.PGSTEAL_KSWAPD) - before)
    assert stolen == sorted(stolen)
    assert stolen[0] < stolen[-1]


def woken(system: System) -> Kswapd:
    """kswapd was just woken, and has done nothing yet."""
    cached(system)
    kswapd: Kswapd = system.kernel.user.page_reclaim.kswapd
    down_to(system, zone(system).watermark_low - 20)
    kswapd.rouse(0)
    return kswapd


def test_a_request_after_a_long_wait_finds_what_it_did_meanwhile() -> None:
    system = boot()
    kswapd = woken(system)
    system.kernel.context.now += 20_000_000  # a disk that somebody waits for, and no timer
    assert zone(system).free_pages < zone(system).watermark_low
    assert take(system, 1) == 1
    assert kswapd.threads[0].sleep == NAP, "it was done long ago"
    assert zone(system).free_pages >= zone(system).watermark_high - 64, "but for what CPUs hold"
    system.check()


def test_a_long_request_looks_after_each_32_blocks_what_it_has_done() -> None:
    system = boot()
    pressure, kswapd = system.kernel.pressure, woken(system)
    assert pressure.meanwhile(1000, 1000) == SWAP_CLUSTER_MAX
    assert pressure.meanwhile(5, 1000) == 5
    steps, before = kswapd.steps, event(system, stats.PGSTEAL_KSWAPD)
    assert take(system, 200) == 200
    assert kswapd.steps >= steps + 200 // SWAP_CLUSTER_MAX
    assert event(system, stats.PGSTEAL_KSWAPD) > before
    system.advance(2)
    assert pressure.meanwhile(1000, 1000) == 1000, "it sleeps"


def test_what_was_needed_earlier_finds_less_of_its_work() -> None:
    system = boot()
    pressure, kswapd = system.kernel.pressure, woken(system)
    at = kswapd.threads[0].at
    system.kernel.context.now += 40_000
    pressure.needed_over(30_000, after=10_000)
    reached = []
    for left in (1000, 500, 0):
        pressure.meanwhile(left, 1000)
        reached.append(kswapd.threads[0].at - at)
    assert reached[0] == 0, "the first block was needed when it was woken"
    assert 15_000 <= reached[1] < 30_000
    assert 30_000 <= reached[2] < 45_000, "a step is not cut short"
    pressure.needed_over(0)
    kswapd.catch_up()
    assert kswapd.threads[0].at >= system.kernel.clock.now


def test_a_batch_of_faults_leaves_it_the_time_that_they_take() -> None:
    system = boot()
    cached(system)
    pid = number(system.command("spawn hog"), "pid")
    start = number(system.command(f"mmap {pid} {40 * MIB}"), "addr")
    system.command(f"access {pid} {start:#x} {40 * MIB} w")
    assert event(system, stats.PGSTEAL_KSWAPD) > 20 * event(system, stats.PGSTEAL_DIRECT), "it reclaims faster"
    system.check()


def test_who_allocates_faster_than_it_reclaims_has_to_reclaim_too() -> None:
    system = boot(swap=True)
    pid = number(system.command("spawn hog"), "pid")
    start = number(system.command(f"mmap {pid} {150 * MIB}"), "addr")
    system.command(f"access {pid} {start:#x} {150 * MIB} w")
    assert stalls(system) > 20
    assert event(system, stats.PGSTEAL_DIRECT) > 500
    assert event(system, stats.PGSTEAL_KSWAPD) > event(system, stats.PGSTEAL_DIRECT)
    assert int(system.kernel.psi.report("memory")[0][2]) > 0
    system.check()


def test_waits_for_devices_are_no_cpu_time() -> None:
    system = boot(swap=True)
    pid = number(system.command("spawn hog"), "pid")
    start = number(system.command(f"mmap {pid} {150 * MIB}"), "addr")
    system.command(f"access {pid} {start:#x} {150 * MIB} w")
    task, began = system.kernel.tasks.find(pid), system.kernel.clock.now
    ran = task.utime_ns + task.stime_ns
    slept = sum(system.kernel.tasks.iowait_ns)
    system.command(f"access {pid} {start:#x} {40 * MIB} r")
    passed = system.kernel.clock.now - began
    slept = sum(system.kernel.tasks.iowait_ns) - slept
    assert slept > passed // 2
    assert task.utime_ns + task.stime_ns - ran <= passed - slept
    line = system.read("/proc/stat").decode().splitlines()[0].split()
    assert int(line[5]) == sum(ns // 10_000_000 for ns in system.kernel.tasks.iowait_ns)


def test_a_boost_is_paid_off_by_a_gentle_run() -> None:
    system = boot()
    cached(system)
    kernel, normal = system.kernel, zone(system)
    kernel.buddy.boost[normal.index] = 300
    kernel.pressure.wakeup_kswapd(0, 0, NORMAL)
    system.advance(0.05)
    assert normal.boost == 0
    assert event(system, stats.PSWPOUT) == 0
    system.check()


def test_a_node_without_anything_to_reclaim_is_left_alone() -> None:
    system = boot()
    kernel, node = system.kernel, system.kernel.nodes[0]
    no_dma(system)
    down_to(system, 20)
    kernel.page_alloc.drain_all_pages()
    kernel.pressure.wakeup_kswapd(0, 0, NORMAL)
    system.advance(0.2)
    assert node.kswapd_failures == MAX_RECLAIM_RETRIES
    assert node.unreclaimable
    runs = event(system, stats.PAGEOUTRUN)
    take(system, 1)
    system.advance(1)
    assert event(system, stats.PAGEOUTRUN) == runs
    assert not kernel.pressure.kswapd_runs(0)
    system.check()


def test_who_would_use_up_the_reserves_is_throttled_until_kswapd_has_helped() -> None:
    system = boot()
    cached(system)
    normal = zone(system)
    down_to(system, 4)
    before = system.kernel.clock.now
    assert take(system, 1) == 1
    assert event(system, stats.PGSCAN_DIRECT_THROTTLE) == 1
    assert system.kernel.clock.now > before
    assert sum(zone.free_pages for zone in system.kernel.zones) > normal.watermark_min // 2
    system.check()


def test_higher_watermarks_are_reached_under_pressure() -> None:
    system = boot()
    cached(system)
    normal = zone(system)
    system.write("/proc/sys/vm/min_free_kbytes", "20480")
    assert normal.free_pages < normal.watermark_low
    take(system, 1)
    system.advance(0.5)
    assert normal.free_pages >= normal.watermark_high
    system.check()


@pytest.mark.parametrize("size", ["x86_64-128M-2cpu"])
def test_the_same_commands_give_the_same_counters(size: str) -> None:
    def run() -> bytes:
        system = boot(size, swap=True)
        pid = number(system.command("spawn hog"), "pid")
        start = number(system.command(f"mmap {pid} {140 * MIB}"), "addr")
        system.command(f"access {pid} {start:#x} {140 * MIB} w")
        system.command("sleep 10ms")
        return system.read("/proc/vmstat") + system.read("/proc/stat")

    assert run() == run()


def test_one_cpu_is_shared_in_turns() -> None:
    system = boot("x86_64-128M-1cpu")
    cached(system)
    down_to(system, zone(system).watermark_low - 20)
    ran, before = thread(system).stime_ns, system.kernel.clock.now
    take(system, 1)
    worked = thread(system).stime_ns - ran
    assert 0 < worked <= system.kernel.clock.now - before
    system.check()
