"""What code tells kmemleak: colours, areas, traces; and what transient objects are to it."""

from __future__ import annotations

import re

import pytest

from kmemd import System

KMEMLEAK = "/sys/kernel/debug/kmemleak"
VERBOSE = "/sys/module/kmemleak/parameters/verbose"


@pytest.fixture
def system() -> System:
    return System.boot(cmdline="kmemleak=on no_hash_pointers")


def leaks(system: System, wait: str = "6") -> list[int]:
    """Addresses of what two scans report: what changed before the first shows in the second."""
    system.command(f"sleep {wait}")
    system.write(KMEMLEAK, "scan")
    system.write(KMEMLEAK, "scan")
    return [int(found, 16) for found in re.findall(r"unreferenced object 0x(\w+)", system.read(KMEMLEAK).decode())]


def address(system: System, name: str) -> int:
    found = re.search(rf"^{name} .*addr=(0x\w+)", system.read("/kmemd/handles").decode(), re.M)
    assert found is not None
    return int(found[1], 16)


def test_grey_is_scanned_and_black_is_not(system: System) -> None:
    for name, size in (("a", 200), ("b", 200), ("inside", 100), ("lost", 100)):
        system.command(f"{name} = kmalloc {size}")
    lost = address(system, "lost")
    system.run(
        "kmemleak_not_leak a\nkmemleak_ignore b\nWRITE_ONCE a+8 inside\nWRITE_ONCE b+8 lost\n"
        "forget a\nforget b\nforget inside\nforget lost"
    )
    assert leaks(system) == [lost]
    system.check()


def test_an_object_without_pointers(system: System) -> None:
    system.run("a = kmalloc 200\nb = kmalloc 100\nWRITE_ONCE a b")
    lost = address(system, "b")
    system.command("forget b")
    assert leaks(system) == []
    system.command("kmemleak_no_scan a")
    assert leaks(system) == [lost]


def test_a_scan_area(system: System) -> None:
    system.run("a = kmalloc 256\nb = kmalloc 100\nc = kmalloc 100\nWRITE_ONCE a+8 b\nWRITE_ONCE a+128 c")
    lost = address(system, "b")
    system.run("kmemleak_scan_area a+128 64\nforget b\nforget c")
    assert leaks(system) == [lost]
    system.command("kmemleak_scan_area a+0 16")
    system.write(KMEMLEAK, "scan")
    assert system.read(KMEMLEAK) == b"", "an area besides the first"
    system.command("kmemleak_scan_area a+250 64")
    assert "kmemleak: Scan area larger than object" in system.read("/kmemd/dmesg").decode()


def test_the_site_of_who_took_it_over(system: System) -> None:
    system.run("a = kmalloc 100 by=maker_init\nkmemleak_update_trace a by=taker_init\nforget a")
    leaks(system)
    report = system.read(KMEMLEAK).decode()
    assert "taker_init" in report
    assert "maker_init" not in report


def test_items_of_a_handle(system: System) -> None:
    system.command("a = kmalloc 64 n=3000")
    assert "n=3000" in system.command("kmemleak_not_leak a")
    system.command("forget a")
    assert leaks(system) == []


def test_an_address_of_nothing(system: System) -> None:
    system.command("a = kmalloc 64")
    system.command("kmemleak_not_leak a+8")
    assert "kmemleak: Trying to color unknown object at 0x" in system.read("/kmemd/dmesg").decode()


def test_young_objects_are_no_leaks_and_changed_ones_wait(system: System) -> None:
    system.run("a = kmalloc 64\nb = kmalloc 64")
    a, b = address(system, "a"), address(system, "b")
    system.run("WRITE_ONCE a+8 b\nforget b\nforget a")
    system.command("sleep 4")
    system.write(KMEMLEAK, "scan")
    assert system.read(KMEMLEAK) == b"", "four seconds old"
    system.command("sleep 2")
    system.write(KMEMLEAK, "scan")
    assert leaks(system, "0") == [a, b]
    system.command(f"WRITE_ONCE {a + 16:#x} 0x1234")
    system.write(KMEMLEAK, "scan")
    assert system.read(KMEMLEAK) == b"", "it changed, and is taken to be in use until the next scan"
    assert leaks(system, "0") == [a, b]


def test_verbose(system: System) -> None:
    assert system.read(VERBOSE) == b"N\n"
    system.write(VERBOSE, "1")
    assert system.read(VERBOSE) == b"Y\n"
    system.command("a = kmalloc 64 by=leaky_init")
    lost = address(system, "a")
    system.command("forget a")
    assert leaks(system) == [lost]
    log = system.read("/kmemd/dmesg").decode()
    assert f"kmemleak: unreferenced object 0x{lost:x} (size 64):" in log
    assert "kmemleak:   hex dump (first 32 bytes):" in log
    assert re.search(r"kmemleak:     \[<\w+>\] leaky_init\+", log)
    assert log.count("unreferenced object") == 1
    with pytest.raises(OSError, match="EINVAL"):
        system.write(VERBOSE, "maybe")


def test_off_is_off(system: System) -> None:
    system.command("a = kmalloc 64")
    system.write(KMEMLEAK, "off")
    with pytest.raises(OSError, match="turned off"):
        system.command("kmemleak_ignore a")
