"""/proc/slabinfo and /sys/kernel/slab of a small machine."""

import contextlib
import errno
import re
from pathlib import Path

import pytest

from kmemd import views
from kmemd.errors import KernelError
from kmemd.kernel import Kernel
from kmemd.machine import Machine
from kmemd.mm.gfp import GFP_KERNEL
from kmemd.steps import finish
from kmemd.system import System
from kmemd.views.tree import Caller, Namespace

CAPTURES = Path(__file__).parents[1] / "captures" / "linux-6.1"


class Files:
    """A kernel and its files."""

    def __init__(self, cpus=2, arch="x86_64", cmdline=""):
        machine = Machine.of_memory("test", arch, cpus, (1 << 28,), (tuple(range(cpus)),), ((10,),))
        self.kernel = Kernel.boot(machine, cmdline=cmdline)
        self.tree = Namespace(self.kernel)

    def node(self, path):
        return self.tree.lookup(path)

    def read(self, path):
        return self.tree.open(self.node(path), Caller()).read(0, 1 << 20).decode()

    def write(self, path, text):
        return finish(self.tree.open(self.node(path), Caller()).write(text.encode()))

    def names(self, path):
        return {child.path.rsplit("/", 1)[1]: child for child in self.tree.children(self.node(path))}


@pytest.fixture
def files():
    return Files()


def refused(call, *arguments):
    with pytest.raises(KernelError) as caught:
        call(*arguments)
    return caught.value.errno


def test_slabinfo_has_linux_columns(files):
    captured = (CAPTURES / "boot" / "x86_64-2G-2cpu" / "proc" / "slabinfo").read_text().splitlines()
    lines = files.read("/proc/slabinfo").splitlines()
    assert lines[:2] == captured[:2]
    assert lines[-1].startswith("kmem_cache ")
    shape = re.compile(r"[\w-]+ *( +\d+){5} : tunables    0    0    0 : slabdata( +\d+){2}      0")
    assert all(shape.fullmatch(line) for line in lines[2:])
    mine = {line.split()[0]: line for line in lines[2:]}
    rows = [line for line in captured[2:] if line.startswith(("kmalloc", "dma-kmalloc"))]
    assert len(rows) == 52
    for row in rows:
        assert mine[row.split()[0]].split()[3:6] == row.split()[3:6]
        assert len(mine[row.split()[0]]) == len(row)
    assert files.node("/proc/slabinfo").entry.mode == 0o400
    assert refused(files.write, "/proc/slabinfo", "1\n") == errno.EIO


def test_slabinfo_follows_objects(files):
    slub = files.kernel.slub
    cache = slub.kmem_cache_create("mine", 200)
    objects = slub.kmem_cache_alloc_bulk(cache, GFP_KERNEL, 50)

    def row():
        return next(line.split()[1:3] for line in files.read("/proc/slabinfo").splitlines() if line.startswith("mine "))

    assert row() == ["60", "60"]
    slub.kmem_cache_free_bulk(cache, objects[:5])
    slub.flush_all(cache)
    assert row() == ["45", "60"]


def test_attributes_have_linux_names_and_modes(files):
    listing = (CAPTURES / "boot" / "ls-slab-kmalloc-64.txt").read_text().splitlines()
    want = {line.split()[-1]: line[:10] for line in listing if line.startswith("-")}
    got = {name: child.entry.mode for name, child in files.names("/sys/kernel/slab/kmalloc-64").items()}
    modes = {"-r--------": 0o400, "-rw-------": 0o600}
    assert got == {name: modes[mode] for name, mode in want.items()}


def test_statistics_and_lists_read_as_linux_prints_them(files):
    slub, context = files.kernel.slub, files.kernel.context
    cache = slub.kmem_cache_create("mine", 512)
    objects = slub.kmem_cache_alloc_bulk(cache, GFP_KERNEL, 40)
    context.cpu = 1
    slub.kmem_cache_alloc(cache)
    slub.kmem_cache_free_bulk(cache, objects[:2])
    slub.kmem_cache_free_bulk(cache, objects[17:18])
    base = "/sys/kernel/slab/mine/"
    assert files.read(base + "alloc_fastpath") == "37 C0=37\n"
    assert files.read(base + "alloc_slowpath") == "4 C0=3 C1=1\n"
    assert files.read(base + "alloc_slab") == "4 C0=3 C1=1\n"
    assert files.read(base + "cpu_partial_free") == "2 C1=2\n"
    assert files.read(base + "slabs_cpu_partial") == "16(2) C1=16(2)\n"
    assert files.read(base + "cpu_slabs") == "4 N0=4\n"
    assert files.read(base + "slabs") == "4 N0=4\n"
    assert files.read(base + "objects") == "64 N0=64\n"
    assert files.read(base + "objects_partial") == "0\n"
    assert files.write(base + "alloc_fastpath", "0\n") == 2
    assert files.read(base + "alloc_fastpath") == "0\n"
    assert refused(files.write, base + "alloc_fastpath", "1") == errno.EINVAL


def test_captured_writes(files):
    text = (CAPTURES / "writes" / "writes.tsv").read_bytes().decode("utf-8", "replace")
    rows = [line.split("\t") for line in text.splitlines() if line.startswith("/sys/kernel/slab/")]
    assert len(rows) > 30
    for path, written, result, number, *_ in rows:
        if files.node(path).entry.mode == 0o400:
            assert (result, number) == ("-1", str(errno.EACCES))
        elif result == "-1":
            assert refused(files.write, path, written) == int(number), (path, written)
        else:
            assert files.write(path, written) == int(result), (path, written)
    assert files.read("/sys/kernel/slab/kmalloc-64/min_partial") == "1000000\n"
    assert files.read("/sys/kernel/slab/kmalloc-64/cpu_partial") == "1000000\n"
    assert files.read("/sys/kernel/slab/kmalloc-64/shrink") == ""


def test_shrink_gives_pages_back(files):
    slub = files.kernel.slub
    cache = slub.kmem_cache_create("mine", 512)
    slub.kmem_cache_free_bulk(cache, slub.kmem_cache_alloc_bulk(cache, GFP_KERNEL, 160))
    assert files.read("/sys/kernel/slab/mine/slabs") != "0\n"
    assert files.write("/sys/kernel/slab/mine/shrink", "1\n") == 2
    assert files.read("/sys/kernel/slab/mine/slabs") == "0\n"
    files.kernel.slub.check()


def test_validate_acts_on_debugged_caches_only():
    files = Files(cmdline="slub_debug=FZPU,kmalloc-64")
    base = "/sys/kernel/slab/"
    files.kernel.slub.kmalloc_bulk(64, GFP_KERNEL, 100)
    assert files.write(base + "kmalloc-64/validate", "1") == 1
    assert refused(files.write, base + "kmalloc-32/validate", "1") == errno.EINVAL
    assert files.read(base + "kmalloc-64/store_user") == "1\n"
    assert refused(files.write, base + "kmalloc-64/cpu_partial", "5") == errno.EINVAL


def test_aliases_are_links():
    files = Files(cmdline="slab_merge")
    slub = files.kernel.slub
    slub.kmem_cache_create("one", 1000)
    slub.kmem_cache_create("two", 1000)
    entries = files.names("/sys/kernel/slab")
    assert entries["one"].is_link
    assert files.tree.readlink(entries["two"], Caller()) == ":0001000"
    assert files.read("/sys/kernel/slab/two/aliases") == "1\n"
    assert not entries["kmalloc-64"].is_link


def test_traces_of_a_debugged_cache():
    files = Files(cmdline="slub_debug=U,kmalloc-512,kmalloc-256")
    slub, context = files.kernel.slub, files.kernel.context
    base = "/sys/kernel/debug/slab/"
    assert set(files.names(base)) == {"kmalloc-512", "kmalloc-256"}
    slub.kfree_bulk(slub.kmalloc_bulk(512, GFP_KERNEL, 3000))
    context.site = files.kernel.depot.save(("leaky_probe+0x2a[leaky]", "do_one_initcall"))
    objects = slub.kmalloc_bulk(500, GFP_KERNEL, 2000)
    context.now += 1_000_000_000
    text = files.read(base + "kmalloc-512/alloc_traces")
    first, *stack = text.split("\n\n")[0].splitlines()
    pid = context.pid
    assert first == f"   2000 leaky_probe+0x2a/0x30 [leaky] waste=24000/12 age=250/250/250 pid={pid} cpus=0"
    assert [line.split("+")[0] for line in stack] == [
        "        __kmalloc",
        "        leaky_probe",
        "        do_one_initcall",
    ]
    slub.kfree_bulk(objects)
    assert "leaky_probe" not in files.read(base + "kmalloc-512/alloc_traces")
    assert files.names(base + "kmalloc-256")["free_traces"].entry.mode == 0o400
    assert refused(files.node, base + "kmalloc-64") == errno.ENOENT


def test_32_bits_have_no_nodes():
    files = Files(arch="i386")
    names = files.names("/sys/kernel/slab/kmalloc-64")
    assert "remote_node_defrag_ratio" not in names
    files.kernel.slub.kmalloc(64)
    assert " N" not in files.read("/sys/kernel/slab/kmalloc-64/slabs")


def test_every_view_is_declared():
    assert "slab" in views.__all__


def test_ten_reports_of_missing_memory_in_five_seconds():
    system = System.boot(cmdline="mem=64M")
    system.command("kmem_cache_create probe 5000")
    with pytest.raises(OSError, match="EAGAIN"):
        system.command("alloc_pages n=100000 gfp=GFP_NOWAIT|__GFP_NOWARN")
    before = system.read("/kmemd/dmesg").count(b"SLUB: Unable to allocate memory")
    for _ in range(60):
        with contextlib.suppress(OSError):
            system.command("kmem_cache_alloc probe gfp=GFP_NOWAIT")
    assert system.read("/kmemd/dmesg").count(b"SLUB: Unable to allocate memory") - before == 10
