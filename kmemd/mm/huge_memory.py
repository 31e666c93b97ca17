"""Transparent huge pages: switches, khugepaged's knobs, and what they allow (mm/huge_memory.c, mm/khugepaged.c).

Models: the defaults by memory size and command line, that khugepaged raises min_free_kbytes when it starts and
gives it back when it stops, which mappings may have huge pages (``hugepage_vma_check``) and how hard the allocator may
try for them. Faults and entries are ``mm/huge_pmd.py``, splitting is ``mm/huge_split.py``.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

from kmemd.errors import KernelError
from kmemd.mm import gfp as g
from kmemd.mm import kstrtox
from kmemd.mm import mm_types as mt
from kmemd.mm.mm_types import Vma
from kmemd.mm.params import CommandLine
from kmemd.mm.sysctl_handlers import refuse, show_number
from kmemd.mm.sysfs_handlers import choice, einval, show_choice, store_uint, store_ulong
from kmemd.mm.units import PAGE_SHIFT, PAGE_SIZE
from kmemd.tunable import Tunable, Tuned

ENABLED = ("always", "madvise", "never")
DEFRAG = ("always", "defer", "defer+madvise", "madvise", "never")
SHMEM = ("always", "within_size", "advise", "never", "deny", "force")
SHMEM_SIZE = 16
SMALL_MEMORY_PAGES = 512 << 8
"""Below 512 MiB everything about transparent huge pages is off."""


def _store_shmem(text: str, _current: str, tunable: Tunable) -> tuple[str, int]:
    data = kstrtox.to_bytes(text)
    word = kstrtox.c_string(data.removesuffix(b"\n")).decode("latin-1")
    if len(data) + 1 > SHMEM_SIZE or word not in SHMEM:
        raise KernelError(errno.EINVAL, f"{tunable.path} takes {', '.join(SHMEM)}")
    return word, len(data)


def _row(name: str, show: Any, parse: Any, **more: Any) -> Tunable:
    attr = more.pop("attr", name)
    mode = 0o444 if parse is refuse else 0o644
    return Tunable(f"sys/kernel/mm/transparent_hugepage/{name}", attr, show, parse, mode, **more)


def _daemon(name: str, parse: Any = store_uint, **more: Any) -> Tunable:
    return _row(f"khugepaged/{name}", show_number, parse, attr=more.pop("attr", name), **more)


class HugeMemory(Tuned):
    """Transparent huge pages of one machine.

    ``set_recommended_min_free_kbytes(enabled)`` is the allocator's; ``totalram_pages`` what it manages at boot.
    """

    TUNABLES: ClassVar[tuple[Tunable, ...]] = (
        _row("enabled", show_choice(*ENABLED), choice(*ENABLED), on_change="start_stop_khugepaged"),
        _row("defrag", show_choice(*DEFRAG), choice(*DEFRAG)),
        _row("use_zero_page", show_number, store_ulong, max=1),
        _row("hpage_pmd_size", show_number, refuse),
        _row("shmem_enabled", show_choice(*SHMEM), _store_shmem),
        _daemon("alloc_sleep_millisecs", on_change="wake_khugepaged"),
        _daemon("defrag", store_ulong, attr="khugepaged_defrag", max=1),
        _daemon("full_scans", refuse),
        _daemon("max_ptes_none", einval(store_ulong)),
        _daemon("max_ptes_shared", einval(store_ulong)),
        _daemon("max_ptes_swap", einval(store_ulong)),
        _daemon("pages_collapsed", refuse),
        _daemon("pages_to_scan", min=1),
        _daemon("scan_sleep_millisecs", on_change="wake_khugepaged"),
    )

    def __init__(
        self,
        cmdline: CommandLine,
        totalram_pages: int,
        hpage_pmd_nr: int,
        set_recommended_min_free_kbytes: Callable[[bool], None],
        *,
        long_bits: int = 64,
    ) -> None:
        self._set_recommended_min_free_kbytes = set_recommended_min_free_kbytes
        self._hpage_pmd_nr = hpage_pmd_nr
        self._wake: Callable[[], None] = lambda: None
        self.generation = 0
        """Counts the changes of ``enabled``: what follows from it is made anew."""
        self.long_bits = long_bits
        big = totalram_pages >= SMALL_MEMORY_PAGES
        wanted = cmdline.get("transparent_hugepage")
        self.enabled = (wanted if wanted in ENABLED else "always") if big else "never"
        self.defrag = "madvise" if big else "never"
        self.use_zero_page = int(big)
        self.khugepaged_defrag = int(big)
        self.shmem_enabled = "never"
        self.alloc_sleep_millisecs = 60_000
        self.scan_sleep_millisecs = 10_000
        self.pages_to_scan = hpage_pmd_nr * 8
        self.max_ptes_none = hpage_pmd_nr - 1
        self.max_ptes_swap = hpage_pmd_nr // 8
        self.max_ptes_shared = hpage_pmd_nr // 2
        self.full_scans = 0
        self.pages_collapsed = 0
        if big:
            self.start_stop_khugepaged()

    @property
    def hpage_pmd_size(self) -> int:
        """Bytes of a transparent huge page."""
        return self._hpage_pmd_nr * PAGE_SIZE

    @property
    def khugepaged_runs(self) -> bool:
        """Whether the daemon is there."""
        return self.enabled != "never"

    def knob(self, tunable: Tunable) -> Tunable | None:
        """The row on this machine; max_ptes_* are below the small pages of a huge one."""
        row = super().knob(tunable)
        if row is not None and row.attr.startswith("max_ptes_"):
            return replace(row, max=self._hpage_pmd_nr - 1)
        return row

    def start_stop_khugepaged(self) -> None:
        """The switch was set: the daemon starts or stops, and min_free_kbytes follows."""
        self.generation += 1
        self._set_recommended_min_free_kbytes(self.khugepaged_runs)
        self._wake()

    def wake_khugepaged(self) -> None:
        """How long the daemon sleeps was set: it wakes up."""
        self._wake()

    def when_started(self, wake: Callable[[], None]) -> None:
        """``wake`` is called whenever the switch or a sleep was set: khugepaged looks at it."""
        self._wake = wake

    # -- what is allowed ---------------------------------------------------------------------------------

    @property
    def pages(self) -> int:
        """Small pages of a huge one."""
        return self._hpage_pmd_nr

    def suitable(self, vma: Vma, vpn: int) -> bool:
        """Whether the huge page around a page number lies in a mapping, and its file is in step
        (``transhuge_vma_suitable``)."""
        if not vma.is_anon and (vma.vpn - vma.pgoff) % self.pages:
            return False
        first = vpn & -self.pages
        return first >= vma.vpn and first + self.pages <= vma.end >> PAGE_SHIFT

    def allowed(self, vma: Vma, *, fault: bool = False, smaps: bool = False, enforce: bool = True) -> bool:
        """Whether a mapping may have huge pages (``hugepage_vma_check``).

        A ``fault`` asks, or ``smaps``, or else khugepaged. ``enforce``: the switch counts; MADV_COLLAPSE works without.
        """
        flags = vma.flags
        if flags & (mt.VM_NOHUGEPAGE | mt.VM_SPECIAL | mt.VM_HUGETLB) or vma.name in ("[vdso]", "[vvar]"):
            return False
        if not fault and not self.suitable(vma, (vma.end >> PAGE_SHIFT) - self.pages):
            return False
        if not fault and vma.file is not None and vma.file.is_shmem:
            return self._shmem_allowed(vma, enforce=enforce)
        if enforce and self.enabled != "always" and not (self.enabled == "madvise" and flags & mt.VM_HUGEPAGE):
            return False
        return vma.is_anon and (vma.anon_vma is not None or fault or smaps)

    def _shmem_allowed(self, vma: Vma, *, enforce: bool) -> bool:
        """``shmem_huge_enabled``."""
        assert vma.file is not None
        if not enforce or self.shmem_enabled in ("always", "force"):
            return self.shmem_enabled != "deny"
        if self.shmem_enabled == "within_size":
            return vma.file.pages >= -(-(vma.pgoff + 1) // self.pages) * self.pages
        return self.shmem_enabled == "advise" and bool(vma.flags & mt.VM_HUGEPAGE)

    def fault_gfp(self, vma: Vma) -> int:
        """How hard a fault may try for a huge page, by the defrag mode (``vma_thp_gfp_mask``)."""
        advised = vma.flags & mt.VM_HUGEPAGE
        if self.defrag == "always":
            return g.GFP_TRANSHUGE | (0 if advised else g.F.NORETRY)
        if self.defrag == "defer":
            return g.GFP_TRANSHUGE_LIGHT | g.F.KSWAPD_RECLAIM
        if self.defrag == "defer+madvise":
            return g.GFP_TRANSHUGE_LIGHT | (g.F.DIRECT_RECLAIM if advised else g.F.KSWAPD_RECLAIM)
        if self.defrag == "madvise" and advised:
            return g.GFP_TRANSHUGE_LIGHT | g.F.DIRECT_RECLAIM
        return g.GFP_TRANSHUGE_LIGHT

    def collapse_gfp(self) -> int:
        """How hard khugepaged tries (``alloc_hugepage_khugepaged_gfpmask``)."""
        return g.GFP_TRANSHUGE if self.khugepaged_defrag else g.GFP_TRANSHUGE_LIGHT
