"""mm.vmstat against the captured names, thresholds and indices."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kmemd.core import stats
from kmemd.mm.vmstat import (
    VmStat,
    calculate_normal_threshold,
    fragmentation_index,
    unusable_free_index,
)

CAPTURES = Path(__file__).parent.parent / "captures" / "linux-6.1"
X86_64 = ("DMA", "DMA32", "Normal", "Movable")
I386 = ("DMA", "Normal", "HighMem", "Movable")


def x86(nr_nodes: int = 1) -> VmStat:
    return VmStat(X86_64, nr_nodes)


def i386() -> VmStat:
    return VmStat(I386, 1, numa=False, pud_thp=False, hpage_pmd_nr=1024)


@pytest.mark.parametrize(("machine", "vmstat"), [("x86_64-2node-4G-4cpu", x86(2)), ("i386-2G-highmem-2cpu", i386())])
def test_names_and_their_order_are_the_captured_ones(machine: str, vmstat: VmStat) -> None:
    captured = (CAPTURES / "boot" / machine / "proc" / "vmstat").read_text().splitlines()
    names = [name for name, _ in vmstat.global_lines()]
    names += ["nr_dirty_threshold", "nr_dirty_background_threshold"]
    names += [name for name, _ in vmstat.event_lines()]
    assert [*names, "nr_unstable"] == [line.split()[0] for line in captured]


def test_every_constant_points_at_its_name() -> None:
    assert stats.NODE_STAT_NAMES[stats.NR_SHMEM_THPS] == "nr_shmem_hugepages"
    assert stats.NODE_STAT_NAMES[stats.PGPROMOTE_CANDIDATE] == "pgpromote_candidate"
    assert len(stats.NODE_STAT_NAMES) == stats.NR_VM_NODE_STAT_ITEMS
    assert len(stats.ZONE_STAT_NAMES) == stats.NR_VM_ZONE_STAT_ITEMS
    events = dict(x86().event_names)
    assert len(events) == stats.NR_VM_EVENT_ITEMS
    assert events[stats.PGALLOC + 2] == "pgalloc_normal"
    assert events[stats.PGSCAN_SKIP + 3] == "pgskip_movable"
    assert events[stats.PGFREE] == "pgfree"
    assert events[stats.OOM_KILL] == "oom_kill"
    assert events[stats.THP_SPLIT_PUD] == "thp_split_pud"
    assert events[stats.DIRECT_MAP_LEVEL3_SPLIT] == "direct_map_level3_splits"
    assert dict(i386().event_names)[stats.PGALLOC + 2] == "pgalloc_high"


def test_counters_add_up_over_zones_and_nodes() -> None:
    vmstat = x86(2)
    vmstat.mod_zone(1, stats.NR_FREE_PAGES, 70)
    vmstat.mod_zone(6, stats.NR_FREE_PAGES, 30)
    vmstat.mod_node(1, stats.NR_SLAB_UNRECLAIMABLE_B, 5)
    vmstat.numa_stat[6, stats.NUMA_HIT] += 9
    vmstat.count(stats.PGALLOC + 2, 30)
    assert vmstat.zone_total(stats.NR_FREE_PAGES) == 100
    assert vmstat.sum_zone_node_page_state(1, stats.NR_FREE_PAGES) == 30
    assert vmstat.sum_zone_numa_event_state(0, stats.NUMA_HIT) == 0
    assert vmstat.numa_total(stats.NUMA_HIT) == 9
    assert vmstat.node_total(stats.NR_SLAB_UNRECLAIMABLE_B) == vmstat.node_page_state(1, 6) == 5
    assert dict(vmstat.event_lines())["pgalloc_normal"] == 30
    vmstat.check()


def test_units_are_those_that_linux_prints() -> None:
    vmstat = x86()
    vmstat.mod_node(0, stats.NR_ANON_THPS, 1024)
    vmstat.count(stats.PGPGIN, 9)
    assert dict(vmstat.node_lines(0))["nr_anon_transparent_hugepages"] == 2
    assert dict(vmstat.event_lines())["pgpgin"] == 4


def test_negative_gauges_are_reported_and_shown_as_zero() -> None:
    vmstat = x86()
    vmstat.mod_zone(0, stats.NR_MLOCK, -1)
    vmstat.mod_zone(0, stats.NR_FREE_CMA_PAGES, -1)
    assert list(vmstat.negative()) == [("nr_mlock", -1)]
    assert vmstat.zone_total(stats.NR_MLOCK) == 0
    with pytest.raises(AssertionError, match=r"\[0, 7\]"):
        vmstat.check()


@pytest.mark.parametrize(
    ("managed", "cpus", "threshold"),
    [(3840, 4, 6), (508572, 4, 30), (245722, 4, 24), (3840, 2, 4), (214029, 2, 16), (298972, 2, 20)],
)
def test_normal_threshold_is_the_captured_one(managed: int, cpus: int, threshold: int) -> None:
    assert calculate_normal_threshold(managed, cpus) == threshold


def test_thresholds_are_bounded() -> None:
    assert calculate_normal_threshold(1 << 30, 1024) == 125


def zone_lines(path: Path) -> list[list[str]]:
    """The columns behind the zone name, a row per zone."""
    return [re.split(r"zone +\w+ +", line)[1].split() for line in path.read_text().splitlines()]


def test_indices_are_the_captured_ones() -> None:
    buddy = CAPTURES / "buddy"
    info, extfrag, unusable = (buddy / f"frag.{name}" for name in ("buddyinfo", "extfrag_index", "unusable_index"))
    for free, want_frag, want_unusable in zip(zone_lines(info), zone_lines(extfrag), zone_lines(unusable), strict=True):
        nr_free = [int(count) for count in free]
        assert [round(float(value) * 1000) for value in want_frag] == [
            fragmentation_index(nr_free, order) for order in range(11)
        ]
        assert [round(float(value) * 1000) for value in want_unusable] == [
            unusable_free_index(nr_free, order) for order in range(11)
        ]


def test_indices_at_their_ends() -> None:
    nothing = [0] * 11
    assert fragmentation_index(nothing, 3) == 0
    assert unusable_free_index(nothing, 3) == 1000
    singles = [1000, *[0] * 10]
    assert fragmentation_index(singles, 10) == 1000 - (1000 + 976) // 1000
    assert unusable_free_index(singles, 1) == 1000
