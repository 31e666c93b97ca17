"""What SLUB's checks find in the bytes of slabs, and what hardening does to free lists."""

from __future__ import annotations

import errno
from random import Random

import numpy as np
import pytest

from kmemd import System
from kmemd.errors import KernelError
from kmemd.mm.gfp import GFP_KERNEL
from kmemd.mm.params import CommandLine
from kmemd.mm.slub_bytes import SparseBytes
from kmemd.mm.slub_harden import Hardening
from tests.mm.slub_fake import World, make

FULL = "slub_debug=FZPU,kmalloc-64"


def write(world: World, address: int, data: bytes) -> None:
    world.slub.bytes.write(world.slub.lists.slab_at(address), address, data)


def said(world: World, start: str) -> list[str]:
    return [line for text in world.log() for line in text.splitlines() if line.startswith(start)]


def refused(call, *arguments: object) -> int:
    with pytest.raises(KernelError) as caught:
        call(*arguments)
    return caught.value.errno


def test_bytes_are_known_where_they_were_written_last() -> None:
    stored = SparseBytes()
    stored.write(60, b"abcdefgh")
    data = bytearray(b"." * 16)
    stored.overlay(56, data)
    assert data == b"....abcdefgh...."
    assert (stored.known(67, 1), stored.known(68, 60)) == (True, False)
    stored.clear(60, 4)
    assert len(stored) == 64
    stored.clear(64, 4)
    assert not stored


def test_memory_grows_with_what_is_written_alone() -> None:
    world = make(cmdline=FULL)
    objects = world.slub.kmalloc_bulk(64, GFP_KERNEL, 5000)
    assert len(world.slub.bytes) == 0
    write(world, int(objects[7]), b"x" * 10)
    write(world, int(objects[7]), b"y" * 10)
    assert 0 < len(world.slub.bytes) <= 128
    world.slub.kfree_bulk(objects)
    assert len(world.slub.bytes) == 0
    assert said(world, "BUG") == []
    world.slub.check()


def test_an_object_holds_what_the_allocator_put_there() -> None:
    world = make(cmdline=FULL)
    slub = world.slub
    plain, zeroed = slub.kmalloc(60), slub.kzalloc(60)
    slab = slub.lists.slab_at(plain)
    assert slub.bytes.read(slab, plain, 64) == b"\x6b" * 63 + b"\xa5"
    assert slub.bytes.read(slab, plain - 64, 64) == b"\xcc" * 64
    assert slub.bytes.read(slab, plain + 64, 8) == b"\xcc" * 8
    assert slub.bytes.read(slub.lists.slab_at(zeroed), zeroed, 64) == bytes(64)
    write(world, plain, b"hello")
    assert slub.bytes.read(slab, plain, 6) == b"hello\x6b"
    slub.kfree(plain)
    assert slub.bytes.read(slab, plain, 64) == b"\x6b" * 63 + b"\xa5"
    assert slub.bytes.read(slab, plain + 64, 8) == b"\xbb" * 8
    slub.kfree(zeroed)
    assert slub.bytes.read(slub.lists.slab_at(zeroed), zeroed, 64) == b"\x6b" * 63 + b"\xa5"


@pytest.mark.parametrize(
    ("offset", "what", "restored"),
    [
        (-1, "Left Redzone overwritten", "Restoring Left Redzone"),
        (64, "Right Redzone overwritten", "Restoring Right Redzone"),
        (148, "Object padding overwritten", "Restoring Object padding"),
    ],
)
def test_validate_finds_it_once_and_mends_it(offset: int, what: str, restored: str) -> None:
    world = make(cmdline=FULL)
    cache, address = world.slub.cache("kmalloc-64"), world.slub.kmalloc(64)
    write(world, address + offset, b"\x11")
    world.slub.validate(cache)
    assert said(world, "BUG kmalloc-64") == [f"BUG kmalloc-64 (Not tainted): {what}"]
    place = f"0x{address + offset:016x}-0x{address + offset:016x}"
    assert said(world, place)[0].split(". ")[1].startswith("First byte 0x11 instead of 0x")
    assert said(world, f"FIX kmalloc-64: {restored} {place}=0x")
    world.slub.validate(cache)
    assert len(said(world, "BUG")) == 1
    world.slub.kfree(address)
    world.slub.check()


def test_the_rest_of_a_slab_is_padding() -> None:
    world = make(cmdline="slub_debug=FZPU,kmalloc-96")
    cache, address = world.slub.cache("kmalloc-96"), world.slub.kmalloc(96)
    slab = world.slub.lists.slab_at(address)
    rest = (4096 << cache.order) - cache.objects * cache.size
    assert rest
    pad = world.slub.lists.base(slab) + cache.objects * cache.size
    assert world.slub.bytes.read(slab, pad, rest) == b"\x5a" * rest
    write(world, pad + 3, b"\x00\x00")
    world.slub.validate(cache)
    offset = pad + 3 - world.slub.lists.base(slab)
    span = f"0x{pad + 3:016x}-0x{pad + 4:016x}"
    assert said(world, "BUG") == [f"BUG kmalloc-96 (Not tainted): Padding overwritten. {span} @offset={offset}"]
    assert said(world, "FIX") == [f"FIX kmalloc-96: Restoring slab padding {span}=0x5a"]
    assert said(world, "Padding ")[0].startswith(f"Padding {pad:016x}: 5a 5a 5a 00 00 5a")


def test_a_free_list_is_cut_where_a_pointer_is_wild() -> None:
    world = make(cmdline="slub_debug=F,kmalloc-64")
    slub, cache = world.slub, world.slub.cache("kmalloc-64")
    first, second, third = slub.kmalloc_bulk(64, GFP_KERNEL, 3).tolist()
    slub.kfree(first)
    slub.kfree(second)
    before = slub.slab_counts(cache)[0]
    write(world, second + cache.geometry.offset, b"\x99" * 8)
    slub.kfree(third)
    assert said(world, "BUG")[0] == "BUG kmalloc-64 (Not tainted): Freechain corrupt"
    assert "Wrong object count. Counter is " in said(world, "BUG")[1]
    assert said(world, "FIX")[-1] == "FIX kmalloc-64: Object count adjusted"
    assert slub.slab_counts(cache)[0] > before
    got = slub.kmalloc_bulk(64, GFP_KERNEL, 2).tolist()
    assert got == [third, second]
    slub.check()


def test_a_slab_that_failed_on_allocation_is_out_of_use() -> None:
    world = make(cmdline=FULL)
    slub, cache = world.slub, world.slub.cache("kmalloc-64")
    kept, freed = slub.kmalloc_bulk(64, GFP_KERNEL, 2).tolist()
    slub.kfree(freed)
    write(world, freed, b"\0")
    slab = slub.lists.slab_at(freed)
    other = slub.kmalloc(64)
    assert slub.lists.slab_at(other) != slab
    assert said(world, "FIX")[-1] == "FIX kmalloc-64: Marking all objects used"
    assert (slub.lists.frozen(slab), slub.lists.inuse(slab)) == (True, cache.objects)
    slub.check()
    assert refused(slub.kfree, kept) == errno.EINVAL
    assert "Slab disabled since SLUB metadata consistency check failed" in said(world, "BUG")[-1]
    assert slub.slab_counts(cache)[2] == 2
    slub.validate(cache)
    assert said(world, "SLUB: kmalloc-64 ") == ["SLUB: kmalloc-64 1 slabs counted but counter=2"]
    slub.check()


def test_an_empty_slab_is_looked_at_before_its_pages_go() -> None:
    world = make()
    cache = world.slub.kmem_cache_create("mine", 64, 0, 0x100 | 0x400 | 0x800)
    address = world.slub.kmem_cache_alloc(cache)
    world.slub.kmem_cache_free(cache, address)
    write(world, address + 5, b"\1")
    assert world.slub.kmem_cache_shrink(cache)
    assert said(world, "BUG") == ["BUG mine (Not tainted): Poison overwritten"]
    assert len(world.slub.bytes) == 0
    world.slub.kmem_cache_destroy(cache)
    world.slub.check()


def test_red_zones_without_checks_are_only_looked_at_by_validate() -> None:
    world = make(cmdline="slub_debug=Z,kmalloc-64")
    address, kept = world.slub.kmalloc(64), world.slub.kmalloc(64)
    write(world, address + 64, b"\0")
    world.slub.kfree(address)
    assert said(world, "BUG") == []
    write(world, kept + 64, b"\0")
    world.slub.validate(world.slub.cache("kmalloc-64"))
    assert said(world, "BUG") == ["BUG kmalloc-64 (Not tainted): Right Redzone overwritten"]
    assert said(world, "Bytes b4") == []


def test_without_red_zones_the_bytes_before_are_shown() -> None:
    world = make(cmdline="slub_debug=FP,kmalloc-64")
    _, second = world.slub.kmalloc_bulk(64, GFP_KERNEL, 2).tolist()
    world.slub.kfree(second)
    write(world, second, b"\0")
    world.slub.kmalloc(64)
    assert said(world, "BUG") == ["BUG kmalloc-64 (Not tainted): Poison overwritten"]
    assert said(world, "Bytes b4 ")[0].startswith(f"Bytes b4 {second - 16:016x}: ")
    assert said(world, "Redzone") == []
    assert said(world, "Allocated in") == []
    world.slub.check()


def test_trace_tells_of_every_object() -> None:
    world = make(cmdline="slub_debug=T,kmalloc-64")
    address = world.slub.kmalloc(64)
    world.slub.kfree(address)
    alloc, free = said(world, "TRACE ")
    assert alloc.startswith(f"TRACE kmalloc-64 alloc 0x{address:016x} inuse=1 fp=0x")
    assert free == f"TRACE kmalloc-64 free 0x{address:016x} inuse=1 fp=0x{address + 64:016x}"
    assert len(said(world, "Object ")) == 4
    assert len(said(world, "CPU: ")) == 2
    world.slub.check()


# Hardening


def test_objects_of_a_fresh_slab_come_in_an_order_of_their_own() -> None:
    orders = []
    for seed in (1, 1, 2):
        system = System.boot(machine="default", seed=seed, cmdline="slab_freelist_random nokaslr")
        cache = system.kernel.slub.kmem_cache_create("mine", 64)
        objects = system.kernel.slub.kmem_cache_alloc_bulk(cache, GFP_KERNEL, 128)
        slabs = [(objects[at : at + 64] & 4095).tolist() for at in (0, 64)]
        assert all(sorted(slab) == list(range(0, 4096, 64)) for slab in slabs)
        first, second = slabs
        turn = first.index(second[0])
        assert second == first[turn:] + first[:turn], "a cache has one order, a slab its place in it"
        orders.append(first)
        system.check()
    assert orders[0] == orders[1] != orders[2]
    assert orders[0] != list(range(0, 4096, 64))
    plain = make().slub
    got = plain.kmem_cache_alloc_bulk(plain.kmem_cache_create("mine", 64), GFP_KERNEL, 64) & np.uint64(4095)
    assert got.tolist() == list(range(0, 4096, 64))


def test_a_smaller_slab_leaves_the_others_out() -> None:
    hardening = Hardening(CommandLine("slab_freelist_random"), Random(3))
    assert hardening.shuffle is not None
    assert sorted(hardening.shuffle(5, 32)) == list(range(32))
    assert sorted(hardening.shuffle(5, 8)) == list(range(8))
    assert Hardening(CommandLine("")).shuffle is None


def test_free_pointers_are_not_readable() -> None:
    texts = {}
    for cmdline in ("", "slab_freelist_hardened"):
        system = System.boot(machine="default", seed=1, cmdline=f"nokaslr {cmdline}")
        slub = system.kernel.slub
        cache = slub.kmem_cache_create("mine", 64)
        first, second = slub.kmem_cache_alloc_bulk(cache, GFP_KERNEL, 2).tolist()
        slub.kmem_cache_free(cache, first)
        slub.kmem_cache_free(cache, second)
        slab = slub.lists.slab_at(second)
        stored = int.from_bytes(slub.bytes.read(slab, second + cache.geometry.offset, 8), "little")
        assert slub.bytes.free_pointer(cache, slab, second) == first
        texts[cmdline] = stored == first
        system.check()
    assert texts == {"": True, "slab_freelist_hardened": False}


@pytest.mark.parametrize(
    ("cmdline", "stale", "after_free"),
    [("", True, True), ("init_on_alloc=1", False, True), ("init_on_free=1", False, False)],
)
def test_what_stood_in_an_object(cmdline: str, stale: bool, after_free: bool) -> None:
    system = System.boot(machine="default", seed=1, cmdline=f"nokaslr {cmdline}")
    address = int(system.command("a = kmalloc 64").split("addr=")[1].split()[0], 16)
    system.command(f"memset {address:#x} 0x41 16")
    system.command("kfree a")
    assert ("41" * 16 in system.command(f"print_hex_dump {address:#x} 16")) is after_free
    again = system.command("b = kmalloc 64")
    assert f"addr={address:#x}" in again
    assert ("41" * 16 in system.command(f"print_hex_dump {address:#x} 16")) is stale
    assert "data=" + "00" * 16 in system.command(f"print_hex_dump {address + 16:#x} 16")
    system.check()
