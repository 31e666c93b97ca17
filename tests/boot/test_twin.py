"""A twin shows the captured free lists, page blocks and slabs, and is a machine that works."""

import shutil
from pathlib import Path

import pytest

from kmemd import System
from kmemd.capture import Capture, parse_zoneinfo
from kmemd.core.pages import ALLOCATED
from kmemd.machine import Machine, MachineError

BOOT = Path(__file__).parents[1] / "captures" / "linux-6.1" / "boot"
MACHINES = sorted(path.name for path in BOOT.iterdir() if path.is_dir())


def read(system, path):
    return system.read(path).decode()


@pytest.mark.parametrize("name", MACHINES)
def test_the_files_are_the_captured_ones(name):
    system = System.boot(BOOT / name)
    for path in ("proc/buddyinfo", "proc/pagetypeinfo", "proc/slabinfo", "proc/cmdline", "proc/iomem"):
        if path == "proc/buddyinfo" or (BOOT / name / path).exists():
            assert read(system, f"/{path}") == (BOOT / name / path).read_text(), path
    assert system.kernel.machine.capture.notes == list(system.kernel.machine.notes)
    system.check()


@pytest.mark.parametrize("name", MACHINES)
def test_zoneinfo_has_the_captured_zones(name):
    system = System.boot(BOOT / name)
    captured = list(parse_zoneinfo((BOOT / name / "proc/zoneinfo").read_text()))
    model = list(parse_zoneinfo(read(system, "/proc/zoneinfo")))
    for ours, theirs in zip(model, captured, strict=True):
        assert (ours.nid, ours.name, ours.protection) == (theirs.nid, theirs.name, theirs.protection)
        assert ours.pcp_counts == theirs.pcp_counts
        for field in ("spanned", "present", "managed", "min", "low", "high", "nr_zone_active_anon", "start_pfn"):
            assert ours.fields.get(field) == theirs.fields.get(field), field
        # the kernel folds its per-CPU counters into "free" now and then; the lists have the truth
        assert abs(ours.fields["free"] - theirs.fields["free"]) < 256


def test_a_twin_goes_on_working():
    system = System.boot(BOOT / "x86_64-2node-4G-4cpu")
    before = read(system, "/proc/buddyinfo")
    system.command("p = alloc_pages order=0 n=20000 gfp=GFP_KERNEL")
    system.check()
    system.command("free_pages p")
    system.check()
    assert read(system, "/proc/buddyinfo") != before
    system.command("k = kmalloc 100 n=5000")
    system.check()


def copy_of(tmp_path, name, *without):
    folder = tmp_path / "machine"
    shutil.copytree(BOOT / name, folder)
    for path in without:
        target = folder / path
        shutil.rmtree(target) if target.is_dir() else target.unlink()
    return folder


def test_without_pagetypeinfo_buddyinfo_is_taken(tmp_path):
    folder = copy_of(tmp_path, "x86_64-2G-2cpu", "proc/pagetypeinfo", "proc/iomem", "proc/slabinfo")
    system = System.boot(folder)
    assert read(system, "/proc/buddyinfo") == (folder / "proc/buddyinfo").read_text()
    notes = "\n".join(system.kernel.machine.capture.notes)
    assert "proc/pagetypeinfo: not readable" in notes
    assert "proc/iomem: not readable" in notes
    assert "proc/slabinfo: not readable" in notes
    system.check()


def test_without_zoneinfo_a_machine_of_the_same_size_boots(tmp_path):
    folder = copy_of(tmp_path, "x86_64-2G-2cpu", "proc/zoneinfo", "sys")
    machine = Machine.from_capture(folder)
    assert not machine.is_twin
    assert "proc/zoneinfo: not readable" in machine.notes[0]
    assert System.boot(machine).kernel.totalram_pages() > 480_000


def test_a_folder_without_a_machine_is_refused(tmp_path):
    with pytest.raises(MachineError, match="proc/ and sys/"):
        Machine.from_capture(tmp_path)
    (tmp_path / "proc").mkdir()
    with pytest.raises(MachineError, match="neither proc/zoneinfo nor proc/meminfo"):
        Machine.from_capture(tmp_path)


def test_unknown_fields_and_zones_of_newer_kernels_are_passed_over(tmp_path):
    folder = copy_of(tmp_path, "x86_64-2G-2cpu")
    file = folder / "proc/zoneinfo"
    text = file.read_text().replace("        managed", "        promo    99\n        managed")
    device = "Node 0, zone   Device\n  pages free     0\n        spanned  0\n        present  0\n        managed  0\n"
    file.write_text(text + device)
    system = System.boot(folder)
    assert read(system, "/proc/buddyinfo") == (folder / "proc/buddyinfo").read_text()
    assert len(system.kernel.zones) == 4


def test_memory_that_no_zone_manages_yet_is_noted_and_not_in_use(tmp_path):
    """A kernel that initialises memory lazily: meminfo counts it, zoneinfo's managed does not."""
    folder = copy_of(tmp_path, "x86_64-2G-2cpu")
    zoneinfo = folder / "proc/zoneinfo"
    zoneinfo.write_text(zoneinfo.read_text().replace("managed  507498", "managed  501498"))
    system = System.boot(folder)
    kernel = system.kernel
    assert "24000 kB of MemTotal are in no zone yet" in "\n".join(kernel.machine.capture.notes)
    zone = kernel.zones[1]
    span = slice(zone.start_pfn, zone.end_pfn)
    orders = kernel.pages.order[span][kernel.pages.kind[span] == ALLOCATED]
    in_use = sum(1 << int(order) for order in orders)
    assert zone.managed == zone.free_pages + zone.pcp_pages + in_use
    system.check()


def test_sysctls_are_taken_over(tmp_path):
    folder = copy_of(tmp_path, "x86_64-2G-2cpu")
    (folder / "proc/sys/vm/swappiness").write_text("17\n")
    (folder / "proc/sys/vm/watermark_scale_factor").write_text("100\n")
    system = System.boot(folder)
    assert read(system, "/proc/sys/vm/swappiness") == "17\n"
    assert read(system, "/proc/sys/vm/watermark_scale_factor") == "100\n"


def test_slabs_of_another_geometry_are_taken_over(tmp_path):
    folder = copy_of(tmp_path, "x86_64-2G-2cpu")
    file = folder / "proc/slabinfo"
    row = "maple_sheaf          130    144    224   18    1 : tunables    0    0    0 : slabdata      8      8      0\n"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join([*lines[:2], row, *lines[2:]]))
    system = System.boot(folder)
    assert read(system, "/proc/slabinfo") == file.read_text()
    system.check()


def test_capture_of_this_very_machine():
    """Whatever the machine is that runs the tests: its twin boots, with its zones."""
    capture = Capture(Path("/"))
    if not any(zone.populated for zone in capture.zones):
        pytest.skip("/proc/zoneinfo is not readable here")
    system = System.boot("/")
    populated = [zone for zone in system.kernel.zones if zone.populated]
    wanted = [zone for zone in system.kernel.machine.capture.zones if zone.populated]
    assert [(zone.nid, zone.name) for zone in populated] == [(zone.nid, zone.name) for zone in wanted]
    system.check()
