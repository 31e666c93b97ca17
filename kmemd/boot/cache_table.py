"""The slab caches that a booted kernel has, oldest first, and how many objects boot leaves in them.

Names, sizes, flags and counts are those of the captured machines (Linux 6.1 on x86_64 and i386); docs/fidelity.md
says how the counts scale. A size is what ``kmem_cache_create`` is asked for: of the caches with a constructor
or with SLAB_TYPESAFE_BY_RCU, whose free pointer stands behind the object, that is one word less than what slabinfo
shows.
"""

from __future__ import annotations

from typing import NamedTuple

from kmemd.mm import slab_flags as sf

_FLAGS = {
    "H": sf.SLAB_HWCACHE_ALIGN,
    "R": sf.SLAB_RECLAIM_ACCOUNT,
    "A": sf.SLAB_ACCOUNT,
    "P": sf.SLAB_PANIC,
    "T": sf.SLAB_TYPESAFE_BY_RCU,
    "M": sf.SLAB_MEM_SPREAD,
    "L": sf.SLAB_NOLEAKTRACE,
}


class CacheRow(NamedTuple):
    """One cache. Sizes in bytes, 0 where the architecture's kernel has no such cache.

    ``flags``: H(wcache align), R(eclaim account), A(ccount), P(anic), T(ypesafe by RCU), M(em spread),
    no L(eak trace), c(onstructor). ``objects``: on the boot CPU; ``per_cpu``: on each further one.
    """

    name: str
    size_64: int
    size_32: int
    flags: str
    objects: int
    per_cpu: int

    def size(self, arch: str) -> int:
        """The object size on an architecture."""
        return self.size_64 if arch == "x86_64" else self.size_32

    @property
    def create_flags(self) -> int:
        """The SLAB_ flags."""
        return sum(_FLAGS[letter] for letter in self.flags if letter in _FLAGS)

    @property
    def ctor(self) -> str | None:
        """The constructor."""
        return "init_once" if "c" in self.flags else None


_ROWS = (
    ("kmemleak_object", 176, 112, "L", 27875, 1199),
    ("kmemleak_scan_area", 32, 16, "L", 128, 85),
    ("vmap_area", 64, 32, "P", 128, 50),
    ("mm_struct", 1024, 544, "HAP", 8, 13),
    ("radix_tree_node", 200, 104, "RP", 900, 40),
    ("maple_node", 256, 256, "P", 32, 11),
    ("pool_workqueue", 256, 256, "HP", 16, 6),
    ("ftrace_event_field", 56, 40, "P", 1752, 0),
    ("trace_event_file", 96, 56, "P", 546, 0),
    ("perf_event", 1008, 720, "P", 0, 0),
    ("numa_policy", 32, 0, "P", 128, 0),
    ("shared_policy_node", 48, 0, "P", 0, 0),
    ("Acpi-Namespace", 48, 32, "", 425, 0),
    ("Acpi-State", 80, 48, "", 153, 0),
    ("Acpi-Parse", 56, 32, "", 73, 0),
    ("Acpi-ParseExt", 80, 48, "", 51, 0),
    ("Acpi-Operand", 72, 48, "", 526, 7),
    ("pid", 128, 64, "HAP", 32, 32),
    ("anon_vma", 96, 52, "TAPc", 39, 26),
    ("anon_vma_chain", 64, 32, "AP", 64, 43),
    ("cred_jar", 192, 128, "HAP", 42, 21),
    ("task_struct", 3072, 2176, "AP", 30, 14),
    ("sighand_cache", 2104, 1308, "HPTAc", 30, 15),
    ("signal_cache", 1024, 640, "HAP", 32, 16),
    ("files_cache", 704, 224, "HAP", 11, 12),
    ("fs_cache", 64, 64, "HAP", 64, 43),
    ("vm_area_struct", 144, 72, "AP", 56, 9),
    ("nsproxy", 72, 40, "P", 56, 0),
    ("names_cache", 4096, 4096, "HP", 8, 8),
    ("dentry", 192, 128, "RAPM", 3948, 42),
    ("inode_cache", 568, 372, "RAPMc", 3598, 51),
    ("filp", 256, 160, "HAP", 16, 11),
    ("mnt_cache", 320, 160, "HAP", 24, 17),
    ("kernfs_node_cache", 128, 80, "P", 11912, 0),
    ("kernfs_iattrs_cache", 88, 64, "P", 0, 0),
    ("shmem_inode_cache", 712, 444, "APc", 330, 7),
    ("bdev_cache", 1208, 764, "HRAPMc", 26, 9),
    ("sigqueue", 80, 48, "AP", 51, 34),
    ("seq_file", 120, 72, "AP", 34, 11),
    ("proc_inode_cache", 640, 412, "RAPMc", 24, 17),
    ("pde_opener", 40, 24, "AP", 102, 34),
    ("proc_dir_entry", 192, 128, "AP", 210, 7),
    ("taskstats", 416, 416, "P", 0, 0),
    ("buffer_head", 104, 64, "RPM", 39, 0),
    ("file_lock_ctx", 56, 32, "AP", 0, 0),
    ("file_lock_cache", 216, 128, "AP", 0, 0),
    ("skbuff_head_cache", 256, 192, "HP", 16, 5),
    ("skbuff_fclone_cache", 448, 384, "HP", 0, 0),
    ("sock_inode_cache", 760, 476, "HRAPMc", 10, 11),
    ("uid_cache", 192, 96, "HP", 0, 0),
    ("ksm_rmap_item", 64, 32, "", 0, 0),
    ("ksm_stable_node", 64, 32, "", 0, 0),
    ("ksm_mm_slot", 48, 24, "", 0, 0),
    ("khugepaged_mm_slot", 112, 56, "P", 0, 0),
    ("biovec-16", 256, 192, "HP", 0, 0),
    ("biovec-64", 1024, 768, "HP", 0, 0),
    ("biovec-128", 2048, 1536, "HP", 0, 0),
    ("biovec-max", 4096, 3072, "HP", 40, 0),
    ("bio-120", 0, 128, "H", 64, 0),
    ("bio-160", 192, 0, "H", 21, 7),
    ("blkdev_ioc", 16, 16, "P", 0, 0),
    ("request_queue", 888, 536, "P", 18, 0),
    ("request_queue_srcu", 1264, 736, "P", 0, 0),
    ("sgpool-8", 256, 160, "H", 16, 0),
    ("sgpool-16", 512, 320, "H", 8, 3),
    ("sgpool-32", 1024, 640, "H", 8, 3),
    ("sgpool-64", 2048, 1280, "H", 8, 3),
    ("sgpool-128", 4096, 2560, "H", 8, 0),
    ("eventpoll_epi", 128, 96, "HAP", 0, 0),
    ("eventpoll_pwq", 64, 32, "AP", 0, 0),
    ("ep_head", 16, 8, "AP", 0, 0),
    ("bio-224", 256, 0, "H", 48, 0),
    ("hugetlbfs_inode_cache", 592, 380, "Ac", 13, 5),
    ("UNIX", 960, 640, "HA", 0, 0),
    ("UNIX-STREAM", 960, 640, "HA", 0, 0),
    ("posix_timers_cache", 256, 168, "AP", 0, 0),
    ("fasync_cache", 48, 32, "AP", 0, 0),
    ("dio", 640, 352, "P", 0, 0),
    ("aio_kiocb", 192, 128, "HP", 0, 0),
    ("kioctx", 576, 288, "HP", 0, 0),
    ("bio-152", 0, 160, "H", 25, 0),
    ("bio-72", 0, 96, "H", 84, 0),
    ("mbcache", 56, 0, "R", 0, 0),
    ("ext4_extent_status", 40, 0, "R", 0, 0),
    ("ext4_pending_reservation", 32, 0, "R", 0, 0),
    ("ext4_bio_post_read_ctx", 48, 0, "R", 170, 0),
    ("ext4_io_end", 64, 0, "R", 0, 0),
    ("ext4_io_end_vec", 32, 0, "R", 0, 0),
    ("ext4_system_zone", 40, 0, "R", 0, 0),
    ("ext4_prealloc_space", 104, 0, "R", 0, 0),
    ("ext4_allocation_context", 136, 0, "R", 0, 0),
    ("ext4_free_data", 56, 0, "R", 0, 0),
    ("ext4_inode_cache", 1088, 0, "RMAc", 0, 0),
    ("ext4_fc_dentry_update", 96, 0, "R", 0, 0),
    ("jbd2_revoke_record_s", 32, 0, "HR", 0, 0),
    ("jbd2_revoke_table_s", 16, 0, "", 0, 0),
    ("jbd2_journal_head", 112, 0, "T", 0, 0),
    ("jbd2_journal_handle", 56, 0, "R", 0, 0),
    ("jbd2_inode", 64, 0, "", 0, 0),
    ("jbd2_transaction_s", 256, 0, "RH", 0, 0),
    ("bio-96", 128, 0, "H", 64, 0),
    ("zswap_entry", 64, 40, "", 0, 0),
)
BOOT_CACHES = tuple(CacheRow(*row) for row in _ROWS)

OBJECTS_I386 = {
    "kmemleak_object": 23047,
    "kernfs_node_cache": 10571,
    "inode_cache": 2700,
    "dentry": 3062,
    "ftrace_event_field": 1224,
    "trace_event_file": 438,
    "radix_tree_node": 818,
}
"""Objects on the boot CPU where the i386 kernel, which has fewer subsystems, has clearly fewer."""

KMALLOC_OBJECTS: tuple[tuple[str, int, int], ...] = (
    ("kmalloc-8", 512, 512),
    ("kmalloc-16", 768, 256),
    ("kmalloc-32", 384, 150),
    ("kmalloc-64", 512, 88),
    ("kmalloc-96", 168, 4),
    ("kmalloc-128", 64, 47),
    ("kmalloc-192", 42, 23),
    ("kmalloc-256", 192, 33),
    ("kmalloc-512", 160, 27),
    ("kmalloc-1k", 88, 24),
    ("kmalloc-2k", 104, 5),
    ("kmalloc-4k", 16, 8),
    ("kmalloc-8k", 4, 2),
    ("kmalloc-cg-8", 512, 341),
    ("kmalloc-cg-16", 256, 85),
    ("kmalloc-cg-32", 128, 128),
    ("kmalloc-cg-96", 42, 14),
    ("kmalloc-cg-128", 32, 21),
    ("kmalloc-cg-192", 21, 21),
    ("kmalloc-cg-256", 16, 0),
    ("kmalloc-cg-512", 8, 8),
    ("kmalloc-cg-1k", 8, 13),
    ("kmalloc-cg-2k", 8, 8),
    ("kmalloc-cg-4k", 8, 3),
    ("kmalloc-rcl-64", 64, 0),
)
"""Cache, objects on the boot CPU, objects on each further one."""

KERNFS_PER_BLOCK = 12
KERNFS_PER_CPU = 88
KERNFS_PER_NODE = 80
"""Files in sysfs for each memory block, CPU and further node, beyond those in the table's count."""
USERCOPY = {
    "dentry": (32, 36),
    "names_cache": (4096, 4096),
    "task_struct": (512, 512),
    "mm_struct": (368, 184),
    "skbuff_head_cache": (48, 48),
    "ext4_inode_cache": (60, 60),
}
"""Bytes of an object that may be copied to and from user space, on 64 and on 32 bits."""
CACHE_LINE_ALIGNED = ("task_struct",)
"""Caches that ask for the alignment of a cache line by number and not by SLAB_HWCACHE_ALIGN."""
TASK_CACHES = ("task_struct", "signal_cache", "sighand_cache", "pid", "cred_jar")
"""Caches that hold at least one object per task."""
MOST_BOOT_CPUS = 8
"""Boot's work is spread over this many CPUs at most; the others have not yet allocated anything."""
