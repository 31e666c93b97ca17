"""Pages that are filled or cleared by the allocator: what it finds, what it costs, what boot says."""

from __future__ import annotations

import pytest

from kmemd import System


def boot(cmdline: str = "") -> System:
    return System.boot(machine="default", seed=1, cmdline=f"nokaslr no_hash_pointers {cmdline}")


def lines(system: System, first: int = 0) -> list[str]:
    return [record.text for record in system.kernel.printk.since(first)]


@pytest.mark.parametrize(
    ("cmdline", "said"),
    [
        ("", ["stack:all(zero), heap alloc:off, heap free:off"]),
        ("init_on_alloc=1", ["stack:all(zero), heap alloc:on, heap free:off"]),
        (
            "init_on_alloc=1 init_on_free=on",
            [
                "stack:all(zero), heap alloc:on, heap free:on",
                "clearing system memory may take some time...",
            ],
        ),
        ("init_on_alloc=maybe", ["stack:all(zero), heap alloc:off, heap free:off"]),
        (
            "page_poison=1 init_on_free=1",
            [
                "CONFIG_PAGE_POISONING is on, will take precedence over init_on_alloc and init_on_free",
                "stack:all(zero), heap alloc:off, heap free:off",
            ],
        ),
    ],
)
def test_boot_says_what_is_done(cmdline: str, said: list[str]) -> None:
    log = lines(boot(cmdline))
    assert [line for line in log if line.startswith("mem auto-init: ")] == [f"mem auto-init: {text}" for text in said]
    last = log.index(f"mem auto-init: {said[-1]}")
    assert log[last + 1].startswith("stackdepot hash table entries: ")


def time_of(system: System, command: str) -> int:
    return int(system.command(command).split("ns=")[1].split()[0])


def test_clearing_takes_the_time_of_it() -> None:
    plain, alloc, free = boot(), boot("init_on_alloc=1"), boot("init_on_free=1")
    zero = plain.kernel.machine.latency.zero_page
    base = time_of(plain, "p = alloc_pages order=3")
    assert time_of(alloc, "p = alloc_pages order=3") == base + 8 * zero
    assert time_of(free, "p = alloc_pages order=3") == base
    again = time_of(plain, "q = alloc_pages gfp=GFP_KERNEL|__GFP_ZERO")
    assert time_of(alloc, "q = alloc_pages gfp=GFP_KERNEL|__GFP_ZERO") == again
    back = time_of(plain, "free_pages p")
    assert time_of(free, "free_pages p") == back + 8 * zero
    assert time_of(alloc, "free_pages p") == back
    for system in (plain, alloc, free):
        system.check()


def free_page(system: System) -> int:
    """The address of a page that was freed."""
    pfn = int(system.command("p = alloc_pages").split("pfn=")[1].split()[0], 0)
    system.command("free_pages p")
    return system.kernel.layout.page_offset + (pfn << 12)


def test_a_page_that_was_written_while_free_is_reported_when_it_is_allocated() -> None:
    system = boot("page_poison=1")
    page = free_page(system)
    assert "data=" + "aa" * 4 in system.command(f"print_hex_dump {page:#x} 4")
    system.command(f"memset {page + 30:#x} 0x42 4")
    first = system.kernel.printk.next_seq
    system.command("q = alloc_pages by=finder+0x1[drv]")
    said = lines(system, first)
    assert said[0] == "pagealloc: memory corruption"
    assert said[1] == f"{page + 30:016x}: {'42 42 42 42':<49}BBBB"
    assert any(line.startswith(" __kernel_unpoison_pages+0x") for line in said)
    assert any(line.startswith(" finder+0x1/") for line in said)
    assert said[-1] == "page dumped because: pagealloc: corrupted page details"
    assert any(
        line.startswith("page:") and f"pfn:{page - system.kernel.layout.page_offset >> 12:#x}" in line for line in said
    )
    system.command("free_pages q")
    first = system.kernel.printk.next_seq
    system.command("q = alloc_pages")
    assert lines(system, first) == []
    system.check()


def test_one_bit_may_have_flipped() -> None:
    system = boot("page_poison=1")
    page = free_page(system)
    system.command(f"memset {page:#x} 0xab 1")
    first = system.kernel.printk.next_seq
    system.command("q = alloc_pages")
    assert lines(system, first)[0] == "pagealloc: single bit error"


def test_poison_over_poison_is_no_corruption() -> None:
    system = boot("page_poison=1")
    page = free_page(system)
    system.command(f"memset {page:#x} 0xaa 64")
    first = system.kernel.printk.next_seq
    system.command("q = alloc_pages")
    assert lines(system, first) == []
