"""Programs that look into processes show what the model knows of them."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.clients.conftest import KERNEL_SOURCE, KMEMD, Mounted, program
from tests.clients.test_programs import numbers
from tests.fs.mounting import ROOT
from tests.views.process import kib

pytestmark = pytest.mark.mount

MIB = 1 << 20
WRITTEN = 40 * MIB
DEADLINE_S = 60
EARLYOOM_LINES = 40
PAGE_TYPES = ("tools/vm/page-types.c", "tools/lib/api/fs/fs.h", "include/uapi/linux")


@dataclass
class Worker:
    """A process with memory of several kinds."""

    mounted: Mounted
    pid: int

    def text(self, name: str) -> str:
        """One of its files."""
        return self.mounted.text(f"proc/{self.pid}/{name}")

    def kib(self, name: str) -> dict[str, int]:
        """The figures in KiB of one of its files."""
        return kib(self.text(name))

    def pages(self, name: str) -> int:
        """The sum over mappings of a word in numa_maps."""
        return sum(int(count) for count in re.findall(rf" {name}=(\d+)", self.text("numa_maps")))


def reply(mounted: Mounted, line: str) -> str:
    """What the model answers to a command."""
    with open(mounted.path / "kmemd" / "ctl", "r+b", buffering=0) as control:
        control.write(line.encode() + b"\n")
        return control.read(4096).decode()


@pytest.fixture(scope="module")
def worker(mounted: Mounted) -> Worker:
    """A shell's child that has written private and shared memory, and read some."""
    pid = int(re.search(r"pid=(\d+)", reply(mounted, "worker = spawn worker"))[1])  # type: ignore[index]
    for line in (
        f"heap_like = mmap worker {WRITTEN}",
        f"access worker heap_like {WRITTEN} w",
        f"shared = mmap worker {8 * MIB} flags=MAP_SHARED|MAP_ANONYMOUS",
        f"access worker shared {4 * MIB} w",
        f"unused = mmap worker {16 * MIB}",
        f"access worker unused {MIB} r",
    ):
        mounted.command(line)
    return Worker(mounted, pid)


def test_pmap(worker: Worker) -> None:
    output = worker.mounted.bound(program("pmap"), "-X", str(worker.pid)).splitlines()
    head, total = output[1].split(), output[-1].split()
    shown = dict(zip(head[head.index("Size") :], total, strict=False))
    rollup = worker.kib("smaps_rollup")
    smaps = worker.text("smaps")
    for name in ("Rss", "Referenced", "Anonymous", "Swap"):
        assert int(shown[name]) == rollup[name], name
    assert int(shown["Pss"]) == sum(int(number) for number in re.findall(r"^Pss: +(\d+)", smaps, re.M))
    assert int(shown["Size"]) == sum(int(number) for number in re.findall(r"^Size: +(\d+)", smaps, re.M))


def test_pmap_extended(worker: Worker) -> None:
    total = worker.mounted.bound(program("pmap"), "-x", str(worker.pid)).splitlines()[-1]
    size, rss, _ = numbers(total)
    assert (size, rss) == (worker.kib("status")["VmSize"], worker.kib("smaps_rollup")["Rss"])


def test_ps(worker: Worker) -> None:
    lines = worker.mounted.bound(program("ps"), "aux").splitlines()
    rows = {int(line.split()[1]): line.split() for line in lines[1:]}
    status = worker.kib("status")
    assert rows[worker.pid][4:6] == [str(status["VmSize"]), str(status["VmRSS"])]
    assert rows[worker.pid][10] == "worker"
    assert rows[2][4:6] == ["0", "0"]


def test_ps_faults(worker: Worker) -> None:
    argv = [program("ps"), "-o", "min_flt=,maj_flt=,vsz=,rss=,size=", "-p", str(worker.pid)]
    minor, major, size, rss, _ = numbers(worker.mounted.bound(*argv))
    stat = worker.text("stat").rpartition(")")[2].split()
    status = worker.kib("status")
    assert (minor, major) == (int(stat[7]), int(stat[9]))
    assert minor >= WRITTEN // (2 * MIB)
    assert (size, rss) == (status["VmSize"], status["VmRSS"])


def test_top(worker: Worker) -> None:
    lines = worker.mounted.bound(program("top"), "-b", "-n1", "-p", str(worker.pid)).splitlines()
    head = next(line for line in lines if line.split()[:1] == ["PID"]).split()
    row = dict(zip(head, next(line for line in lines if line.split()[:1] == [str(worker.pid)]).split(), strict=True))
    status = worker.kib("status")
    assert (int(row["VIRT"]), int(row["RES"])) == (status["VmSize"], status["VmRSS"])
    assert int(row["SHR"]) == status["RssFile"] + status["RssShmem"]


def test_numastat(worker: Worker) -> None:
    lines = worker.mounted.bound(program("numastat"), "-p", str(worker.pid)).splitlines()
    total = [float(word) for word in lines[-1].split()[1:]]
    pages = [worker.pages(f"N{nid}") for nid in range(len(total) - 1)]
    assert total == pytest.approx([*(count / 256 for count in pages), sum(pages) / 256], abs=0.02)
    assert total[-1] > WRITTEN / MIB


def test_smem(worker: Worker) -> None:
    lines = worker.mounted.bound(program("smem"), "-H", "-c", "pid rss pss uss swap").splitlines()
    rows = {row[0]: row[1:] for row in map(numbers, lines)}
    smaps = worker.text("smaps")
    sums = {name: sum(map(int, re.findall(rf"^{name}: +(\d+)", smaps, re.M))) for name in ("Rss", "Pss", "Swap")}
    private = sum(map(int, re.findall(r"^Private_(?:Clean|Dirty): +(\d+)", smaps, re.M)))
    assert rows[worker.pid] == [sums["Rss"], sums["Pss"], private, sums["Swap"]]


def test_psutil_memory_full_info(worker: Worker) -> None:
    script = f"import psutil; print(*psutil.Process({worker.pid}).memory_full_info())"
    rss, vms, shared, _, _, _, _, uss, pss, swap = numbers(worker.mounted.bound(sys.executable, "-c", script))
    status, rollup = worker.kib("status"), worker.kib("smaps_rollup")
    assert (rss, vms) == (status["VmRSS"] << 10, status["VmSize"] << 10)
    assert shared == status["RssFile"] + status["RssShmem"] << 10
    assert uss == rollup["Private_Clean"] + rollup["Private_Dirty"] << 10
    assert (pss, swap) == (rollup["Pss"] << 10, rollup["Swap"] << 10)


@pytest.fixture(scope="session")
def page_types(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The kernel's own page-types, built from Debian's source package, once for each version of it."""
    if not KERNEL_SOURCE.exists():
        return program("page-types")
    source = KERNEL_SOURCE.stat()
    binary = ROOT / "build" / f"page-types-{source.st_size}-{source.st_mtime_ns}"
    if not binary.exists():
        folder = tmp_path_factory.mktemp("linux")
        members = [f"linux-source-6.1/{member}" for member in PAGE_TYPES]
        subprocess.run(["tar", "-xJf", str(KERNEL_SOURCE), "-C", str(folder), *members], check=True)
        tools = folder / "linux-source-6.1/tools"
        rest = folder / "rest.c"  # of tools/lib/api, where only poisoning of pages would look for debugfs
        rest.write_text("const char *debugfs__mount(void) { return 0; }\n")
        files = [str(tools / "vm/page-types.c"), str(rest)]
        built = folder / "page-types"
        subprocess.run(["gcc", "-O1", "-w", f"-I{tools}/lib", "-o", str(built), *files], check=True)
        binary.parent.mkdir(exist_ok=True)
        shutil.move(built, binary)
    return str(binary)


def page_type_counts(output: str) -> dict[int, int]:
    """Flags to pages of a summary of page-types."""
    return {int(flags, 16): int(count) for flags, count in re.findall(r"^0x([0-9a-f]{16})\t +(\d+)", output, re.M)}


def test_page_types_of_a_process(worker: Worker, page_types: str) -> None:
    counts = page_type_counts(worker.mounted.bound(page_types, "-p", str(worker.pid)))
    anon = sum(count for flags, count in counts.items() if flags >> 12 & 1)
    assert anon == worker.kib("smaps_rollup")["Anonymous"] // 4
    zero = sum(count for flags, count in counts.items() if flags >> 24 & 1)
    assert zero % 512 <= MIB // 4096, "small zero pages of what was read, besides the huge one"
    assert all(flags >> 11 & 1 for flags in counts if flags >> 12 & 1), "anonymous pages of a process are mapped"


def test_page_types_of_the_machine(worker: Worker, page_types: str) -> None:
    counts = page_type_counts(worker.mounted.bound(page_types))
    memory = worker.mounted.meminfo()
    assert sum(count for flags, count in counts.items() if flags >> 10 & 1) == memory["MemFree"] // 4
    assert sum(count for flags, count in counts.items() if flags >> 7 & 1) == memory["Slab"] // 4
    anon = sum(count for flags, count in counts.items() if flags >> 12 & 1)
    assert anon == memory["AnonPages"] // 4
    assert sum(count for flags, count in counts.items() if flags >> 26 & 1) == memory["PageTables"] // 4


def worst_process(mounted: Mounted) -> str:
    """The pid with the highest oom_score."""
    names = [path.name for path in (mounted.path / "proc").iterdir() if path.name.isdigit()]
    return max(names, key=lambda name: int(mounted.text(f"proc/{name}/oom_score")))


def first_victim(argv: list[str]) -> str:
    """What earlyoom says until it would send a signal; it goes on for ever."""
    said = []
    with subprocess.Popen(argv, stderr=subprocess.STDOUT, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        try:
            for line in running.stdout:
                said.append(line)
                if line.startswith("sending SIGTERM to") or len(said) > EARLYOOM_LINES:
                    break
        finally:
            running.terminate()
    return "".join(said)


def test_earlyoom(worker: Worker) -> None:
    mounted = worker.mounted
    options = ["--dryrun", "-m", "99,98", "-s", "100"]
    text = first_victim([*KMEMD, "run", "--at", str(mounted.path), "--", program("earlyoom"), *options])
    assert f"mem total: {mounted.meminfo()['MemTotal'] // 1024:4d} MiB" in text
    victim = re.search(r"process (\d+) uid 0 \"(\w+)\": .*VmRSS (\d+) MiB", text)
    assert victim is not None, text
    assert victim[1] == worst_process(mounted) == str(worker.pid)
    assert int(victim[3]) == worker.kib("status")["VmRSS"] // 1024


def test_atop(worker: Worker) -> None:
    output = worker.mounted.bound(program("atop"), "-P", "PRM", "1", "1")
    row = next(line for line in output.splitlines() if f" {worker.pid} (worker) " in line)
    _, size, resident, _, _, _, minor, major, _, data, stack = numbers(row.partition(") ")[2])[:11]
    status, stat = worker.kib("status"), worker.text("stat").rpartition(")")[2].split()
    assert (size, resident, data, stack) == tuple(status[name] for name in ("VmSize", "VmRSS", "VmData", "VmStk"))
    assert (minor, major) == (int(stat[7]), int(stat[9]))


def test_htop(worker: Worker) -> None:
    argv = [*KMEMD, "run", "--at", str(worker.mounted.path), "--", program("htop"), "-C", "-p", str(worker.pid)]
    environment = os.environ | {"TERM": "xterm", "LC_ALL": "C"}
    done = subprocess.run(argv, input="q", capture_output=True, text=True, timeout=DEADLINE_S, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"\bworker\b", done.stdout)


def test_a_debugger_reads_and_writes_at_addresses(worker: Worker) -> None:
    line = reply(worker.mounted, f"scratch = mmap worker {4 * 4096}")
    address = int(re.search(r"addr=(0x[0-9a-f]+)", line)[1], 16)  # type: ignore[index]
    memory = os.open(worker.mounted.path / f"proc/{worker.pid}/mem", os.O_RDWR)
    try:
        assert os.pwrite(memory, b"written by a debugger", address + 4090) == 21
        assert os.pread(memory, 23, address + 4089) == b"\0written by a debugger\0"
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            os.pread(memory, 8, 0)
    finally:
        os.close(memory)


def test_entries_of_page_files_are_read_whole(worker: Worker) -> None:
    for name in ("kpageflags", f"{worker.pid}/pagemap"):
        file = os.open(worker.mounted.path / "proc" / name, os.O_RDONLY)
        try:
            assert len(os.pread(file, 16, 4096)) == 16
            with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
                os.pread(file, 12, 4096)
        finally:
            os.close(file)


def test_hugeadm(mounted: Mounted) -> None:
    Path(mounted.path / "proc/sys/vm/nr_hugepages").write_text("6\n")
    Path(mounted.path / "proc/sys/vm/nr_overcommit_hugepages").write_text("3\n")
    lines = mounted.bound(program("hugeadm"), "--pool-list").splitlines()
    assert lines[0].split() == ["Size", "Minimum", "Current", "Maximum", "Default"]
    assert lines[1].split() == [str(2 * MIB), "6", "6", "9", "*"]
    Path(mounted.path / "proc/sys/vm/nr_hugepages").write_text("0\n")
    Path(mounted.path / "proc/sys/vm/nr_overcommit_hugepages").write_text("0\n")
