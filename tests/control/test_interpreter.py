"""Lines on a booted machine: who runs them, what is logged, where others get in."""

from __future__ import annotations

import errno
from collections import deque
from contextlib import suppress
from itertools import count
from random import Random
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmemd import System
from kmemd.control.interpreter import Interpreter
from kmemd.control.language import VERBS
from kmemd.errors import KernelError
from kmemd.steps import finish
from kmemd.system import SystemCallError


@pytest.fixture
def system() -> System:
    return System.boot(seed=1)


def words(reply: str) -> dict[str, str]:
    return dict(word.split("=", 1) for word in reply.split())


def failure(system: System, line: str) -> SystemCallError:
    with pytest.raises(SystemCallError) as caught:
        system.command(line)
    return caught.value


def kernel_log(system: System, since: int = 0) -> list[str]:
    return [record.text for record in system.kernel.printk.since(since)]


def test_generic_keys_last_for_one_line(system: System) -> None:
    context = system.kernel.context
    before = context.words.copy()
    pid = words(system.command("t = spawn worker"))["pid"]
    seen: list[tuple[int, int, str, tuple[str, ...]]] = []
    alloc = system.kernel.page_alloc.alloc_pages_bulk

    def spy(*args):
        seen.append((context.cpu, context.pid, context.comm, system.kernel.depot.frames(context.site)[:2]))
        return alloc(*args)

    system.kernel.page_alloc.alloc_pages_bulk = spy
    system.command("alloc_pages cpu=1 pid=t by=leaky_probe+0x2a[leaky_drv]")
    system.command(f"alloc_pages cpu=1 pid={pid} comm=other")
    assert seen[0] == (1, int(pid), "worker", ("leaky_probe+0x2a[leaky_drv]", "really_probe"))
    assert seen[1] == (1, int(pid), "other", ("ctl_write[kmemd]", "full_proxy_write"))
    assert (context.words[1:] == before[1:]).all()


def test_sched_setaffinity_lasts(system: System) -> None:
    assert words(system.command("sched_setaffinity 1"))["cpu"] == "1"
    assert system.kernel.context.cpu == 1
    assert system.read("/kmemd/cpu").startswith(b"cpu=1 ")


def test_a_task_that_is_not_there(system: System) -> None:
    assert failure(system, "alloc_pages pid=3999").errno == errno.ESRCH
    assert failure(system, "exit 3999").errno == errno.ESRCH


def test_a_name_in_use_is_busy_and_stays(system: System) -> None:
    system.command("p = alloc_pages")
    pfn = system.kernel.handles["p"].pfn
    error = failure(system, "p = alloc_pages")
    assert (error.errno, error.column) == (errno.EBUSY, 0)
    assert system.kernel.handles["p"].pfn == pfn


def test_a_failed_line_is_in_the_error_log_with_a_caret_and_in_the_kernel_log(system: System) -> None:
    seq = system.kernel.printk.next_seq
    failure(system, "p = alloc_pages order=3 gfp=GFP_KERNL")
    lines = system.read("/kmemd/error_log").decode().splitlines()
    assert lines[0].endswith("] EINVAL: gfp: no flag GFP_KERNL (did you mean GFP_KERNEL?)")
    assert lines[1] == "    p = alloc_pages order=3 gfp=GFP_KERNL"
    assert lines[2] == "                                ^"
    assert kernel_log(system, seq) == ["kmemd: EINVAL: gfp: no flag GFP_KERNL (did you mean GFP_KERNEL?)"]


def test_the_error_log_keeps_the_last_eight(system: System) -> None:
    for number in range(12):
        failure(system, f"verb{number}")
    log = system.read("/kmemd/error_log").decode()
    assert log.count("EINVAL") == 8
    assert "verb3" not in log
    assert "verb4" in log


def test_a_hostile_line_is_shown_as_printable_text(system: System) -> None:
    failure(system, "x" * 5000 + "\x1b[2J \x07")
    log = system.read("/kmemd/error_log").decode()
    assert all(len(line) < 400 and line.isprintable() for line in log.splitlines())


def test_memory_that_runs_out_keeps_what_was_got(system: System) -> None:
    error = failure(system, "p = alloc_pages order=10 n=100000")
    assert error.errno == errno.EAGAIN
    got = len(system.kernel.handles["p"])
    assert f"got {got} of 100000, kept as p" in error.reason
    assert failure(system, "q = alloc_pages order=10").errno == errno.ENOMEM
    assert "q" not in system.kernel.handles
    system.command("free_pages p")
    system.check()


def test_freeing_by_address_twice_is_the_kernels_report(system: System) -> None:
    address = words(system.command("p = alloc_pages order=1"))["addr"]
    system.command(f"free_pages {address} order=1")
    seq = system.kernel.printk.next_seq
    assert failure(system, f"free_pages {address} order=1").errno == errno.EFAULT
    assert any(text.startswith("BUG: Bad page state") for text in kernel_log(system, seq))
    assert failure(system, "free_pages p").errno == errno.EFAULT
    assert failure(system, "free_pages p").errno == errno.ENOENT
    system.check()


def test_items_of_a_handle(system: System) -> None:
    system.command("p = alloc_pages n=10")
    pfns = system.kernel.handles["p"].pfns.tolist()
    assert words(system.command("free_pages p[3]"))["pfn"] == str(pfns[3])
    assert words(system.command("free_pages p every=4 n=2"))["n"] == "2"
    left = [pfn for pfn in pfns if pfn not in (pfns[3], pfns[0], pfns[5])]
    assert system.kernel.handles["p"].pfns.tolist() == left
    assert failure(system, "free_pages p[7]").errno == errno.ENOENT


@pytest.mark.parametrize(
    "line",
    ["free_pages t", "free_pages p order=3", "free_pages p+4096", "free_pages", "free_pages p pfn=3", "vfree p"],
)
def test_what_makes_no_sense_is_refused(system: System, line: str) -> None:
    system.run(["p = alloc_pages", "t = spawn worker"])
    assert failure(system, line).errno == errno.EINVAL
    system.check()


def test_addresses_that_are_no_memory(system: System) -> None:
    assert failure(system, "free_pages 0x1000 order=0").errno == errno.EFAULT
    assert failure(system, "free_pages pfn=0xffffffffffffffff order=0").errno == errno.EFAULT
    assert failure(system, "WRITE_ONCE 0x1000 0").errno == errno.EFAULT


def test_whatever_is_freed_by_address_the_model_stays_consistent(system: System) -> None:
    system.run(["a = kmalloc 100 n=300", "v = vmalloc 30000 n=5", "p = alloc_pages order=2 n=50", "t = spawn worker"])
    random = Random(1)
    areas = [area.address for area in system.kernel.vmalloc.areas()]
    refused = 0
    for _ in range(60):
        lines = (
            f"free_pages pfn={random.randrange(2000, 14000)} order={random.choice((0, 0, 1, 3))}",
            f"kfree {0xFFFF888000000000 + random.randrange(2000 << 9, 14000 << 9) * 8:#x}",
            f"vfree {random.choice(areas):#x}",
        )
        try:
            system.command(random.choice(lines))
        except SystemCallError:
            refused += 1
        system.check()
    for line in ("kfree a", "vfree v", "free_pages p", "exit t"):
        with suppress(SystemCallError):
            system.command(line)
        system.check()
    assert 0 < refused < 60


def test_objects_and_their_caches(system: System) -> None:
    reply = words(system.command("a = kmalloc 100 n=3"))
    assert (reply["cache"], reply["size"], reply["n"]) == ("kmalloc-128", "100", "3")
    assert words(system.command("k = kmem_cache_create foo 200 flags=SLAB_HWCACHE_ALIGN"))["size"] == "256"
    system.command("o = kmem_cache_alloc k n=100")
    assert failure(system, "kmem_cache_free foo a").errno == errno.EINVAL
    assert len(system.kernel.handles["a"]) == 3
    system.command("kmem_cache_free foo o every=2")
    assert words(system.command("kmem_cache_free k o"))["n"] == "50"
    assert int(words(system.command("kmem_cache_shrink foo"))["slabs"]) == 0
    system.command("kmem_cache_destroy k")
    assert "k" not in system.kernel.handles
    assert failure(system, "kmem_cache_alloc foo").errno == errno.ENOENT
    system.check()


def test_krealloc_keeps_one_pointer(system: System) -> None:
    system.command("p = kmalloc 100")
    system.command("p = krealloc p 5000")
    assert system.kernel.handles["p"].cache == "kmalloc-8k"
    moved = words(system.command("q = krealloc p 20000"))["addr"]
    assert list(system.kernel.handles) == ["q"]
    assert words(system.command("krealloc q 10"))["addr"] == moved
    assert f"{system.kernel.handles['q'].address:#x}" == moved
    system.command("a = kmalloc 8 n=2")
    assert failure(system, "krealloc a 100").errno == errno.EINVAL
    system.command("kfree q")


def test_kmemleak_follows_stored_pointers_and_handles(system: System) -> None:
    system.run(["a = kmalloc 192", "b = kmalloc 96 by=leaky_probe+0x2a[leaky_drv]", "WRITE_ONCE a+16 b", "forget b"])
    system.command("sleep 6")
    system.kernel.kmemleak.scan()
    assert system.kernel.kmemleak.scan() == 0
    system.command("WRITE_ONCE a+16 0")
    system.kernel.kmemleak.scan()
    system.kernel.kmemleak.scan()
    report = system.read("/sys/kernel/debug/kmemleak").decode()
    assert report.count("unreferenced object") == 1
    assert "(size 96)" in report
    assert "leaky_probe+0x2a/" in report


def test_pointers_of_many_objects_at_once(system: System) -> None:
    system.run(["a = kmalloc 64 n=10", "b = kmalloc 32 n=10", "c = kmalloc 32 n=3"])
    assert words(system.command("WRITE_ONCE a+8 b"))["n"] == "10"
    assert failure(system, "WRITE_ONCE a+8 c").errno == errno.EINVAL
    assert words(system.command("WRITE_ONCE a[2]+8 c[1]"))["n"] == "1"


def test_processes(system: System) -> None:
    reply = words(system.command("t = spawn a-rather-long-name"))
    pid = int(reply["pid"])
    assert reply["comm"] == "a-rather-long-n"
    assert system.kernel.tasks.find(pid).comm == "a-rather-long-n"
    child = words(system.command("c = spawn child pid=t"))["pid"]
    assert system.kernel.tasks.find(int(child)).ppid == pid
    assert words(system.command("kill t 0"))["signal"] == "0"
    assert words(system.command(f"kill {pid} SIGKILL"))["signal"] == "9"
    assert pid not in system.kernel.tasks
    assert "t" not in system.kernel.handles
    assert failure(system, f"kill {pid}").errno == errno.ESRCH
    assert failure(system, "kill c SIGWHAT").errno == errno.EINVAL
    assert failure(system, "exit nobody").errno == errno.ENOENT
    system.command("exit c")


def test_help_and_printk(system: System) -> None:
    assert system.command("help").splitlines()[1].startswith("alloc_pages ")
    assert system.command("help free_pages").startswith("free_pages [PAGES] ")
    assert failure(system, "help free_page").reason.endswith("(did you mean free_pages?)")
    seq = int(words(system.command("printk step   two # not this"))["seq"])
    assert kernel_log(system, seq)[0] == "step two"


def test_a_long_command_lets_others_in(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = count()
    clock = SimpleNamespace(monotonic=lambda: next(ticks))
    monkeypatch.setattr("kmemd.control.interpreter.time", clock)
    monkeypatch.setattr("kmemd.control.interpreter.SLICE_S", 3)
    session = system.tree.open(system.tree.lookup("/kmemd/ctl"), None)
    context = system.kernel.context
    at_rest = context.words[1:].copy()
    slices = 0
    for _ in session.write(b"p = alloc_pages n=102400 comm=other cpu=1\nfree_pages p\n"):
        slices += 1
        assert (context.words[1:] == at_rest).all()
        assert len(system.read("/proc/buddyinfo")) > 100
    assert slices == 2 * (400 // 3)
    assert len(system.kernel.handles) == 0


def test_sleep_goes_from_timer_to_timer(system: System) -> None:
    clock = system.kernel.clock
    start = clock.now
    rang: list[int] = []
    for delay in (5, 7, 2000):
        clock.call_at(start + delay, lambda: rang.append(clock.now - start))
    system.command("sleep 10ns")
    assert rang == [5, 7]
    assert clock.now == start + 10
    assert clock.next_timer_ns == start + 2000
    system.command("sleep 1")
    assert rang == [5, 7, 2000]


def test_where_others_get_in_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["p = alloc_pages n=50000 by=a_probe", "free_pages p every=3", "q = alloc_pages order=2 n=2000", "sleep 30"]
    lines += ["v = vmalloc 40M", "w = vmalloc 8K n=2000", "vfree w every=3", "o = kmalloc 96 n=9000"]
    lines += [
        "WRITE_ONCE o+8 o",
        "kfree o every=2",
        "vfree v",
        "full = alloc_pages order=3 n=60000 gfp=GFP_KERNEL|__GFP_NOWARN",
    ]

    def run(slice_s: float) -> tuple[list[str], bytes, int]:
        monkeypatch.setattr("kmemd.control.interpreter.SLICE_S", slice_s)
        system = System.boot(seed=5)
        replies = system.run(lines[:-1])
        with pytest.raises(OSError, match="EAGAIN"):
            system.command(lines[-1])
        system.check()
        texts = [system.read(f"/proc/{name}") for name in ("zoneinfo", "vmallocinfo", "slabinfo", "vmstat")]
        return replies, b"".join(texts), system.kernel.clock.now

    assert run(0.0) == run(1000.0)


def test_much_work_of_every_kind_is_done_in_short_slices() -> None:
    """Where a write lets others in is counted, for time is not the model's; bench/slices.py takes the time."""
    system = System.boot(seed=5)
    writes = {
        "p = kmalloc 64 n=50000": 90,
        "kfree p every=2": 40,
        "a = vmalloc 64M": 30,
        "v = vmalloc 4K n=3000": 150,
        "vfree v every=2": 60,
        "vfree a": 2,
        "h = alloc_pages order=9 n=100": 7,
    }
    for line, least in writes.items():
        assert slices_of(system, "/kmemd/ctl", f"{line}\n") >= least, line
    assert slices_of(system, "/proc/sys/vm/nr_hugepages", "500\n") >= 500 // 64
    assert slices_of(system, "/sys/kernel/debug/kmemleak", "scan") >= 3
    system.check()


def slices_of(system: System, path: str, text: str) -> int:
    """How often a write lets others in; every time the model is whole and can be read."""
    file = system.tree.open(system.tree.lookup(path), None)
    count = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kmemd.control.interpreter.SLICE_S", 0)
        for _ in file.write(text.encode()):
            count += 1
            if count % 50 == 1:
                system.check()
                system.read("/proc/vmallocinfo")
                system.read("/proc/meminfo")
                system.read("/sys/kernel/debug/kmemleak")
    return count


def test_a_command_cannot_start_inside_another(system: System) -> None:
    session = system.tree.open(system.tree.lookup("/kmemd/ctl"), None)
    steps = session.write(b"p = alloc_pages n=200000\n")
    next(steps)
    assert failure(system, "alloc_pages").errno == errno.EBUSY
    with pytest.raises(OSError, match="under way"):
        system.write("/kmemd/ctl", b"alloc_pages\n")
    finish(steps)
    system.command("alloc_pages")


SHARED = System.boot(seed=2)
FRAGMENTS = (
    "p = q p[0] p+8 0x10 0xffff888000000000 0 1 -1 99999999999999999999 1e9 # | n=3 n=0 every=2 order=11 size=4K "
    "gfp=GFP_KERNEL gfp=0xffffff by=a+0x1[b] cpu=9 pid=1 comm=x pfn=0 pfn=5 name= == é \0 \x7f"
)
PIECES = (*VERBS.names(), *FRAGMENTS.split(" "))
LINES = st.one_of(st.text(max_size=80), st.lists(st.sampled_from(PIECES), max_size=6).map(" ".join))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(LINES)
def test_whatever_is_written_the_only_exception_is_kernel_error(line: str) -> None:
    steps = Interpreter(SHARED.kernel).run(line)
    error = None
    try:
        deque(steps, maxlen=0)
    except KernelError as caught:
        error = caught
    assert error is None or "\n" not in error.reason


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.binary(max_size=300))
def test_whatever_bytes_are_written(data: bytes) -> None:
    session = SHARED.tree.open(SHARED.tree.lookup("/kmemd/ctl"), None)
    taken = 0
    try:
        taken = finish(session.write(data + b"\n"))
    except KernelError as error:
        taken = -error.errno
    assert taken <= len(data) + 1
    session.close()


def test_the_machine_is_well_after_all_that() -> None:
    SHARED.check()
