"""The page allocator's knobs as rows (mm/page_alloc.c, kernel/sysctl.c ``vm_table``, Linux 6.1).

The owner has one attribute per row and the methods that ``on_change`` names:

- ``on_min_free_kbytes``: the value is the user's from now on, and watermarks follow;
- ``on_watermark_scale_factor``: watermarks follow;
- ``on_lowmem_reserve_ratio``: ratios below 1 become 0, the protection follows;
- ``on_percpu_pagelist_high_fraction``: the per-cpu lists' high and batch follow;
- ``on_numa_stat``: NUMA counters are kept, or cleared and no longer kept.

``numa`` says whether the kernel is built for NUMA.
"""

from __future__ import annotations

import errno

from kmemd.errors import KernelError
from kmemd.mm import kstrtox
from kmemd.mm.sysctl_handlers import (
    proc_dointvec_minmax,
    proc_dointvec_vector,
    show_string,
    show_vector,
    vm_knob,
)
from kmemd.tunable import PartialWriteError, Tunable

MIN_PERCPU_PAGELIST_HIGH_FRACTION = 8


def parse_high_fraction(text: str, current: int, tunable: Tunable) -> tuple[int, int]:
    """0 (by the low watermark), or at least 8. EINVAL."""
    value, taken = proc_dointvec_minmax(text, current, tunable)
    if 0 < value < MIN_PERCPU_PAGELIST_HIGH_FRACTION:
        raise KernelError(errno.EINVAL, f"{tunable.path} takes 0 or at least {MIN_PERCPU_PAGELIST_HIGH_FRACTION}")
    return value, taken


def parse_lowmem_reserve_ratio(text: str, current: list[int], tunable: Tunable) -> tuple[list[int], int]:
    """One ratio per zone. The kernel drops the parser's verdict: what was readable counts, all is taken."""
    try:
        return proc_dointvec_vector(text, current, tunable)
    except PartialWriteError as partial:
        return partial.value, len(kstrtox.to_bytes(text))
    except KernelError:
        return list(current), len(kstrtox.to_bytes(text))


def parse_numa_zonelist_order(text: str, current: str, tunable: Tunable) -> tuple[str, int]:
    """A word that begins with d or n is taken and means nothing; there is one order. EINVAL."""
    data = kstrtox.to_bytes(text)
    if data[:1].lower() not in (b"d", b"n"):
        raise KernelError(errno.EINVAL, f"{tunable.path} takes Default or Node")
    return current, len(data)


PAGE_ALLOC_TUNABLES = (
    vm_knob("min_free_kbytes", min=0, on_change="on_min_free_kbytes"),
    vm_knob("watermark_boost_factor", min=0),
    vm_knob("watermark_scale_factor", min=1, max=3000, on_change="on_watermark_scale_factor"),
    vm_knob("lowmem_reserve_ratio", parse_lowmem_reserve_ratio, show_vector, on_change="on_lowmem_reserve_ratio"),
    vm_knob("percpu_pagelist_high_fraction", parse_high_fraction, min=0, on_change="on_percpu_pagelist_high_fraction"),
    vm_knob("numa_zonelist_order", parse_numa_zonelist_order, show_string, when="numa"),
    vm_knob("numa_stat", min=0, max=1, on_change="on_numa_stat", when="numa"),
    vm_knob("min_unmapped_ratio", min=0, max=100, when="numa"),
    vm_knob("min_slab_ratio", min=0, max=100, when="numa"),
)
