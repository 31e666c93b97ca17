"""The verbs of address spaces on a booted machine, against what Linux did (tests/captures)."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from kmemd import KernelError, System

CAPTURES = Path(__file__).parents[1] / "captures" / "linux-6.1"
PROCESS = CAPTURES / "process"
SMALL, LARGE = PROCESS / "x86_64-1G-2cpu", PROCESS / "x86_64-2node-4G-4cpu"
PAGE = 4096

ERRORS = {
    "mmap(0, 0, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)": "mmap p 0",
    "mmap(0, 4096, 3, 0, -1, 0)": "mmap p 4096 flags=0",
    "mmap(0, 4096, 3, MAP_PRIVATE, -1, 0)": "mmap p 4096 flags=MAP_PRIVATE",
    "mmap((void *)4097, 4096, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0)": (
        "mmap p 4096 addr=0x1001 flags=MAP_PRIVATE|MAP_ANONYMOUS|MAP_FIXED"
    ),
    "mmap(0, 1ul << 47, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)": "mmap p 128T",
    "munmap(p + 1, 4096)": "munmap p m+1 4096",
    "munmap(p, 0)": "munmap p m 0",
    "mprotect(p + 1, 4096, 1)": "mprotect p m+1 4096 r",
    "mprotect(p, 4096, 0x10)": "mprotect p m 4096 0x10",
    "mprotect((void *)0x10000, 4096, 1)": "mprotect p 0x10000 4096 PROT_READ",
    "madvise(p + 1, 4096, MADV_DONTNEED)": "madvise p m+1 4096 MADV_DONTNEED",
    "madvise(p, 4096, 9999)": "madvise p m 4096 9999",
    "madvise((void *)0x10000, 4096, MADV_DONTNEED)": "madvise p 0x10000 4096 MADV_DONTNEED",
    "mlock((void *)0x10000, 4096)": "mlock p 0x10000 4096",
    "munlock(p, 4096)": "munlock p m 4096",
    "mremap(p, 4096, 0, 0)": "mremap p m 4096 0",
    "mremap(p + 1, 4096, 8192, 0)": "mremap p m+1 4096 8192",
    "mremap((void *)0x10000, 4096, 8192, 0)": "mremap p 0x10000 4096 8192",
    "msync(p + 1, 4096, MS_SYNC)": "msync p m+1 4096 MS_SYNC",
    "msync((void *)0x10000, 4096, MS_SYNC)": "msync p 0x10000 4096 MS_SYNC",
    "msync(p, 4096, MS_SYNC | MS_ASYNC)": "msync p m 4096 MS_SYNC|MS_ASYNC",
    "mincore((void *)0x10000, 4096, (void *)p)": "mincore p 0x10000 4096",
    "mincore(p + 1, 4096, (void *)p)": "mincore p m+1 4096",
    "brk((void *)-1)": "brk p 0xffffffffffffffff",
}


class Process:
    """A machine with one process ``p``."""

    def __init__(self, machine: str | Path = "default") -> None:
        self.system = System.boot(machine=machine, seed=1)
        self.run("p = spawn uo")
        self.pid = self.system.kernel.handles["p"].pid

    def run(self, line: str) -> str:
        return self.system.command(line)

    def errno(self, line: str) -> int:
        try:
            self.run(line)
        except OSError as error:
            return int(error.errno or 0)
        return 0

    def word(self, line: str, key: str) -> str:
        found = re.search(rf"\b{key}=(\S+)", self.run(line))
        assert found is not None
        return found[1]

    def read(self, name: str) -> str:
        return self.system.read(f"/proc/{self.pid}/{name}").decode()

    def smaps(self, name: str) -> list[str]:
        """The entry of a mapping, without its header line."""
        start = f"{self.system.kernel.handles[name].address:08x}-"
        lines = self.read("smaps").splitlines()
        first = next(n for n, line in enumerate(lines) if line.startswith(start))
        last = next(n for n, line in enumerate(lines[first:], first) if line.startswith("VmFlags"))
        return [line.rstrip() for line in lines[first + 1 : last + 1]]

    def meminfo(self, key: str) -> int:
        found = re.search(rf"^{key}:\s*(\d+)", self.system.read("/proc/meminfo").decode(), re.MULTILINE)
        assert found is not None
        return int(found[1])


@pytest.fixture(scope="module")
def shared() -> Process:
    process = Process()
    process.run("m = mmap p 64K")
    return process


@pytest.fixture
def process() -> Iterator[Process]:
    found = Process()
    yield found
    found.system.check()
    found.run("exit p")
    found.system.check()


def captured_errors() -> list[tuple[str, int]]:
    lines = (SMALL / "uo_errs").read_text().splitlines()
    return [(line.split(" = ")[0], int(line.split()[-1])) for line in lines]


@pytest.mark.parametrize(("call", "number"), captured_errors(), ids=lambda value: str(value))
def test_errors_are_those_of_linux(shared: Process, call: str, number: int) -> None:
    assert shared.errno(ERRORS[call]) == number


def entries(path: Path) -> list[list[str]]:
    """The smaps entries of a capture, without their header lines."""
    found: list[list[str]] = []
    for line in path.read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            found.append([])
        elif found and re.match(r"[A-Za-z_]+: ", line):
            found[-1].append(line.rstrip())
    return [entry[: next(n for n, line in enumerate(entry) if line.startswith("VmFlags")) + 1] for entry in found]


def test_mremap(process: Process) -> None:
    grown, shrunk = entries(SMALL / "uo_mremap_8")
    process.run("q = mmap p 8M")
    process.run("madvise p q 8M MADV_NOHUGEPAGE")
    process.run("access p q 8M w")
    process.run("mmap p 4096 prot=none")
    process.run("mremap p q 8M 16M flags=MREMAP_MAYMOVE")
    assert process.smaps("q") == grown
    process.run("mremap p q 16M 4M")
    assert process.smaps("q") == shrunk


def test_lazy_free(process: Process) -> None:
    freed, written, cold = entries(SMALL / "uo_lazyfree_16")
    process.run("q = mmap p 16M")
    process.run("madvise p q 16M MADV_NOHUGEPAGE")
    process.run("access p q 16M w")
    process.run("madvise p q 8M MADV_FREE")
    assert process.smaps("q") == freed
    process.run("access p q 4M w")
    assert process.smaps("q") == written
    process.run("madvise p q 16M MADV_COLD")
    assert process.smaps("q") == cold


def test_mlock(process: Process) -> None:
    process.run("q = mmap p 8M")
    process.run("madvise p q 8M MADV_NOHUGEPAGE")
    process.run("mlock p q 8M")
    assert process.smaps("q") == entries(LARGE / "uo_mlock_8")[0]
    assert process.meminfo("Mlocked") == process.meminfo("Unevictable") == 8192
    assert re.search(r"VmLck:\s+8192 kB", process.read("status"))
    process.run("munlock p q+0x1000 4096")
    assert process.meminfo("Mlocked") == 8188


def test_mprotect_splits(process: Process) -> None:
    captured = re.findall(r"^(7f\w+)-(7f\w+) (\S+)", (LARGE / "uo_prot").read_text(), re.MULTILINE)[:6]
    process.run("q = mmap p 1M")
    process.run("mprotect p q+4096 4096 r")
    process.run("mprotect p q+16384 8192 r-x")
    process.run("munmap p q+65536 4096")
    start = process.system.kernel.handles["q"].address
    found = [line.split() for line in process.read("maps").splitlines()]
    ours = [(*(int(end, 16) - start for end in words[0].split("-")), words[1]) for words in found]
    first = int(captured[0][0], 16)
    theirs = [(int(low, 16) - first, int(high, 16) - first, perms) for low, high, perms in captured]
    assert [row for row in ours if 0 <= row[0] < 1 << 20] == theirs


@pytest.fixture(scope="module")
def numa() -> Process:
    return Process(CAPTURES / "boot" / "x86_64-2node-4G-4cpu")


def overcommit_cases() -> list[tuple[int, int, int, list[bool]]]:
    """Mode, ratio, MiB got in mappings of 64, which single mappings worked."""
    found = []
    for part in (LARGE / "uo_overcommit").read_text().split("mode ")[1:]:
        mode, ratio = int(part.split()[0]), int(part.split()[2])
        got = re.search(r"got (\d+) MiB", part)
        assert got is not None
        found.append((mode, ratio, int(got[1]), ["ok" in line for line in part.splitlines() if "bigmap" in line]))
    return found


@pytest.mark.parametrize(("mode", "ratio", "mib", "single"), overcommit_cases())
def test_overcommit(numa: Process, mode: int, ratio: int, mib: int, single: list[bool]) -> None:
    numa.system.write("/proc/sys/vm/overcommit_memory", str(mode))
    numa.system.write("/proc/sys/vm/overcommit_ratio", str(ratio))
    before = numa.meminfo("Committed_AS")
    addresses: list[str] = []
    while len(addresses) < 1024 and not numa.errno(f"m{len(addresses)} = mmap p 64M"):
        addresses.append(f"m{len(addresses)}")
    assert len(addresses) * 64 == mib
    assert numa.meminfo("Committed_AS") - before == mib << 10
    for name in addresses:
        numa.run(f"munmap p {name} 64M")
    worked = []
    for size in (100, 1000, 3000, 6000, 20000, 200000):
        number = numa.errno(f"big = mmap p {size}M")
        assert number in (0, errno.ENOMEM)
        worked.append(number == 0)
        if not number:
            numa.run(f"munmap p big {size}M")
    assert worked == single
    assert numa.meminfo("Committed_AS") == before


def test_as_many_mappings_as_the_limit_lets(process: Process) -> None:
    process.system.write("/proc/sys/vm/max_map_count", "100")
    own = len(process.read("maps").splitlines())
    made = 0
    while not process.errno(f"mmap p 4096 prot={'rw' if made % 2 else 'r'}"):
        made += 1
    assert made == 101 - own, "as 65521 of 65530 on a process with ten of its own"


def test_handles_stand_for_addresses(process: Process) -> None:
    address = process.word("m = mmap p 64K prot=r", "addr")
    assert process.word("mprotect p m+0x1000 4096 rw", "addr") == hex(int(address, 16) + PAGE)
    assert process.errno("kfree m") == errno.EINVAL
    process.run("s = mmap p 64K flags=MAP_SHARED|MAP_ANONYMOUS")
    old = process.word("mprotect p s 64K rw", "addr")
    assert process.word("mremap p s 0 4096 flags=MREMAP_MAYMOVE", "addr") != old
    assert process.word("mprotect p s 64K rw", "addr") == old, "a copy of a part is not what the name stands for"
    process.run("mmap p 4096")
    moved = process.word("mremap p m+0x2000 4096 8192 flags=MREMAP_MAYMOVE", "addr")
    assert moved != address
    process.run("mremap p s 64K 1M flags=MREMAP_MAYMOVE")
    process.run("munmap p s 1M")
    assert process.errno("munmap p s 1M") == errno.ENOENT


def test_a_mapping_is_no_root_for_kmemleak(process: Process) -> None:
    process.run("m = mmap p 64K")
    assert len(process.system.kernel.handles["m"].pointers()) == 0


def test_populate_and_mincore(process: Process) -> None:
    process.run("m = mmap p 64K")
    assert process.word("mincore p m 64K", "resident") == "0"
    process.run("madvise p m 8K MADV_POPULATE_WRITE")
    assert process.word("mincore p m 16K", "vec") == "1100"
    process.run("n = mmap p 1M flags=MAP_PRIVATE|MAP_ANONYMOUS|MAP_POPULATE")
    assert process.word("mincore p n 1M", "resident") == "256"
    assert process.word("mincore p n 0", "pages") == "0"


def test_protection_decides_accesses(process: Process) -> None:
    process.run("sigaction p SEGV catch")
    process.run("m = mmap p 64K")
    process.run("access p m 64K w")
    process.run("mprotect p m 4096 r")
    assert "signal" not in process.run("access p m 4096 r")
    assert process.word("access p m 4096 w", "signal") == "11"
    process.run("mprotect p m 4096 rw")
    faults = process.word("access p m 4096 w", "faults")
    assert faults == "0", "a page of one's own is writable at once"
    process.run("mprotect p m 4096 none")
    assert process.word("access p m 4096 r", "signal") == "11"


def test_pages_move_with_a_mapping(process: Process) -> None:
    process.run("m = mmap p 6M addr=0x10000000")
    process.run("madvise p m 6M MADV_NOHUGEPAGE")
    process.run("access p m 6M w")
    flags = "flags=MREMAP_MAYMOVE|MREMAP_FIXED"
    for to in ("0x20000000", "0x30001000"):
        process.run(f"mremap p m 6M 6M {flags} new={to}")
        assert process.word("mincore p m 6M", "resident") == "1536"
        assert process.word("access p m 6M r", "faults") == "0"
        process.system.check()


def test_a_stack_grows_when_it_is_touched(process: Process) -> None:
    process.run("sigaction p SEGV catch")
    found = re.search(r"(\w+)-(\w+) .*\[stack\]", process.read("maps"))
    assert found is not None
    start, top = int(found[1], 16), int(found[2], 16)
    process.run(f"access p {start - 100 * PAGE:#x} 4096 w")
    assert f"{start - 100 * PAGE:x}-{top:x} " in process.read("maps")
    assert process.word(f"access p {top - (9 << 20):#x} 4096 w", "signal") == "11", "beyond RLIMIT_STACK"


def test_files(process: Process) -> None:
    process.run("create /x 1M")
    process.run("f = mmap p 1M file=/x flags=MAP_SHARED")
    process.run("access p f 512K w")
    process.run("msync p f 1M")
    process.run("g = mmap p 512K file=/x offset=256K prot=r")
    assert process.word("mincore p g 512K", "resident") == "64", "what the page cache has counts"
    process.run("madvise p f 512K MADV_REMOVE")
    assert process.word("mincore p g 512K", "resident") == "0"
    assert process.errno("mmap p 4096 file=/nope") == errno.ENOENT


def test_brk(process: Process) -> None:
    before = int(process.word("brk p", "addr"), 16)
    process.run(f"brk p {before + (1 << 20):#x}")
    assert int(process.word("brk p", "addr"), 16) == before + (1 << 20)
    process.run(f"access p {before:#x} 1M w")
    process.run(f"brk p {before:#x}")


def test_limits_are_shown_and_hold(process: Process) -> None:
    assert process.run("prlimit p RLIMIT_AS 1G 2G").startswith(f"pid={process.pid} soft=1073741824 hard=2147483648")
    assert re.search(r"Max address space +1073741824 +2147483648 +bytes", process.read("limits"))
    assert process.errno("mmap p 1G") == errno.ENOMEM
    assert process.errno("prlimit p RLIMIT_AS 3G 2G") == errno.EINVAL
    assert process.errno("prlimit p RLIMIT_NONE") == errno.EINVAL
    process.run("prlimit p RLIMIT_AS unlimited unlimited")
    process.run("mmap p 1G")


def test_mlockall(process: Process) -> None:
    process.run("mlockall p MCL_CURRENT|MCL_FUTURE")
    process.run("m = mmap p 1M")
    assert process.word("mincore p m 1M", "resident") == "256"
    assert process.word("munlockall p", "locked") == "0"
    assert process.meminfo("Mlocked") == 0


def test_threads_of_the_kernel_have_no_address_space(shared: Process) -> None:
    assert shared.errno("mmap 2 4096") == errno.EINVAL
    assert shared.errno("mmap 4000 4096") == errno.ESRCH


def test_words_that_are_wrong(shared: Process) -> None:
    for line in (
        "mmap p 4096 prot=rq",
        "mmap p 4096 flags=MAP_PRIVAT",
        "mmap p 4096 offset=17 file=/x",
        "madvise p m 4096 MADV_NONE",
        "mprotect p m 4096 PROT_REED",
        "mlockall p MCL_X",
    ):
        assert shared.errno(line) in (errno.EINVAL, errno.ENOENT), line


@pytest.fixture(params=["default", "highmem"])
def system(request: pytest.FixtureRequest) -> System:
    """A machine with a process ``p``."""
    system = System.boot(request.param, seed=1)
    system.command("p = spawn p")
    return system


def refusal(system: System, line: str) -> int:
    """The errno of a command."""
    with pytest.raises(KernelError) as caught:
        system.command(line)
    return caught.value.errno


def test_what_a_file_does_not_allow(system: System) -> None:
    for line in ("create /mnt/f 1M", "create /tmp/f 64K", "mkswap /mnt/f"):
        system.command(line)
    shared = "flags=MAP_SHARED"
    assert refusal(system, f"mmap p 64K file=/tmp/f {shared} open=r") == errno.EACCES
    assert refusal(system, f"mmap p 64K file=/tmp/f {shared} offset=0x7ffffffffffff000") == errno.EOVERFLOW
    system.command("swapon /mnt/f")
    assert refusal(system, f"mmap p 64K file=/mnt/f {shared}") == errno.ETXTBSY
    system.command(f"m = mmap p 64K file=/mnt/f {shared} prot=r open=r")
    assert refusal(system, "mprotect p m 4K rw") == errno.EACCES
    assert refusal(system, "madvise p m 4K MADV_REMOVE") == errno.EACCES
    assert "mr me ms" in system.read(f"/proc/{system.kernel.handles['p'].pid}/smaps").decode()


def test_ext2_has_no_fallocate(system: System) -> None:
    system.command("create /mnt/f 64K")
    system.command("m = mmap p 64K file=/mnt/f flags=MAP_SHARED")
    system.command("access p m 64K w")
    assert refusal(system, "madvise p m 64K MADV_REMOVE") == errno.EOPNOTSUPP
    assert refusal(system, "fallocate /mnt/f 0 4K") == errno.EOPNOTSUPP
    assert refusal(system, "fallocate /mnt/f 0 4K mode=punch_hole") == errno.EOPNOTSUPP
    assert "pages=16" in system.command("fincore /mnt/f")
    system.check()


def test_mremap_says_once_that_private_memory_has_no_second_place(system: System) -> None:
    system.command("m = mmap p 4K")
    for _ in range(2):
        assert refusal(system, "mremap p m 0 4K flags=MREMAP_MAYMOVE") == errno.EINVAL
    said = [record.text for record in system.kernel.printk.since(0) if "attempted to duplicate" in record.text]
    assert len(said) == 1


@pytest.mark.parametrize(
    ("line", "number"),
    [("madvise", errno.EINVAL), ("mprotect", errno.ENOMEM), ("msync", errno.ENOMEM), ("mlock", errno.EINVAL)],
)
def test_a_range_that_wraps_around(system: System, line: str, number: int) -> None:
    last = 0xFFFFFFFF_FFFFF000 if system.kernel.machine.arch == "x86_64" else 0xFFFFF000
    rest = {"madvise": " MADV_DONTNEED", "mprotect": " r"}.get(line, "")
    assert refusal(system, f"{line} p {last:#x} 4K{rest}") == number


def test_lazy_free_of_pages_that_a_child_has_too(system: System) -> None:
    """Only a dirty page, or one in the swap cache, must be the task's alone (``madvise_free_pte_range``)."""
    system.command("m = mmap p 60K")
    system.command("access p m 60K w")
    system.command("q = fork p")
    system.command("madvise p m 60K MADV_FREE")

    def lazy(name: str) -> str:
        text = system.read(f"/proc/{system.kernel.handles[name].pid}/smaps_rollup").decode()
        found = re.search(r"LazyFree:\s+(\d+)", text)
        assert found is not None
        return found[1]

    assert (lazy("p"), lazy("q")) == ("60", "0")  # the child's entries are dirty still
    system.command("exit q")
    assert lazy("p") == "60"
    system.command("access p m 4K w")
    assert lazy("p") == "56"
    system.check()


def test_a_program_starts_at_fixed_addresses_too(system: System) -> None:
    system.write("/proc/sys/kernel/randomize_va_space", "0")
    system.command("q = spawn q")
    maps = [line.split() for line in system.read(f"/proc/{system.kernel.handles['q'].pid}/maps").decode().splitlines()]
    places = {words[-1]: words[0] for words in maps if len(words) == 6}
    if system.kernel.machine.arch == "x86_64":
        assert places["[stack]"].endswith("-7ffffffff000")
        assert places["[vdso]"] == "7ffff7ffe000-7ffff7fff000"
    else:
        assert places["[stack]"].endswith("-bffff000")
    system.check()
