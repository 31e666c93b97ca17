"""Unmodified programs read the mount: they exit with 0, warn of nothing, and their totals are the model's."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.clients.conftest import Mounted, program, run_clean

pytestmark = pytest.mark.mount

NODE_EXPORTER_DEADLINE_S = 30


def numbers(line: str) -> list[int]:
    """The whole numbers of a line."""
    return [int(number) for number in re.findall(r"(?<![\w.])\d+(?![\w.])", line)]


def test_free(mounted: Mounted) -> None:
    memory = mounted.meminfo()
    lines = mounted.bound(program("free"), "-k").splitlines()
    total, used, free, shared, cache, available = numbers(lines[1])
    assert (total, free, shared) == (memory["MemTotal"], memory["MemFree"], memory["Shmem"])
    assert cache == memory["Buffers"] + memory["Cached"] + memory["SReclaimable"]
    assert available == memory["MemAvailable"]
    assert 0 < used < total
    assert numbers(lines[2])[0] == memory["SwapTotal"]


def test_vmstat(mounted: Mounted) -> None:
    lines = mounted.bound(program("vmstat")).splitlines()
    assert numbers(lines[2])[3] == mounted.meminfo()["MemFree"]


def test_vmstat_statistics(mounted: Mounted) -> None:
    lines = mounted.bound(program("vmstat"), "-s").splitlines()
    found = {line.split(maxsplit=1)[1]: int(line.split()[0]) for line in lines}
    memory = mounted.meminfo()
    assert found["K total memory"] == memory["MemTotal"]
    assert found["K free memory"] == memory["MemFree"]
    assert found["K total swap"] == memory["SwapTotal"]


def slab_objects(mounted: Mounted) -> dict[str, tuple[int, int]]:
    """Active and total objects of each cache."""
    rows = [line.split() for line in mounted.text("proc/slabinfo").splitlines()[2:]]
    return {row[0]: (int(row[1]), int(row[2])) for row in rows}


def test_vmstat_slabs(mounted: Mounted) -> None:
    caches = slab_objects(mounted)
    lines = [line for line in mounted.bound(program("vmstat"), "-m").splitlines() if "Cache" not in line]
    shown = {line.split()[0]: numbers(line)[:2] for line in (line.replace("-", "_") for line in lines)}
    assert len(shown) == len(caches)
    assert shown["kmalloc_1k"] == list(caches["kmalloc-1k"])


def test_vmstat_disks(mounted: Mounted) -> None:
    lines = mounted.bound(program("vmstat"), "-D").splitlines()
    disks, partitions, *counts = [numbers(line)[0] for line in lines]
    assert disks + partitions == 1  # which one, vmstat asks the host's /sys/block
    assert counts == [0] * len(counts)


def test_lsmod(mounted: Mounted) -> None:
    mounted.command("printk a command is in the module kmemd")
    assert mounted.bound(program("lsmod")).splitlines()[0].split() == ["Module", "Size", "Used", "by"]


def test_slabtop(mounted: Mounted) -> None:
    caches = slab_objects(mounted)
    output = mounted.bound(program("slabtop"), "-o")
    head = next(line for line in output.splitlines() if "Objects" in line)
    active, total = numbers(head.split(":")[1])[:2]
    assert active == sum(objects for objects, _ in caches.values())
    assert total == sum(objects for _, objects in caches.values())
    assert "kmalloc-1k" in output


def node_numbers(mounted: Mounted, name: str) -> list[dict[str, int]]:
    """A file of name-value lines below each node's directory."""
    base = mounted.path / "sys/devices/system/node"
    found = []
    for node in sorted(base.glob("node[0-9]*")):
        words = [line.split() for line in (node / name).read_text().splitlines()]
        pairs = [(row[2].rstrip(":"), row[3]) if row[0] == "Node" else (row[0], row[1]) for row in words]
        found.append({key: int(value) for key, value in pairs})
    return found


def test_numastat(mounted: Mounted) -> None:
    rows = {line.split()[0]: numbers(line) for line in mounted.bound(program("numastat")).splitlines()[1:]}
    nodes = node_numbers(mounted, "numastat")
    for name in ("numa_hit", "numa_miss", "numa_foreign", "interleave_hit", "local_node", "other_node"):
        assert rows[name] == [node[name] for node in nodes], name


def test_numastat_memory(mounted: Mounted) -> None:
    lines = mounted.bound(program("numastat"), "-m").splitlines()
    table = [line.split() for line in lines if re.fullmatch(r"\w\S*( +[\d.]+)+ *", line)]
    rows = {name: [float(word) for word in words] for name, *words in table}
    nodes = node_numbers(mounted, "meminfo")
    for name in ("MemTotal", "MemUsed", "Slab", "KernelStack"):
        *each, total = rows[name]
        assert each == [round(node[name] / 1024, 2) for node in nodes], name
        assert total == pytest.approx(sum(node[name] for node in nodes) / 1024, abs=0.011)


def test_numactl(mounted: Mounted) -> None:
    output = mounted.bound(program("numactl"), "-H")
    nodes = node_numbers(mounted, "meminfo")
    assert output.startswith(f"available: {len(nodes)} nodes (0-{len(nodes) - 1})\n")
    for nid, node in enumerate(nodes):
        assert f"node {nid} size: {node['MemTotal'] // 1024} MB" in output
        distance = mounted.text(f"sys/devices/system/node/node{nid}/distance").split()
        assert re.search(rf"^ +{nid}: +{' +'.join(distance)} *$", output, re.MULTILINE)


def test_sysctl(mounted: Mounted) -> None:
    output = mounted.bound(program("sysctl"), "-a")
    values = dict(line.split(" = ", 1) for line in output.splitlines() if " = " in line)
    for name in ("swappiness", "min_free_kbytes", "overcommit_ratio", "watermark_scale_factor"):
        assert values[f"vm.{name}"] == mounted.text(f"proc/sys/vm/{name}").strip()


def test_sysctl_write(mounted: Mounted) -> None:
    assert mounted.bound(program("sysctl"), "-w", "vm.swappiness=61") == "vm.swappiness = 61\n"
    assert mounted.text("proc/sys/vm/swappiness") == "61\n"


def test_sar(mounted: Mounted) -> None:
    memory = mounted.meminfo()
    lines = mounted.bound(program("sar"), "-r", "0").splitlines()
    head = next(line for line in lines if "kbmemfree" in line).split()
    values = lines[-1].split()
    shown = dict(zip(head[-11:], values[-11:], strict=True))
    assert int(shown["kbmemfree"]) == memory["MemFree"]
    assert int(shown["kbavail"]) == memory["MemAvailable"]
    assert int(shown["kbcommit"]) == memory["Committed_AS"]


def free_port() -> int:
    """A TCP port on the loopback that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def node_exporter(mounted: Mounted, port: int) -> Iterator[subprocess.Popen[str]]:
    """The exporter, reading the mount, until the block ends."""
    memory = ("buddyinfo", "meminfo", "meminfo_numa", "slabinfo", "zoneinfo", "vmstat", "pressure")
    collectors = (*memory, "filefd", "interrupts")
    argv = [
        program("prometheus-node-exporter"),
        f"--web.listen-address=127.0.0.1:{port}",
        f"--path.procfs={mounted.path}/proc",
        f"--path.sysfs={mounted.path}/sys",
        "--collector.disable-defaults",
        "--log.level=warn",
        *(f"--collector.{name}" for name in collectors),
    ]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as server:
        try:
            yield server
        finally:
            server.terminate()


def scrape(port: int, server: subprocess.Popen[str]) -> str:
    """One scrape, as soon as the exporter listens."""
    deadline = time.monotonic() + NODE_EXPORTER_DEADLINE_S
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as reply:
                text: str = reply.read().decode()
                return text
        except OSError:
            assert server.poll() is None, "the exporter ended"
            assert time.monotonic() < deadline, "the exporter does not listen"


def test_node_exporter(mounted: Mounted) -> None:
    port = free_port()
    with node_exporter(mounted, port) as server:
        text = scrape(port, server)
        server.terminate()
        assert server.stderr is not None
        said = server.stderr.read()
    assert [line for line in said.splitlines() if "running as root" not in line] == []
    failed = re.findall(r'^node_scrape_collector_success\{collector="(\w+)"\} 0$', text, re.MULTILINE)
    assert failed == []
    metrics = {
        line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith("node_")
    }
    assert metrics["node_memory_MemTotal_bytes"] == mounted.meminfo()["MemTotal"] * 1024
    assert metrics["node_vmstat_pgfault"] == mounted.vmstat()["pgfault"]
    assert metrics["node_filefd_maximum"] == int(mounted.text("proc/sys/fs/file-max"))
    free = mounted.text("proc/buddyinfo").splitlines()[-1].split()
    assert metrics[f'node_buddyinfo_blocks{{node="1",size="10",zone="{free[3]}"}}'] == int(free[-1])


def test_psutil(mounted: Mounted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(mounted.path / "proc"))
    memory = mounted.meminfo()
    virtual = psutil.virtual_memory()
    assert (virtual.total, virtual.free) == (memory["MemTotal"] * 1024, memory["MemFree"] * 1024)
    assert (virtual.available, virtual.slab) == (memory["MemAvailable"] * 1024, memory["Slab"] * 1024)
    assert psutil.swap_memory().total == memory["SwapTotal"] * 1024
    cpus = re.findall(r"^processor\b", mounted.text("proc/cpuinfo"), re.MULTILINE)
    assert len(psutil.cpu_times(percpu=True)) == len(cpus)


def test_psutil_inside_sees_its_own_process(mounted: Mounted) -> None:
    script = "import psutil; print(psutil.Process().name(), len(psutil.Process(1).memory_maps()))"
    name, maps = mounted.bound(sys.executable, "-c", script).split()
    assert (name, int(maps) > 5) == ("visitor", True)


def test_what_a_program_inside_has_open_is_listed_behind_a_slash(mounted: Mounted) -> None:
    listing = mounted.bound("sh", "-c", "exec ls -l /proc/self/fd/ </dev/null")
    assert " 0 -> /dev/null\n" in listing


@pytest.mark.parametrize(("shell", "marks"), [("bash", 2), ("dash", 1)])
def test_a_shell_that_writes_line_by_line_goes_on_after_a_bad_line(mounted: Mounted, shell: str, marks: int) -> None:
    script = f"printf 'printk {shell}-mark\\nbad\\nprintk {shell}-mark\\n' >{mounted.path}/kmemd/ctl"
    done = subprocess.run([program(shell), "-c", script], capture_output=True, text=True, timeout=30)
    assert "rror" in done.stderr
    assert mounted.text("kmemd/dmesg").count(f"{shell}-mark\n") == marks


def test_a_shell_inside_keeps_its_own_files(mounted: Mounted) -> None:
    script = (
        "cat <(echo substituted); echo piped | cat /dev/stdin; readlink -f /proc/self/exe; "
        "grep -o lo: /proc/net/dev; cat /proc/$$/comm; ls -A /proc"
    )
    words = mounted.bound("bash", "-c", script).split()
    assert words[:2] == ["substituted", "piped"]
    assert os.path.basename(words[2]) in ("readlink", "coreutils", "busybox")
    assert words[3:5] == ["lo:", "visitor"]
    assert "meminfo" in words
    assert ".outside" not in words


def test_a_user_namespace_can_be_made_inside(mounted: Mounted) -> None:
    argv = [program("unshare"), "-r", "true"]
    if subprocess.run(argv, capture_output=True, check=False).returncode:
        pytest.skip("no user namespace can be made here, with the host's /proc")
    assert mounted.bound(*argv) == ""


def test_dmesg(mounted: Mounted) -> None:
    mounted.command("printk a line that dmesg must show")
    shown = mounted.bound(program("dmesg")).splitlines()
    assert shown[-1].endswith("a line that dmesg must show")
    assert len(shown) == len(mounted.text("kmemd/dmesg").splitlines())


def test_dmesg_file(mounted: Mounted) -> None:
    mounted.command("printk a line for the file")
    shown = run_clean([program("dmesg"), "-F", str(mounted.path / "kmemd/dmesg")])
    assert shown.endswith("a line for the file\n")
    assert len(shown.splitlines()) == len(mounted.text("kmemd/dmesg").splitlines())


def test_swapon(mounted: Mounted) -> None:
    lines = mounted.bound(program("swapon"), "-s").splitlines()
    rows = mounted.text("proc/swaps").splitlines()
    assert [line.split()[:3] for line in lines[1:]] == [row.split()[:3] for row in rows[1:]]
    assert sum(int(row.split()[2]) for row in rows[1:]) == mounted.meminfo()["SwapTotal"]


def test_lsmem(mounted: Mounted) -> None:
    output = run_clean([program("lsmem"), "-b", "-s", str(mounted.path)])
    online = next(line for line in output.splitlines() if line.startswith("Total online memory"))
    size = int(mounted.text("sys/devices/system/memory/block_size_bytes"), 16)
    blocks = list((mounted.path / "sys/devices/system/memory").glob("memory[0-9]*"))
    assert int(online.split()[-1]) == size * len(blocks) >= mounted.meminfo()["MemTotal"] * 1024


def test_smem(mounted: Mounted) -> None:
    output = mounted.bound(program("smem"), "-w")
    assert "firmware/hardware" in output
    free = next(line for line in output.splitlines() if line.startswith("free memory"))
    assert numbers(free)[0] == mounted.meminfo()["MemFree"]


def test_page_owner_sort(mounted: Mounted, page_owner_sort: str, tmp_path: Path) -> None:
    report, result = tmp_path / "page_owner", tmp_path / "sorted"
    report.write_bytes((mounted.path / "sys/kernel/debug/page_owner").read_bytes())
    run_clean([page_owner_sort, str(report), str(result)])
    assert result.read_text().count("\n\n") == report.read_text().count("\n\n")
    run_clean([page_owner_sort, "--cull=stacktrace", str(report), str(result)])
    filled = next(block for block in result.read_text().split("\n\n") if "fill+0x10" in block)
    assert filled.startswith("20000 times, 20000 pages")
