"""Whoever has knobs, for ``views.sysctl`` to mount (kernel/sysctl.c).

A part of ``kernel.py`` in a module of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kmemd.machine import UTS_RELEASE
from kmemd.mm.drop_caches import DropCaches
from kmemd.mm.kernel_sysctl import KernelSysctl
from kmemd.mm.ksm import Ksm
from kmemd.mm.vmstat_sysctl import VmStatSysctl
from kmemd.tunable import Tuned

if TYPE_CHECKING:
    from kmemd.kernel import Kernel


def make_kernel_sysctl(kernel: Kernel) -> KernelSysctl:
    """``kernel.*``."""
    machine = kernel.machine
    return KernelSysctl(
        UTS_RELEASE,
        machine.build,
        kernel.cmdline,
        kernel.tasks,
        machine.cpus,
        kernel.totalram_pages,
        kernel.rng,
        kernel.taint,
        long_bits=machine.long_bits,
        crng_ready=kernel.crng_ready,
    )


def make_tuned(kernel: Kernel) -> list[Tuned]:
    """All who have knobs; a twin has the settings of its original."""
    machine, bits = kernel.machine, kernel.machine.long_bits
    tuned: list[Tuned] = [
        kernel.huge_memory,
        kernel.watermarks,
        kernel.vmscan,
        kernel.compaction,
        kernel.page_writeback,
        kernel.oom_kill,
        kernel.hugetlb,
        kernel.swap,
        kernel.mmap,
        Ksm(numa=machine.numa, long_bits=bits),
        kernel.mempolicy,
        DropCaches(
            kernel.context,
            kernel.vmstat,
            kernel.printk,
            kernel.user.files.drop_pagecache,
            lambda: kernel.user.page_reclaim.shrinkers.drop_slab([node.nid for node in kernel.nodes]),
            long_bits=bits,
        ),
        VmStatSysctl(long_bits=bits),
        kernel.kernel_sysctl,
        kernel.bad_area,
        kernel.file_table,
        kernel.user.swap_storage.zswap,
        kernel.set_memory,
        kernel.fail_slab,
        kernel.fail_page_alloc,
        *kernel.tuned_by_user,
    ]
    if machine.capture is not None and machine.is_twin:
        for owner in tuned:
            owner.restore(machine.capture.sysctls)
    return tuned
