"""Geometry against what a real Linux chose, and the rules where no capture reaches."""

from pathlib import Path

import pytest

from kmemd.mm import slab_flags as sf
from kmemd.mm.slab_geometry import GeometryRules, calculate_sizes, cpu_partial_slabs, get_order

CAPTURES = Path(__file__).parents[1] / "captures" / "linux-6.1"
I386 = GeometryRules(cpus=2, word=4, cache_line=32)
X86 = GeometryRules(cpus=2)


def captured(cpus):
    for line in (CAPTURES / "slab" / f"geometry-{cpus}cpu.txt").read_text().splitlines():
        words = line.split()
        *_, size, align, flags = words[1].split("_")
        yield int(size), int(align), int(flags, 0), dict(word.split("=") for word in words[2:])


@pytest.mark.parametrize("cpus", [1, 4])
def test_captured_geometry(cpus):
    rules, count = GeometryRules(cpus=cpus), 0
    for size, align, flags, want in captured(cpus):
        align = rules.alignment(flags, align, size)
        made = calculate_sizes(rules, size, align, flags, False)
        got = {"size": made.size, "align": align, "order": made.order, "objs": made.objects, "inuse": made.inuse}
        got |= {"min_order": made.min_order, "min_objs": made.min_objects, "min_partial": made.min_partial}
        got |= {"cpu_partial": made.cpu_partial, "offset": made.offset}
        assert {key: want[key] for key in got} == {key: str(value) for key, value in got.items()}
        assert f"{made.flags:x}" == want["flags"]
        count += 1
    assert count == 921


@pytest.mark.parametrize(
    ("machine", "cpus", "rules"),
    [
        ("x86_64-256M-1cpu", 1, X86),
        ("x86_64-2G-2cpu", 2, X86),
        ("x86_64-2node-4G-4cpu", 4, X86),
        ("i386-2G-highmem-2cpu", 2, I386),
    ],
)
def test_slabinfo_rows_follow_from_their_sizes(machine, cpus, rules):
    rules = GeometryRules(cpus=cpus, word=rules.word, cache_line=rules.cache_line)
    rows = (CAPTURES / "boot" / machine / "proc" / "slabinfo").read_text().splitlines()[2:]
    for row in rows:
        name, _, _, size, objects, pages, *_ = row.split()
        order = rules.order_for(int(size))
        assert (name, 1 << order, (4096 << order) // int(size)) == (name, int(pages), int(objects))


def test_debugging_widens_objects_on_32_bits_too():
    plain = calculate_sizes(I386, 100, 8, 0, False)
    full = calculate_sizes(I386, 100, 8, sf.DEBUG_DEFAULT_FLAGS | sf.SLAB_KMALLOC, False)
    assert (plain.size, plain.offset) == (104, 48)
    # object 100 and a word, free pointer, two tracks of 20, the asked size, a word, the left pad
    assert (full.inuse, full.offset, full.red_left_pad, full.size) == (104, 104, 8, 168)
    assert full.cpu_partial == 0
    assert not full.flags & sf.CMPXCHG_DOUBLE


@pytest.mark.parametrize("flags", [sf.SLAB_TYPESAFE_BY_RCU, sf.SLAB_POISON])
def test_the_free_pointer_moves_behind_what_must_stay(flags):
    made = calculate_sizes(X86, 64, 8, flags, False)
    assert (made.offset, made.size) == (64, 72)
    assert bool(made.flags & sf.OBJECT_POISON) == (flags == sf.SLAB_POISON)


def test_a_constructor_keeps_objects_from_being_poisoned():
    made = calculate_sizes(X86, 64, 8, sf.SLAB_POISON, True)
    assert not made.flags & sf.OBJECT_POISON
    assert made.offset == 64


def test_parameters_bound_the_order():
    assert GeometryRules(cpus=2, slub_max_order=0).order_for(1024) == 0
    assert GeometryRules(cpus=2, slub_min_order=2).order_for(64) == 2
    assert GeometryRules(cpus=2, slub_min_objects=64).order_for(512) == 3
    assert GeometryRules(cpus=256).order_for(256) == 2
    assert X86.order_for(100_000) == 5
    assert X86.order_for((4 << 20) + 1) == -1


def test_small_numbers():
    assert [get_order(size) for size in (0, 1, 4096, 4097, 8192, 8193)] == [0, 0, 0, 1, 1, 2]
    assert [cpu_partial_slabs(120, objects) for objects in (64, 512, 21)] == [4, 1, 12]


@pytest.mark.parametrize(
    ("value", "name", "flags"),
    [
        ("", "any", sf.DEBUG_DEFAULT_FLAGS),
        ("-", "any", 0),
        ("zp", "any", sf.SLAB_RED_ZONE | sf.SLAB_POISON),
        ("Z,dentry", "dentry", sf.SLAB_RED_ZONE),
        ("Z,dentry", "dentry2", 0),
        ("Z,dent*", "dentry2", sf.SLAB_RED_ZONE),
        (",dentry", "dentry", sf.DEBUG_DEFAULT_FLAGS),
        ("P;Z,a,b;U,c", "b", sf.SLAB_RED_ZONE),
        ("P;Z,a,b;U,c", "c", sf.SLAB_STORE_USER),
        ("P;Z,a,b;U,c", "d", sf.SLAB_POISON),
        ("FO", "any", sf.SLAB_CONSISTENCY_CHECKS),
        (None, "any", 0),
    ],
)
def test_slub_debug(value, name, flags):
    said = []
    debug = sf.SlubDebug(value, said.append)
    assert debug.cache_flags(0, name) == flags
    assert debug.cache_flags(sf.SLAB_NO_USER_FLAGS, name) == sf.SLAB_NO_USER_FLAGS
    assert said == []
    assert debug.disable_higher_order == (value == "FO")


def test_unknown_letters_are_named():
    said = []
    assert sf.SlubDebug("qZ", said.append).flags == sf.SLAB_RED_ZONE
    assert said == ["slub_debug option 'q' unknown. skipped"]
