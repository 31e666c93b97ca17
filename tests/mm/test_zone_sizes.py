"""Zone sizing against the rules of find_zone_movable_pfns_for_nodes and the captured hash tables."""

import re
from pathlib import Path

import pytest

from kmemd.machine import Machine
from kmemd.mm.params import CommandLine
from kmemd.mm.zone_sizes import hash_entries, movable_start_pfns, zone_limits, zone_spans

BOOT = Path(__file__).parents[1] / "captures" / "linux-6.1" / "boot"
GIB = 1 << 18


def spans(ranges, max_pfn, arch="x86_64", movable=0):
    limits = zone_limits(arch, max_pfn)
    return {
        span.name: (span.start_pfn, span.spanned, span.present) for span in zone_spans(arch, ranges, limits, movable)
    }


def test_a_hole_counts_as_spanned_and_not_as_present():
    zones = spans([(1, 159), (256, 3 * GIB - 38), (4 * GIB, 5 * GIB)], 5 * GIB)
    assert zones["DMA"] == (1, 4095, 3998)
    assert zones["DMA32"] == (4096, GIB * 4 - 4096, 3 * GIB - 38 - 4096)
    assert zones["Normal"] == (4 * GIB, GIB, GIB)
    assert zones["Movable"] == (0, 0, 0)


def test_i386_splits_at_the_end_of_the_direct_map():
    zones = spans([(1, 159), (256, 2 * GIB)], 2 * GIB, "i386")
    assert zones["Normal"][0] + zones["Normal"][1] == zones["HighMem"][0] == 0x36FFE


def movable(nodes, text):
    limits = zone_limits("x86_64", max(high for ranges in nodes.values() for _, high in ranges))
    return movable_start_pfns(nodes, limits, CommandLine(text))


def test_no_parameter_no_movable():
    assert movable({0: [(0, GIB)]}, "") == {}


def test_kernelcore_is_spread_evenly():
    nodes = {0: [(4 * GIB, 8 * GIB)], 1: [(8 * GIB, 12 * GIB)]}
    assert movable(nodes, "kernelcore=2G") == {0: 5 * GIB, 1: 9 * GIB}


def test_what_a_small_node_lacks_the_others_give():
    nodes = {0: [(4 * GIB, 5 * GIB)], 1: [(5 * GIB, 13 * GIB)]}
    assert movable(nodes, "kernelcore=4G") == {1: 8 * GIB}


def test_movablecore_is_rounded_up_to_a_block_and_percent_is_of_all_memory():
    nodes = {0: [(4 * GIB, 8 * GIB)]}
    assert movable(nodes, "movablecore=1M") == {0: 8 * GIB - 1024}
    assert movable(nodes, "movablecore=25%") == {0: 7 * GIB}
    assert movable(nodes, "movablecore=64G") == {}


@pytest.mark.parametrize("folder", sorted(path.name for path in BOOT.iterdir() if path.is_dir()))
def test_hash_tables_have_the_captured_sizes(folder):
    machine = Machine.from_capture(BOOT / folder)
    pages = machine.boot_memory(CommandLine(machine.cmdline)).kernel_pages
    log = (BOOT / folder / "dmesg").read_text()
    captured = {name: int(n) for name, n in re.findall(r"^([\w-]+(?: cache)?) hash table entries: (\d+)", log, re.M)}
    for name, scale, low, high in (
        ("Dentry cache", 13, 0, 0),
        ("Inode-cache", 14, 0, 0),
        ("stackdepot", 14, 1 << 12, 1 << 20),
        ("Mount-cache", 19, 0, 0),
    ):
        assert hash_entries(machine.arch, pages, scale, low, high) == captured[name]
