"""The numbers that programs pass to the calls of address spaces (include/uapi/asm-generic/mman*.h, linux/mman.h)."""

from __future__ import annotations

PROT_READ, PROT_WRITE, PROT_EXEC, PROT_SEM = 1, 2, 4, 8
PROT_GROWSDOWN, PROT_GROWSUP = 0x01000000, 0x02000000

MAP_SHARED, MAP_PRIVATE, MAP_SHARED_VALIDATE, MAP_TYPE = 1, 2, 3, 0xF
MAP_FIXED, MAP_ANONYMOUS, MAP_32BIT, MAP_GROWSDOWN = 0x10, 0x20, 0x40, 0x100
MAP_DENYWRITE, MAP_EXECUTABLE, MAP_LOCKED, MAP_NORESERVE = 0x800, 0x1000, 0x2000, 0x4000
MAP_POPULATE, MAP_NONBLOCK, MAP_STACK, MAP_HUGETLB = 0x8000, 0x10000, 0x20000, 0x40000
MAP_SYNC, MAP_FIXED_NOREPLACE = 0x80000, 0x100000
MAP_HUGE_SHIFT, MAP_HUGE_MASK = 26, 0x3F

MREMAP_MAYMOVE, MREMAP_FIXED, MREMAP_DONTUNMAP = 1, 2, 4
MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT = 1, 2, 4
MLOCK_ONFAULT = 1
MS_ASYNC, MS_INVALIDATE, MS_SYNC = 1, 2, 4

MADV_NORMAL, MADV_RANDOM, MADV_SEQUENTIAL, MADV_WILLNEED, MADV_DONTNEED = range(5)
MADV_FREE, MADV_REMOVE, MADV_DONTFORK, MADV_DOFORK, MADV_MERGEABLE, MADV_UNMERGEABLE = range(8, 14)
MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_DONTDUMP, MADV_DODUMP, MADV_WIPEONFORK, MADV_KEEPONFORK = range(14, 20)
MADV_COLD, MADV_PAGEOUT, MADV_POPULATE_READ, MADV_POPULATE_WRITE, MADV_DONTNEED_LOCKED, MADV_COLLAPSE = range(20, 26)

PROT_NAMES = {"PROT_NONE": 0, "PROT_READ": PROT_READ, "PROT_WRITE": PROT_WRITE, "PROT_EXEC": PROT_EXEC}
PROT_NAMES |= {"PROT_SEM": PROT_SEM, "PROT_GROWSDOWN": PROT_GROWSDOWN, "PROT_GROWSUP": PROT_GROWSUP}

MAP_NAMES = {
    name: value
    for name, value in dict(globals()).items()
    if name.startswith("MAP_") and name not in ("MAP_TYPE", "MAP_HUGE_SHIFT", "MAP_HUGE_MASK")
}
MAP_NAMES |= {f"MAP_HUGE_{text}": shift << MAP_HUGE_SHIFT for text, shift in (("2MB", 21), ("4MB", 22), ("1GB", 30))}
MREMAP_NAMES = {name: value for name, value in dict(globals()).items() if name.startswith("MREMAP_")}
MCL_NAMES = {name: value for name, value in dict(globals()).items() if name.startswith("MCL_")}
MS_NAMES = {name: value for name, value in dict(globals()).items() if name.startswith("MS_")}
MADV_NAMES = {name: value for name, value in dict(globals()).items() if name.startswith("MADV_")}
