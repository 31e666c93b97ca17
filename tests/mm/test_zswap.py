"""zswap: pages on their way to swap that stay in memory, compressed (mm.zswap, zbud, z3fold, zsmalloc)."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from kmemd import System
from tests.mm.files_fixture import Box

PARAMETERS = "/sys/module/zswap/parameters/"
PAGES = 512


@pytest.fixture
def box() -> Box:
    found = Box()
    found.system.write(PARAMETERS + "enabled", "1\n")
    return found


def counter(box: Box, name: str) -> int:
    return int(box.system.read(f"/sys/kernel/debug/zswap/{name}"))


def swapped(box: Box, fill: str = "text", size: str = "2M") -> None:
    """A process with a mapping m of filled pages, which were swapped out."""
    box.run("p = spawn t", f"m = mmap p {size} prot=rw", f"madvise p m {size} MADV_NOHUGEPAGE")
    box.run(f"access p m {size} w fill={fill}", f"madvise p m {size} MADV_PAGEOUT")


def test_it_is_off_at_boot_as_captured() -> None:
    box = Box()
    found = {name: box.system.read(PARAMETERS + name).decode().strip() for name in ("enabled", "compressor", "zpool")}
    assert found == {"enabled": "N", "compressor": "lzo", "zpool": "zbud"}
    swapped(box)
    assert box.vmstat("zswpout", "pswpout") == [0, PAGES]
    assert int(box.system.read("/sys/kernel/debug/frontswap/failed_stores")) == PAGES


@pytest.mark.parametrize("pool", ["zbud", "z3fold", "zsmalloc"])
def test_pages_go_to_the_pool_and_come_back(box: Box, pool: str) -> None:
    box.system.write(PARAMETERS + "zpool", pool)
    free = box.vmstat("nr_free_pages")[0]
    swapped(box)
    assert box.vmstat("zswpout", "pswpout", "nr_swapcached") == [PAGES, 0, 0]
    stored = counter(box, "pool_total_size") // 4096
    assert 0 < stored < PAGES
    assert box.meminfo("Zswap") == stored
    assert box.meminfo("Zswapped") == counter(box, "stored_pages") == PAGES
    assert box.vmstat("nr_free_pages")[0] < free, "the pool's pages are taken from the page allocator"
    box.run("access p m 2M r", "sleep 1")
    assert box.vmstat("zswpin", "pswpin") == [PAGES, 0]
    assert counter(box, "stored_pages") == PAGES, "a page that was only read keeps its entry"
    box.run("exit p", "sleep 1", "swapoff /dev/vdb")
    assert counter(box, "stored_pages") == counter(box, "pool_total_size") == 0


def test_z3fold_and_zsmalloc_pack_better_than_zbud() -> None:
    used = {}
    for pool in ("zbud", "z3fold", "zsmalloc"):
        box = Box()
        box.system.write(PARAMETERS + "enabled", "y")
        box.system.write(PARAMETERS + "zpool", pool)
        swapped(box)
        used[pool] = box.meminfo("Zswap")
    assert used["zsmalloc"] < PAGES * 45 // 100
    assert used["z3fold"] < used["zbud"] == PAGES // 2


@pytest.mark.parametrize(("mib", "enabled", "fits"), [(68, 0, True), (68, 1, False), (58, 1, True)])
def test_its_pool_is_memory_that_programs_lack(mib: int, enabled: int, fits: bool, tmp_path: Path) -> None:
    """A page in zswap keeps its slot: where swap is the limit, a machine holds less by the pool."""
    machine = tmp_path / "small.toml"
    text = 'arch = "x86_64"\ncpus = 1\n[[node]]\nmemory = "64M"\n[[swap]]\npath = "/dev/vdb"\nsize = "48M"\n'
    machine.write_text(text)
    system = System.boot(str(machine), seed=1, cmdline=f"zswap.enabled={enabled}")
    system.run(["p = spawn t", f"m = mmap p {mib}M prot=rw"])
    if not fits:
        with pytest.raises(OSError, match="SIGKILL"):
            system.command(f"access p m {mib}M w fill=text")
        return
    system.command(f"access p m {mib}M w fill=text")
    system.check()
    zswap, area = system.kernel.user.swap_storage.zswap, system.kernel.swap.areas[0]
    assert zswap.pool_pages <= system.kernel.totalram_pages() // 5 + 1
    assert zswap.stored_pages <= area.inuse_pages


def test_zeros_take_no_memory(box: Box) -> None:
    swapped(box, "zero")
    assert counter(box, "same_filled_pages") == PAGES
    assert counter(box, "pool_total_size") == 0
    box.system.write(PARAMETERS + "same_filled_pages_enabled", "0")
    box.run("access p m 2M w fill=zero", "madvise p m 2M MADV_PAGEOUT")
    assert counter(box, "same_filled_pages") <= 64, "what CPUs keep of the slots that came back"
    assert counter(box, "pool_total_size") > 0


def test_noise_is_too_large_for_zbud_and_goes_to_the_device(box: Box) -> None:
    swapped(box, "random")
    assert counter(box, "reject_compress_poor") == PAGES
    assert box.vmstat("zswpout", "pswpout") == [0, PAGES]


def test_what_was_written_comes_back(box: Box) -> None:
    pid = box.run("p = spawn t", "m = mmap p 1M prot=rw", "madvise p m 1M MADV_NOHUGEPAGE", "access p m 1M w")["pid"]
    box.run("write p m hello", "madvise p m 1M MADV_PAGEOUT", "a = alloc_pages n=300")
    assert "VmSwap:\t    1024 kB" in box.system.read(f"/proc/{pid}/status").decode()
    assert box.run("read p m 5")["data"] == "hello"
    assert box.vmstat("pswpin") == [0]


def test_a_full_pool_is_written_back_to_the_device(box: Box) -> None:
    swapped(box)
    box.run("sleep 1")
    box.system.write(PARAMETERS + "max_pool_percent", "0")
    box.run("q = spawn u", "k = mmap q 1M prot=rw", "madvise q k 1M MADV_NOHUGEPAGE", "access q k 1M w fill=text")
    box.run("madvise q k 1M MADV_PAGEOUT", "sleep 1")
    assert counter(box, "pool_limit_hit") == 256
    written = counter(box, "written_back_pages")
    assert 0 < written <= 2 * 8, "each run of the thread evicts one page of the pool"
    assert counter(box, "stored_pages") == PAGES - written
    assert box.vmstat("pswpout") == [256 + written]
    box.run("access p m 2M r")
    assert box.vmstat("zswpin") == [PAGES - written]
    assert box.vmstat("pswpin")[0] + box.vmstat("nr_swapcached")[0] >= written


def test_after_the_limit_was_hit_it_takes_pages_below_the_threshold_alone(box: Box) -> None:
    swapped(box)
    box.system.write(PARAMETERS + "max_pool_percent", "0")
    box.run("q = spawn u", "k = mmap q 64K prot=rw", "access q k 64K w", "madvise q k 64K MADV_PAGEOUT")
    stored = counter(box, "stored_pages")
    box.system.write(PARAMETERS + "max_pool_percent", "20")
    box.system.write(PARAMETERS + "accept_threshold_percent", "0")
    hits = counter(box, "pool_limit_hit")
    box.run("sleep 1", "access q k 64K w", "madvise q k 64K MADV_PAGEOUT", "sleep 1")
    assert (counter(box, "stored_pages"), counter(box, "pool_limit_hit")) == (stored, hits)
    box.system.write(PARAMETERS + "accept_threshold_percent", "90")
    box.run("access q k 64K w fill=zero", "madvise q k 64K MADV_PAGEOUT")
    assert counter(box, "same_filled_pages") == 16


def test_an_older_pool_lives_until_its_last_entry_is_gone(box: Box) -> None:
    swapped(box)
    zswap = box.kernel.user.swap_storage.zswap
    box.system.write(PARAMETERS + "compressor", " zstd \n")
    assert [pool.compressor for pool in zswap.pools] == ["zstd", "lzo"]
    box.run("exit p", "sleep 1", "swapoff /dev/vdb")
    assert [pool.compressor for pool in zswap.pools] == ["zstd"]
    assert box.system.read(PARAMETERS + "compressor") == b"zstd\n"


@pytest.mark.parametrize(
    ("name", "text", "number"),
    [
        ("enabled", "maybe", errno.EINVAL),
        ("compressor", "rar", errno.ENOENT),
        ("zpool", "zmore", errno.ENOENT),
        ("zpool", "x" * 1025, errno.ENOSPC),
        ("max_pool_percent", "-1", errno.EINVAL),
        ("max_pool_percent", "4294967296", errno.ERANGE),
        ("accept_threshold_percent", "", 0),
        ("max_pool_percent", "0x10", 0),
    ],
)
def test_what_parameters_take(box: Box, name: str, text: str, number: int) -> None:
    before = box.system.read(PARAMETERS + name)
    if number:
        with pytest.raises(OSError, match=r"E[A-Z]+") as error:
            box.system.write(PARAMETERS + name, text)
        assert error.value.errno == number
        assert box.system.read(PARAMETERS + name) == before
    else:
        assert box.system.write(PARAMETERS + name, text) == len(text)
        assert box.system.read(PARAMETERS + name) == (b"16\n" if text else before)


def test_the_command_line_sets_it_up() -> None:
    system = System.boot("default", seed=1, cmdline="zswap.enabled=1 zswap.zpool=zsmalloc zswap.compressor=rar")
    assert system.read(PARAMETERS + "enabled") == b"Y\n"
    assert system.read(PARAMETERS + "zpool") == b"zsmalloc\n"
    said = [record.text for record in system.kernel.printk.since(0)]
    assert "zswap: compressor rar not available, using default lzo" in said
    assert b"nr_zspages 0\n" in system.read("/proc/vmstat")


def test_zspages_are_counted_where_they_are(box: Box) -> None:
    assert b"nr_zspages" not in box.system.read("/proc/vmstat"), "the captured kernel has no zsmalloc"
    box.system.write(PARAMETERS + "zpool", "zsmalloc")
    swapped(box)
    pages = counter(box, "pool_total_size") // 4096
    assert box.vmstat("nr_zspages") == [pages]
    zones = box.system.read("/proc/zoneinfo").decode().split()
    assert sum(int(zones[at + 1]) for at, word in enumerate(zones) if word == "nr_zspages") == pages
    classes = box.system.read("/sys/kernel/debug/zsmalloc/zswap2/classes").decode().splitlines()
    assert classes[-1].split()[0] == "Total"
    assert int(classes[-1].split()[5]) == pages
