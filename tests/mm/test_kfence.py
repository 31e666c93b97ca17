"""KFENCE: when an object is guarded, its files, its counters, and what becomes of the pool."""

from __future__ import annotations

import errno

import pytest

from kmemd import System
from kmemd.mm.kfence import NUM_OBJECTS, POOL_SIZE
from kmemd.system import SystemCallError

PARAMETERS = "/sys/module/kfence/parameters/"
STATS, OBJECTS = "/sys/kernel/debug/kfence/stats", "/sys/kernel/debug/kfence/objects"


def boot(cmdline: str = "kfence.sample_interval=100") -> System:
    return System.boot(machine="default", seed=1, cmdline=f"nokaslr {cmdline}")


def guarded(system: System, command: str) -> bool:
    address = int(system.command(command).split("addr=")[1].split()[0], 16)
    return system.kernel.kfence.covers(address)


def stats(system: System) -> dict[str, int]:
    lines = system.read(STATS).decode().splitlines()
    return {name: int(value) for name, value in (line.split(": ") for line in lines)}


def test_nothing_of_it_is_there_without_the_parameter() -> None:
    system = boot("")
    for path in (STATS, OBJECTS, PARAMETERS + "sample_interval"):
        with pytest.raises(SystemCallError) as caught:
            system.read(path)
        assert caught.value.errno == errno.ENOENT
    assert not any("kfence" in record.text for record in system.kernel.printk.since(0))
    assert not guarded(system, "kmalloc 64")


def test_one_object_in_an_interval_of_model_time() -> None:
    system = boot("kfence.sample_interval=100 no_hash_pointers")
    pool = system.kernel.kfence.pool
    text = f"kfence: initialized - using {POOL_SIZE} bytes for {NUM_OBJECTS} objects at 0x{pool:016x}-0x"
    assert any(record.text.startswith(text) for record in system.kernel.printk.since(0))
    assert guarded(system, "a = kmalloc 64")
    assert not guarded(system, "b = kmalloc 64")
    system.advance(0.099)
    assert not guarded(system, "c = kmalloc 64")
    system.advance(0.002)
    assert guarded(system, "d = kmalloc 64 n=20")
    assert sum(system.kernel.kfence.covers(int(a)) for a in system.kernel.handles.get("d").addresses) == 1
    system.command("kfree d")
    system.check()


def test_the_files() -> None:
    system = boot()
    before = stats(system)
    assert list(before) == [
        *("enabled", "currently allocated", "total allocations", "total frees", "zombie allocations", "total bugs"),
        *("skipped allocations (incompatible)", "skipped allocations (capacity)", "skipped allocations (covered)"),
    ]
    system.advance(0.2)
    assert guarded(system, "a = kmalloc 100 by=leaky_probe+0x2a[leaky_drv]")
    after = stats(system)
    assert after["currently allocated"] == before["currently allocated"] + 1
    blocks = system.read(OBJECTS).decode().split("---------------------------------\n")
    assert len(blocks) == NUM_OBJECTS + 1
    mine = next(block for block in blocks if " leaky_probe+0x2a/" in block)
    assert "size=100, cache=kmalloc-128\n\nallocated by task " in mine
    assert blocks.count(f"kfence-#{blocks.index(mine)} unused\n") == 0
    system.command("kfree a")
    mine = system.read(OBJECTS).decode().split("---------------------------------\n")[blocks.index(mine)]
    assert "\n\nfreed by task " in mine
    assert stats(system)["total frees"] == before["total frees"] + 1
    system.check()


def test_it_is_turned_off_and_on() -> None:
    system = boot()
    assert system.read(PARAMETERS + "sample_interval") == b"100\n"
    assert system.write(PARAMETERS + "sample_interval", "0\n") == 2
    assert system.read(PARAMETERS + "sample_interval") == b"0\n"
    assert system.kernel.printk.since(0)[-1].text == "kfence: disabled"
    system.advance(1)
    assert not guarded(system, "kmalloc 64")
    system.write(PARAMETERS + "sample_interval", "0x20")
    assert system.read(PARAMETERS + "sample_interval") == b"32\n"
    assert guarded(system, "a = kmalloc 64")
    with pytest.raises(SystemCallError) as caught:
        system.write(PARAMETERS + "sample_interval", "ten")
    assert caught.value.errno == errno.EINVAL
    assert system.read(PARAMETERS + "deferrable") == b"N\n"


def test_what_does_not_fit_is_served_by_slub() -> None:
    system = boot()
    system.advance(0.2)
    before = stats(system)["skipped allocations (incompatible)"]
    assert not guarded(system, "a = kmalloc 5000")
    assert not guarded(system, "b = kmalloc 64 gfp=GFP_KERNEL|__GFP_DMA")
    assert stats(system)["skipped allocations (incompatible)"] == before + 2
    assert guarded(system, "c = kmalloc 4096")


def test_sources_that_have_one_are_passed_over_when_the_pool_fills() -> None:
    system = boot("kfence.sample_interval=1")
    system.write(PARAMETERS + "skip_covered_thresh", "0\n")
    system.advance(0.01)
    assert guarded(system, "a = kmalloc 64 by=one_source+0x1[drv]")
    system.advance(0.01)
    assert not guarded(system, "b = kmalloc 64 by=one_source+0x1[drv]")
    assert stats(system)["skipped allocations (covered)"] == 1
    system.advance(0.01)
    assert guarded(system, "c = kmalloc 64 by=other_source+0x1[drv]")
    system.check()


def test_a_full_pool_serves_nobody() -> None:
    system = boot("kfence.sample_interval=1")
    system.write(PARAMETERS + "skip_covered_thresh", "100\n")
    for number in range(NUM_OBJECTS + 5):
        system.advance(0.002)
        system.command(f"x{number} = kmalloc 32")
    assert stats(system)["currently allocated"] == NUM_OBJECTS
    assert stats(system)["skipped allocations (capacity)"] > 0
    system.check()


def test_objects_of_a_cache_that_goes_are_zombies() -> None:
    system = boot()
    system.command("kmem_cache_create mine 64")
    system.advance(0.2)
    assert guarded(system, "a = kmem_cache_alloc mine")
    system.command("kmem_cache_destroy mine")
    assert stats(system)["zombie allocations"] == 1
    assert "cache=<destroyed>" in system.read(OBJECTS).decode()
    system.check()


def test_ksize_and_krealloc_know_the_object() -> None:
    system = boot()
    system.advance(0.2)
    reply = system.command("a = kmalloc 40")
    address = int(reply.split("addr=")[1].split()[0], 16)
    assert "cache=kmalloc-64" in reply
    assert system.kernel.slub.ksize(address) == 40
    system.command("krealloc a 4000")
    assert stats(system)["total frees"] >= 1
    system.check()
