"""Each kernel command line parameter does what it does on Linux."""

from __future__ import annotations

import dataclasses

import pytest

from kmemd import System
from kmemd.machine import Machine

PAGE_OWNER, KMEMLEAK = "/sys/kernel/debug/page_owner", "/sys/kernel/debug/kmemleak"


def boot(cmdline: str, machine: str | Machine = "default") -> System:
    system = System.boot(machine=machine, cmdline=cmdline)
    system.check()
    return system


def log(system: System) -> str:
    return system.read("/kmemd/dmesg").decode()


def meminfo(system: System, label: str) -> str:
    lines = system.read("/proc/meminfo").decode().splitlines()
    return next(line.split(":")[1].strip() for line in lines if line.startswith(f"{label}:"))


@pytest.mark.parametrize(("cmdline", "there"), [("page_owner=on", True), ("page_owner=off", False), ("", False)])
def test_page_owner(cmdline: str, there: bool) -> None:
    system = boot(cmdline)
    if there:
        assert system.read(PAGE_OWNER).startswith(b"Page allocated via order ")
        return
    assert "page_owner is disabled" in log(system)
    with pytest.raises(OSError, match="does not exist"):
        system.read(PAGE_OWNER)


def test_kmemleak() -> None:
    assert boot("kmemleak=on").write(KMEMLEAK, "scan") == 4
    with pytest.raises(OSError, match="EPERM"):
        boot("kmemleak=off").write(KMEMLEAK, "scan")


@pytest.mark.parametrize(
    ("cmdline", "attributes"),
    [
        ("", "0000"),
        ("slub_debug", "1111"),
        ("slub_debug=FZ", "1100"),
        ("slub_debug=P,kmalloc-*", "0010"),
        ("slub_debug=U,dentry", "0000"),
        ("slub_debug=-", "0000"),
    ],
)
def test_slub_debug(cmdline: str, attributes: str) -> None:
    system = boot(cmdline)
    names = ("sanity_checks", "red_zone", "poison", "store_user")
    shown = b"".join(system.read(f"/sys/kernel/slab/kmalloc-64/{name}").strip() for name in names)
    assert shown.decode() == attributes


@pytest.mark.parametrize(("cmdline", "alias"), [("slab_merge", True), ("slab_merge slab_nomerge", False)])
def test_slab_nomerge(cmdline: str, alias: bool) -> None:
    system = boot(cmdline)
    system.command("kmem_cache_create one 72")
    assert ("alias_of=" in system.command("kmem_cache_create two 72")) is alias


@pytest.mark.parametrize(
    ("cmdline", "movable_mib"),
    [("movablecore=512M", 512), ("movablecore=25%", 512), ("kernelcore=1536M", 512), ("movablecore=100G", 0)],
)
def test_movablecore_and_kernelcore(cmdline: str, movable_mib: int) -> None:
    zones = boot(cmdline).kernel.populated_zones()
    movable = sum(zone.present for zone in zones if zone.name == "Movable")
    assert movable == pytest.approx(movable_mib << 8, abs=10_000)


@pytest.mark.parametrize(
    ("cmdline", "total", "says"),
    [
        ("hugepages=8", "8", "pre-allocated 8 pages"),
        ("hugepagesz=2M hugepages=5", "5", "pre-allocated 5 pages"),
        ("hugepagesz=1G hugepages=2", "0", "HugeTLB: unsupported hugepagesz=1G"),
        ("hugepagesz=3M hugepages=2 hugepagesz=2M hugepages=4", "4", "unsupported hugepagesz=3M"),
    ],
)
def test_hugepages(cmdline: str, total: str, says: str) -> None:
    system = boot(cmdline)
    assert meminfo(system, "HugePages_Total") == meminfo(system, "HugePages_Free") == total
    assert says in log(system)


@pytest.mark.parametrize("choice", ["always", "madvise", "never"])
def test_transparent_hugepage(choice: str) -> None:
    system = boot(f"transparent_hugepage={choice}")
    assert f"[{choice}]" in system.read("/sys/kernel/mm/transparent_hugepage/enabled").decode()
    raised = int(system.read("/proc/sys/vm/min_free_kbytes")) > 40_000
    assert raised is (choice != "never")


def test_nokaslr() -> None:
    bare = dataclasses.replace(Machine.load("default"), cmdline="quiet")

    def text(cmdline: str) -> str:
        return next(
            line.split()[0]
            for line in boot(cmdline, bare).read("/proc/kallsyms").decode().splitlines()
            if line.endswith(" _text")
        )

    assert text("nokaslr") == "ffffffff81000000"
    assert text("") != text("nokaslr")


def test_swapaccount() -> None:
    warning = "The swapaccount=0 commandline option is deprecated"
    assert warning in log(boot("swapaccount=0"))
    assert warning not in log(boot("swapaccount=1"))
