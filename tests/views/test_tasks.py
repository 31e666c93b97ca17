"""/proc/PID: what ps, top and smem read adds up, and has the captured form."""

import re
from pathlib import Path

import numpy as np
import pytest

from kmemd import System
from kmemd.errors import KernelError
from kmemd.views.task_smaps import vm_flags
from kmemd.views.tree import Caller

SELF = Path(__file__).parents[1] / "captures/linux-6.1/boot/x86_64-2G-2cpu/proc/self"


@pytest.fixture(scope="module")
def system():
    return System.boot("default")


def read(system, path):
    return system.read(path).decode()


def fields(text):
    return {name: int(number) for name, number in re.findall(r"^(\w+):\s+(\d+) kB", text, re.M)}


def test_stat_has_52_fields_and_agrees_with_statm_and_status(system):
    for pid in system.kernel.tasks.pids():
        stat = read(system, f"/proc/{pid}/stat")
        name, rest = stat[stat.index("(") + 1 : stat.rindex(")")], stat[stat.rindex(")") + 2 :].split()
        assert len(rest) == 50
        status = read(system, f"/proc/{pid}/status")
        assert f"Name:\t{name}\n" in status
        size, resident, shared, _text, _lib, _data, _dirty = map(int, read(system, f"/proc/{pid}/statm").split())
        assert (int(rest[20]), int(rest[21])) == (size << 12, resident)
        values = fields(status)
        assert values.get("VmSize", 0) == size * 4
        assert (
            values.get("VmRSS", 0) == resident * 4 == sum(values.get(f"Rss{k}", 0) for k in ("Anon", "File", "Shmem"))
        )
        assert shared == (values.get("RssFile", 0) + values.get("RssShmem", 0)) // 4


def test_kernel_threads_have_no_memory(system):
    assert read(system, "/proc/2/cmdline") == ""
    assert "VmSize" not in read(system, "/proc/2/status")
    assert read(system, "/proc/2/smaps") == read(system, "/proc/2/maps") == ""
    assert read(system, "/proc/2/oom_score") == "0\n"
    with pytest.raises(OSError, match="ESRCH"):
        system.read("/proc/2/smaps_rollup")


def test_smaps_sums_are_the_rollup_and_the_machines_counters(system):
    kernel = system.kernel
    total_pss = anon = 0
    for task in kernel.tasks.processes:
        smaps = read(system, f"/proc/{task.pid}/smaps")
        rollup = fields(read(system, f"/proc/{task.pid}/smaps_rollup"))
        for name in ("Rss", "Anonymous", "Shared_Dirty", "Private_Dirty", "Referenced"):
            assert sum(map(int, re.findall(rf"^{name}: +(\d+)", smaps, re.M))) == rollup[name]
        total_pss += rollup["Pss"]
        anon += rollup["Anonymous"]
    meminfo = fields(read(system, "/proc/meminfo"))
    assert anon == meminfo["AnonPages"]
    assert abs(total_pss - meminfo["AnonPages"] - meminfo["Mapped"]) <= 3 * 16


def test_maps_have_the_captured_columns_and_flags(system):
    captured = (SELF / "maps").read_text().splitlines()
    model = read(system, "/proc/1/maps").splitlines()
    assert model[:6] == captured[:6]
    assert [line[73:] for line in model] == [line[73:] for line in captured]
    flags = re.findall(r"^VmFlags: (.*)$", (SELF / "smaps").read_text(), re.M)
    ours = [vm_flags(vma.flags) for vma in system.kernel.tasks.find(1).mm.vmas]
    assert ours == flags


def test_comm_is_writable_and_cut(system):
    system.write("/proc/3/comm", "renamed-and-too-long\n")
    assert read(system, "/proc/3/comm") == "renamed-and-too\n"
    assert read(system, "/proc/3/task/3/comm") == "renamed-and-too\n"


def test_only_tasks_that_exist_have_a_directory(system):
    for name in ("0", "01", "99999", "abc", "1a"):
        with pytest.raises(OSError, match="ENOENT"):
            system.read(f"/proc/{name}/stat")
    task = system.kernel.tasks.spawn("short", 1)
    assert read(system, f"/proc/{task.pid}/comm") == "short\n"
    system.kernel.tasks.exit(task.pid)
    with pytest.raises(OSError, match="ENOENT"):
        system.read(f"/proc/{task.pid}/comm")


def test_oom_score_follows_its_adjustment(system):
    shell = system.kernel.tasks.processes[-1]
    base = int(read(system, f"/proc/{shell.pid}/oom_score"))
    assert 666 <= base <= 670
    system.write(f"/proc/{shell.pid}/oom_score_adj", "500\n")
    assert int(read(system, f"/proc/{shell.pid}/oom_score")) == pytest.approx(base + 333, abs=2)


def test_links(system):
    kernel = system.kernel
    node = system.tree.child(system.tree.lookup("/proc/1"), "exe")
    assert node.entry.target(kernel, 1, Caller()) == "/bin/busybox"
    kthread = system.tree.child(system.tree.lookup("/proc/2"), "exe")
    with pytest.raises(Exception, match="ENOENT"):
        kthread.entry.target(kernel, 2, Caller())
    for name in ("exe", "cwd", "root"):
        for pid in (1, 2):
            link = system.tree.child(system.tree.lookup(f"/proc/{pid}"), name)
            with pytest.raises(Exception, match="EACCES"):
                link.entry.target(kernel, pid, Caller(77124, 1000))


def test_numa_maps_have_the_captured_words(system):
    words = [re.sub(r"=\d+", "=", line).split() for line in read(system, "/proc/1/numa_maps").splitlines()]
    for found in words[:2]:
        assert [word for word in found[1:] if word != "active="] == [
            *("default", "file=/bin/busybox", "dirty=", "mapmax=", "N0=", "kernelpagesize_kB="),
        ]
    assert words[-1] == [words[-1][0], "default"]


def test_mountinfo_and_limits(system):
    assert len(read(system, "/proc/1/mountinfo").splitlines()) == len(read(system, "/proc/mounts").splitlines())
    assert re.search(r"^Max stack size {12}8388608 +unlimited +bytes", read(system, "/proc/1/limits"), re.M)
    assert read(system, "/proc/1/cgroup") == "0::/\n"
    assert system.read("/proc/1/environ") == b"HOME=/\0TERM=linux\0"


def test_a_visitor_finds_its_own_pid_and_nobody_elses(system):
    caller = Caller(88123, 1000)
    assert system.tree.lookup("/proc/88123/status", caller).parameters == (88123,)
    with pytest.raises(KernelError, match="/proc/88124 does not exist"):
        system.tree.lookup("/proc/88124", caller)


def test_a_thread_stands_for_its_process_and_finds_its_ancestors(system):
    caller = Caller(88203, 0, lambda: iter((88201, 88200)))
    assert system.tree.lookup("/proc/self", caller).parameters == (88201,)
    for pid in (88203, 88201, 88200):
        assert system.tree.lookup(f"/proc/{pid}/status", caller).parameters == (pid,)


def test_what_a_visitor_has_of_its_own_is_outside(system):
    caller = Caller(88125, 0)
    directory = system.tree.lookup("/proc/self", caller)
    link = system.tree.child(directory, "fd", caller)
    assert system.tree.readlink(link, caller) == "/proc/.outside/88125/fd"
    names = [node.path.rpartition("/")[2] for node in system.tree.children(directory)]
    assert len(names) == len(set(names))
    assert {"exe", "cwd", "root", "fd", "fdinfo"} <= set(names)
    assert system.tree.lookup("/proc/.outside").is_dir
    assert system.tree.child(system.tree.lookup("/proc/1"), "fd").is_dir


def test_auxv_tells_what_exec_told(system):
    words = np.frombuffer(system.read("/proc/1/auxv"), dtype="<u8").reshape(-1, 2).tolist()
    assert words[-1] == [0, 0]
    pairs = dict(words[:-1])
    vdso = next(line for line in read(system, "/proc/1/maps").splitlines() if line.endswith("[vdso]"))
    assert (pairs[6], pairs[17], pairs[11]) == (4096, 100, 0)
    assert pairs[33] == int(vdso.split("-")[0], 16)
    assert system.read("/proc/2/auxv") == b""


def test_a_range_of_a_file_is_one_read(system):
    whole = system.read("/proc/1/maps")
    assert system.read("/proc/1/maps", 10, 20) == whole[10:30]
    assert system.read("/proc/1/maps", len(whole) - 3, 20) == whole[-3:]


def test_ksm_has_merged_nothing(system):
    assert (read(system, "/proc/1/ksm_merging_pages"), read(system, "/proc/1/ksm_stat")) == (
        "0\n",
        "ksm_rmap_items 0\n",
    )
    assert system.read("/proc/2/ksm_stat") == b""
