"""Virtual memory accounting and the knobs of address spaces (mm/util.c, mm/mmap.c, security/min_addr.c).

Models: overcommit policy and CommitLimit, the reserves for root and the user, max_map_count, mmap_min_addr and
the layout switches. ``committed`` is the pages that processes have been promised; it is exact where Linux sums
counters of CPUs. Mappings themselves are ``mmap_region``'s.

The reserves are a 32nd of what is free when ``subsys_initcall`` runs. Boot has then taken ``INIT_USED_KB`` and some
for each CPU, each GiB, and the hash tables that several nodes get by vmalloc; the three constants solve the
three captured machines whose reserve is below its cap, and stand in docs/fidelity.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

from kmemd.mm.sysctl_handlers import proc_doulongvec_minmax, vm_knob
from kmemd.mm.units import KIB_PER_PAGE
from kmemd.tunable import Tunable, Tuned

KB_PER_GIB = 1 << 20
INIT_USED_KB = 4620
INIT_USED_KB_PER_CPU = 2672
INIT_USED_KB_PER_GIB = 170
MAX_ADMIN_RESERVE_KB = 1 << 13
MAX_USER_RESERVE_KB = 1 << 17
DEFAULT_MAX_MAP_COUNT = 65530
DEFAULT_MMAP_MIN_ADDR = 4096
OVERCOMMIT_GUESS, OVERCOMMIT_ALWAYS, OVERCOMMIT_NEVER = range(3)
RND_BITS = {64: (28, 32), 32: (8, 16)}
"""Least and most random bits of a mapping's address; boot takes the least."""


def free_kb_at_init(total_kb: int, cpus: int, hash_tables_kb: int) -> int:
    """KiB free when the reserves are computed, of ``total_kb`` that the page allocator manages."""
    used = INIT_USED_KB + INIT_USED_KB_PER_CPU * cpus + INIT_USED_KB_PER_GIB * total_kb // KB_PER_GIB
    return max(total_kb - used - hash_tables_kb, 0)


class Mmap(Tuned):
    """``free_kb`` is ``free_kb_at_init``'s; the callables give pages: of RAM, in huge page pools, of swap."""

    TUNABLES: ClassVar[tuple[Tunable, ...]] = (
        vm_knob("overcommit_memory", min=0, max=2),
        vm_knob("overcommit_ratio", on_change="on_overcommit_ratio"),
        vm_knob("overcommit_kbytes", proc_doulongvec_minmax, on_change="on_overcommit_kbytes"),
        vm_knob("max_map_count", min=0),
        vm_knob("legacy_va_layout", min=0),
        vm_knob("mmap_min_addr", proc_doulongvec_minmax),
        vm_knob("vdso_enabled", when="has_vdso_switch"),
        vm_knob("user_reserve_kbytes", proc_doulongvec_minmax),
        vm_knob("admin_reserve_kbytes", proc_doulongvec_minmax),
        vm_knob("mmap_rnd_bits", mode=0o600),
    )

    def __init__(
        self,
        free_kb: int,
        totalram_pages: Callable[[], int],
        hugetlb_pages: Callable[[], int],
        swap_pages: Callable[[], int],
        *,
        long_bits: int = 64,
    ) -> None:
        self._totalram_pages = totalram_pages
        self._hugetlb_pages = hugetlb_pages
        self._swap_pages = swap_pages
        self.long_bits = long_bits
        self.has_vdso_switch = long_bits == 32
        self.overcommit_memory = OVERCOMMIT_GUESS
        self.overcommit_ratio = 50
        self.overcommit_kbytes = 0
        self.max_map_count = DEFAULT_MAX_MAP_COUNT
        self.legacy_va_layout = 0
        self.mmap_min_addr = DEFAULT_MMAP_MIN_ADDR
        self.vdso_enabled = 1
        self.mmap_rnd_bits = RND_BITS[long_bits][0]
        self.committed = 0
        self.user_reserve_kbytes = min(free_kb // 32, MAX_USER_RESERVE_KB)
        self.admin_reserve_kbytes = min(free_kb // 32, MAX_ADMIN_RESERVE_KB)

    def knob(self, tunable: Tunable) -> Tunable | None:
        """The row on this machine; the bounds of mmap_rnd_bits are the architecture's."""
        row = super().knob(tunable)
        if row is not None and row.attr == "mmap_rnd_bits":
            least, most = RND_BITS[self.long_bits]
            row = replace(row, min=least, max=most)
        return row

    def on_overcommit_ratio(self) -> None:
        """The ratio counts from now on."""
        self.overcommit_kbytes = 0

    def on_overcommit_kbytes(self) -> None:
        """The size counts from now on."""
        self.overcommit_ratio = 0

    def commit_limit(self) -> int:
        """Pages that may be promised in all under strict overcommit (``vm_commit_limit``)."""
        if self.overcommit_kbytes:
            allowed = self.overcommit_kbytes // KIB_PER_PAGE
        else:
            modulus = 1 << self.long_bits
            ordinary = self._totalram_pages() - self._hugetlb_pages()
            allowed = ordinary * (self.overcommit_ratio % modulus) % modulus // 100
        return allowed + self._swap_pages()

    def enough_memory(self, pages: int, total_vm: int, *, root: bool) -> bool:
        """Promise pages to an address space of ``total_vm`` pages, when the policy allows (``__vm_enough_memory``)."""
        self.committed += pages
        if self.overcommit_memory == OVERCOMMIT_ALWAYS:
            return True
        if self.overcommit_memory == OVERCOMMIT_GUESS:
            if pages <= self._totalram_pages() + self._swap_pages():
                return True
        else:
            allowed = self.commit_limit() - min(total_vm // 32, self.user_reserve_kbytes // KIB_PER_PAGE)
            if not root:
                allowed -= self.admin_reserve_kbytes // KIB_PER_PAGE
            if max(self.committed, 0) < allowed:
                return True
        self.committed -= pages
        return False

    def unaccount(self, pages: int) -> None:
        """Take a promise back (``vm_unacct_memory``)."""
        self.committed -= pages
