"""A process' memory as text: maps, smaps, smaps_rollup, numa_maps (fs/proc/task_mmu.c).

The figures are those of the task's mappings: resident anonymous pages are dirty and private; resident file pages
are tmpfs pages, dirty, and shared when more than one process maps them.
"""

from __future__ import annotations

from collections.abc import Iterator

from kmemd.kernel import Kernel
from kmemd.mm.sched import Mapping, Task
from kmemd.mm.units import KIB_PER_PAGE
from kmemd.views.meminfo import show_val_kb

NAME_COLUMN = {"x86_64": 73, "i386": 49}
ROOTFS_DEVICE = "00:02"
SPECIAL = ("[vvar]", "[vdso]")
SMAPS_FIELDS = (
    *("Rss", "Pss", "Pss_Dirty", "Shared_Clean", "Shared_Dirty", "Private_Clean", "Private_Dirty"),
    *("Referenced", "Anonymous", "LazyFree", "AnonHugePages", "ShmemPmdMapped", "FilePmdMapped"),
    *("Shared_Hugetlb", "Private_Hugetlb", "Swap", "SwapPss", "Locked"),
)
ROLLUP_EXTRA = ("Pss_Anon", "Pss_File", "Pss_Shmem")


def map_line(arch: str, mapping: Mapping) -> str:
    """The header line of a mapping."""
    digits = 8
    device = ROOTFS_DEVICE if mapping.inode else "00:00"
    line = f"{mapping.start:0{digits}x}-{mapping.end:0{digits}x} {mapping.perms} {mapping.offset:08x} {device} "
    line += f"{mapping.inode} "
    return line.ljust(NAME_COLUMN[arch]) + mapping.name + "\n" if mapping.name else line + "\n"


def maps(kernel: Kernel, task: Task) -> Iterator[str]:
    """A line for each mapping."""
    for mapping in task.mappings:
        yield map_line(kernel.machine.arch, mapping)


def counts(mapping: Mapping) -> dict[str, int]:
    """The smaps figures of a mapping in KiB; those that are not named are zero."""
    anon, file = mapping.anon_pages * KIB_PER_PAGE, mapping.file_pages * KIB_PER_PAGE
    pss_file = file // mapping.sharers
    shared = mapping.sharers > 1
    pss = anon + pss_file
    return {
        "Rss": anon + file,
        "Pss": pss,
        "Pss_Dirty": pss,
        "Shared_Dirty": file if shared else 0,
        "Private_Dirty": anon if shared else anon + file,
        "Referenced": anon + file,
        "Anonymous": anon,
        "Pss_Anon": anon,
        "Pss_Shmem": pss_file,
    }


def vm_flags(mapping: Mapping) -> str:
    """Two letters for each property."""
    if mapping.name == "[vvar]":
        return "rd mr pf io de dd "
    if mapping.name == "[vdso]":
        return "rd ex mr mw me de "
    flags = [name for letter, name in zip("rwx", ("rd", "wr", "ex"), strict=True) if letter in mapping.perms]
    flags += ["mr", "mw", "me"]
    flags += ["gd"] if mapping.name == "[stack]" else []
    flags += ["ac"] if mapping.accounted else []
    return " ".join(flags) + " "


def smaps(kernel: Kernel, task: Task) -> Iterator[str]:
    """Each mapping with what of it is resident."""
    for mapping in task.mappings:
        yield map_line(kernel.machine.arch, mapping)
        yield show_val_kb("Size", mapping.pages * KIB_PER_PAGE)
        yield show_val_kb("KernelPageSize", KIB_PER_PAGE)
        yield show_val_kb("MMUPageSize", KIB_PER_PAGE)
        figures = counts(mapping)
        for name in SMAPS_FIELDS:
            yield show_val_kb(name, figures.get(name, 0))
        yield f"THPeligible:    0\nVmFlags: {vm_flags(mapping)}\n"


def smaps_rollup(kernel: Kernel, task: Task) -> Iterator[str]:
    """The sums over all mappings."""
    if not task.mappings:
        return
    arch = kernel.machine.arch
    yield map_line(arch, Mapping(task.mappings[0].start, task.mappings[-1].end, "---p", "[rollup]"))
    figures = [counts(mapping) for mapping in task.mappings]
    names = list(SMAPS_FIELDS)
    names[3:3] = ROLLUP_EXTRA
    for name in names:
        yield show_val_kb(name, sum(figure.get(name, 0) for figure in figures))


def numa_maps(kernel: Kernel, task: Task) -> Iterator[str]:
    """Policy and pages per node of each mapping; boot's processes live on node 0."""
    for mapping in task.mappings:
        words = [f"{mapping.start:08x}", "default"]
        if mapping.inode:
            words.append(f"file={mapping.name}")
        elif mapping.name in ("[heap]", "[stack]"):
            words.append(mapping.name.strip("[]"))
        if mapping.rss and mapping.name not in SPECIAL:
            words += _numa_words(kernel, task, mapping)
        yield " ".join(words) + "\n"


def _numa_words(kernel: Kernel, task: Task, mapping: Mapping) -> Iterator[str]:
    if mapping.anon_pages:
        yield f"anon={mapping.anon_pages}"
    yield f"dirty={mapping.rss}"
    if mapping.file_pages and mapping.sharers > 1:
        yield f"mapmax={mapping.sharers}"
    nid = kernel.machine.cpu_nodes[task.cpu]
    yield f"N{nid}={mapping.rss}"
    yield f"kernelpagesize_kB={KIB_PER_PAGE}"
