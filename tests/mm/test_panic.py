"""The taint of the kernel: what reports, the sysctl and a warning make of it."""

from __future__ import annotations

import pytest

from kmemd.errors import KernelError
from kmemd.kernel import Kernel
from kmemd.machine import Machine
from kmemd.mm.panic import TAINT_BAD_PAGE, TAINT_DIE, Taint


def test_text_is_the_captured_one() -> None:
    taint = Taint()
    assert taint.text == "Not tainted"
    taint.add(TAINT_DIE)
    assert taint.text == "Tainted: G      D           "
    taint.add(TAINT_BAD_PAGE)
    assert taint.text == "Tainted: G    B D           "


def test_a_proprietary_module_takes_the_place_of_the_g() -> None:
    taint = Taint()
    taint.add(0)
    assert taint.text.startswith("Tainted: P ")


def test_what_goes_wrong_taints_and_shows() -> None:
    kernel = Kernel(Machine.load("default"))
    knob = next(row for row in kernel.kernel_sysctl.TUNABLES if row.path.endswith("/tainted"))
    assert kernel.kernel_sysctl.tainted == 0
    pfn = kernel.page_alloc.alloc_pages(0xCC0)
    kernel.page_alloc.free_pages(pfn)
    with pytest.raises(KernelError):
        kernel.page_alloc.free_pages(pfn)
    assert kernel.kernel_sysctl.tainted == 1 << TAINT_BAD_PAGE
    kernel.kernel_sysctl.tune(knob, str(1 << TAINT_DIE))
    kernel.dump_stack(())
    line = next(record.text for record in reversed(kernel.printk.since(0)) if record.text.startswith("CPU: "))
    assert "Tainted: G    B D" in line


def test_a_warning_has_the_captured_frame_of_lines() -> None:
    kernel = Kernel(Machine.load("default"))
    start = kernel.printk.next_seq
    kernel.dump_stack.warn(("__vunmap", "vfree"), "Trying to vfree() bad address")
    lines = [record.text for record in kernel.printk.since(start)]
    assert lines[0] == "------------[ cut here ]------------"
    assert lines[2].startswith("WARNING: CPU: 0 PID: 0 at __vunmap+0x")
    assert lines[3] == "Modules linked in:"
    assert lines[4].startswith("CPU: 0 PID: 0 Comm: ")
    assert lines[-1] == "---[ end trace 0000000000000000 ]---"
    assert "W" in kernel.taint.text
