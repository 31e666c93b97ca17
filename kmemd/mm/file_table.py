"""How many files may be open: fs.file-max (fs/file_table.c ``files_maxfiles_init``).

Left out: open files themselves, so nothing ever reaches the limit.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from kmemd.mm.sysctl_handlers import proc_doulongvec_minmax, show_number
from kmemd.tunable import Tunable, Tuned

NR_FILE = 8192


class FileTable(Tuned):
    """``total_kb`` is the memory that the page allocator manages, ``taken_kb`` what of it is in use by then."""

    TUNABLES: ClassVar[tuple[Tunable, ...]] = (
        Tunable("proc/sys/fs/file-max", "max_files", show_number, proc_doulongvec_minmax, min=0),
    )

    def __init__(self, total_kb: int, taken_kb: int, *, long_bits: int = 64) -> None:
        self.long_bits = long_bits
        self.max_files = max((total_kb - min(taken_kb * 3 // 2, total_kb)) // 10, NR_FILE)

    def knob(self, tunable: Tunable) -> Tunable | None:
        """The row on this machine; the most is LONG_MAX."""
        row = super().knob(tunable)
        return None if row is None else replace(row, max=(1 << (self.long_bits - 1)) - 1)
