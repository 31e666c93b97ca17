"""Which functions of the kernel the model's methods stand for, for the function tracers (kernel/trace/ftrace.c).

A method that does what one function does has its name; one that does what a function and those that it calls do has
their names, the outermost first. What is not here counts when it is named as a function of the kernel, and a name
without functions behind it keeps a method out whose name means something else in the kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FrameType

from kmemd.debug.symbols import TEXT

TRACED = "kmemd.mm."
KERNEL = frozenset(word.lstrip("-") for word in TEXT.split())
CALLS = """\
memory.Memory.handle_mm_fault exc_page_fault handle_mm_fault __handle_mm_fault
memory.Memory._supply exc_page_fault handle_mm_fault __handle_mm_fault
memory.Memory._segv exc_page_fault
memory.Memory._missing_page do_fault
memory.Memory.copy_page wp_page_copy
memory.Memory.out_of_memory exc_page_fault pagefault_out_of_memory
memory.Memory.new_page
memory.Memory._huge_fault
memory.Memory.may_reuse
memory.Memory.prepare_anon anon_vma_prepare
vma_pages.VmaPages.fault_in populate_vma_page_range __get_user_pages
remote_vm.RemoteVm._fault_in __get_user_pages
file_fault.FileFaults.fault do_fault
file_fault.FileFaults._page __do_fault
file_fault.FileFaults._copy do_cow_fault
file_fault.FileFaults._map_around do_fault_around
file_fault.FileFaults._map finish_fault
file_io.FileIo.fault_page filemap_fault
shmem.Shmem.fault_page shmem_fault
swap_state.SwapState.do_swap_page do_swap_page
swap_state.SwapState.readahead swapin_readahead
swap_state.SwapState._around_slot
swap_state.SwapState.read_slots read_swap_cache_async
huge_pmd.TransparentHuge.fault do_huge_pmd_anonymous_page
huge_pmd.TransparentHuge.exit_mm __khugepaged_exit
huge_pmd.TransparentHuge.wp_fault do_huge_pmd_wp_page
huge_pmd.TransparentHuge.split_pmd __split_huge_pmd
huge_split.HugeSplit.split split_huge_page_to_list
huge_split.HugeSplit.defer deferred_split_huge_page
mempolicy.Mempolicy.alloc_pages alloc_pages
mempolicy.Mempolicy.alloc_bulk vma_alloc_folio __folio_alloc
page_alloc.PageAllocator.alloc_pages __alloc_pages
page_alloc.PageAllocator.alloc_pages_bulk __alloc_pages
page_alloc.PageAllocator._try get_page_from_freelist
page_alloc.PageAllocator._bulk get_page_from_freelist
page_alloc.PageAllocator._prepare prep_new_page
page_alloc.PageAllocator._attempt get_page_from_freelist
page_alloc.PageAllocator._slow_path __alloc_pages_slowpath.constprop.0
page_alloc.PageAllocator._wake_kswapds wake_all_kswapds
page_alloc.PageAllocator._compact __alloc_pages_direct_compact
page_alloc.PageAllocator._direct_reclaim __alloc_pages_direct_reclaim try_to_free_pages
page_alloc.PageAllocator._should_reclaim_retry should_reclaim_retry
page_alloc.PageAllocator._may_oom __alloc_pages_may_oom
page_alloc.PageAllocator._warn_alloc warn_alloc
page_alloc.PageAllocator.free_pages __free_pages
page_alloc.PageAllocator.free_pages_bulk free_unref_page_list
node_reclaim.NodeReclaim.__call__ node_reclaim
slub.Slub.kmalloc_bulk __kmalloc __kmem_cache_alloc_node
slub.Slub._kmalloc_large __kmalloc_large_node
slub.Slub.kmalloc_cache kmalloc_slab
slub.Slub.kmalloc __kmalloc
slub.Slub.kfree_bulk kfree
slub_caches.SlabCaches.kmem_cache_alloc_bulk kmem_cache_alloc
slub_caches.SlabCaches.kmem_cache_free_bulk kmem_cache_free
slub_caches.SlabCaches._new_pages ___slab_alloc new_slab allocate_slab
slub_caches.SlabCaches._free_discarded discard_slab __free_slab
slub_caches.SlabCaches.flush_all flush_all
vmalloc.Vmalloc._get_vm_area __get_vm_area_node
vmalloc.Vmalloc._alloc_range alloc_vmap_area
vmalloc.Vmalloc._populate __vmalloc_area_node
vmalloc.Vmalloc._take_pages vm_area_alloc_pages
vmalloc.Vmalloc.vmap vmap
vmalloc.Vmalloc.vunmap vunmap
vmalloc.Vmalloc.ioremap __ioremap_caller
vmalloc.Vmalloc.iounmap iounmap
vmalloc.Vmalloc.vfree_steps vfree __vunmap
vmalloc.Vmalloc._remove remove_vm_area
vmalloc.Vmalloc._purge __purge_vmap_area_lazy
fork.Fork.spawn kernel_clone
fork.Fork.fork_steps kernel_clone copy_process
fork.Fork._new_task copy_process
fork.Fork._new_task.<locals>.make dup_task_struct
fork.ThreadStacks.alloc alloc_thread_stack_node
fork.ThreadStacks.free free_thread_stack
fork.Fork._release release_task
mm_struct.MmStructs.dup dup_mm
mm_struct.MmStructs.alloc mm_init
mm_struct.MmStructs.empty exit_mmap
mm_struct.MmStructs.exit mmput exit_mmap
copy_range.CopyRange.steps copy_page_range
exec.Exec.exec bprm_execve
exec.Exec._layout setup_arg_pages
exec.Exec._map_segment elf_map
do_exit.DoExit.__call__ do_exit
mmap_region.AddressSpaces.mmap ksys_mmap_pgoff do_mmap
mmap_region.AddressSpaces.region mmap_region
mmap_region.AddressSpaces.get_unmapped_area get_unmapped_area
mmap_region.AddressSpaces.munmap __vm_munmap
mmap_region.AddressSpaces.munmap_steps __vm_munmap
mmap_region.AddressSpaces.unmap do_mas_munmap
mmap_region.AddressSpaces.brk __x64_sys_brk
mmap_region.AddressSpaces.may_expand may_expand_vm
mmap_region.AddressSpaces.expand_stack expand_stack
unmapped_area.UnmappedArea.find vm_unmapped_area
vma.VmaList.merge vma_merge
vma.VmaList.split split_vma
vma.VmaList.split_always __split_vma
mprotect.Mprotect.mprotect do_mprotect_pkey
mprotect.Mprotect._fixup mprotect_fixup
vma_pages.VmaPages.change_protection change_protection
mremap.Mremap.mremap __x64_sys_mremap
mremap.Mremap._move move_vma
mremap.Mremap._resizable vma_to_resize
mremap.Mremap._copy_vma copy_vma
madvise.Madvise.madvise do_madvise
mlock.Mlock._fixup mlock_fixup
msync.Msync.msync __x64_sys_msync
zap.ZapPages.zap_range unmap_vmas
zap.ZapPages._zap_vma unmap_page_range
zap.ZapPages.unmap_region unmap_region
zap.ZapPages.reap __oom_reap_task_mm
pgtable.PageTables.new_pgd pgd_alloc
pgtable.PageTables.free_pgd pgd_free
pgtable.PageTables.alloc_table pte_alloc_one
pgtable.PageTables.free_range free_pgd_range
rmap.Rmap.prepare __anon_vma_prepare
rmap.Rmap.clone anon_vma_clone
rmap.Rmap.fork anon_vma_fork
rmap.Rmap.unlink_anon unlink_anon_vmas
rmap.Rmap.walk rmap_walk
vmscan_reclaim.Reclaim.try_to_free do_try_to_free_pages
vmscan_reclaim.Reclaim._shrink_zones shrink_zones
vmscan_reclaim.Reclaim.shrink_node shrink_node
vmscan_reclaim.Reclaim._shrink_memcgs shrink_node_memcgs
vmscan_reclaim.Reclaim.shrink_lruvec shrink_lruvec
vmscan_reclaim.Reclaim._shrink_list shrink_list
vmscan_reclaim.Reclaim._should_continue should_continue_reclaim
vmscan_reclaim.Reclaim.of_cgroup_steps try_to_free_mem_cgroup_pages
vmscan_reclaim.Reclaim.age_node kswapd_age_node
vmscan_balance.Balance.prepare prepare_scan_count
vmscan_balance.Balance.scan_count get_scan_count
vmscan_kswapd.Kswapd.wake wakeup_kswapd
vmscan_kswapd.Kswapd._balance_pgdat balance_pgdat
vmscan_kswapd.Kswapd._round kswapd_shrink_node
vmscan_kswapd.Kswapd._try_to_sleep kswapd_try_to_sleep
vmscan_folio.ListScan.shrink_inactive shrink_inactive_list
vmscan_folio.ListScan.shrink_active shrink_active_list
vmscan_folio.ListScan.isolate isolate_lru_folios
vmscan_folio.ListScan.referenced folio_referenced
vmscan_folio.ListScan._check_references folio_check_references
vmscan_folio.ListScan.putback move_folios_to_lru
lru_gen_evict.GenEviction.shrink_lruvec lru_gen_shrink_lruvec
lru_gen_evict.GenEviction.evict evict_folios
lru_gen_evict.GenEviction._isolate isolate_folios
lru_gen_evict.GenEviction._scan scan_folios
lru_gen_walk.PageTableWalk.look_around lru_gen_look_around
pageout.PageOut._unmap_file try_to_unmap
pageout.PageOut._unmap_to_swap try_to_unmap
pageout.PageOut._write_out pageout
pageout.PageOut.reclaim_pages reclaim_pages
shrinker.Shrinkers.shrink_slab shrink_slab
shrinker.Shrinkers._shrink_steps do_shrink_slab
workingset.Workingset.refault workingset_refault
workingset.Workingset.eviction workingset_eviction
compaction.Compaction.compact_nodes_steps compact_nodes
compaction.Compaction.compact_node_steps compact_node
compaction.Compaction._compact_node compact_node
compaction.Compaction._compact_for compact_zone_order
compaction.Compaction.proactive_compact_node proactive_compact_node
compaction.Compaction.try_to_compact_pages try_to_compact_pages
direct_compact.DirectCompaction.should_compact_retry should_compact_retry
compaction_scan.ZoneCompactor.compact_zone compact_zone
compaction_scan.ZoneCompactor.suitable compaction_suitable
compaction_scan.ZoneCompactor._suitable __compaction_suitable
compaction_scan.ZoneCompactor._finished compact_finished
compaction_scan.ZoneCompactor._compact_finished __compact_finished
compaction_scan.ZoneCompactor._isolate_migratepages isolate_migratepages
compaction_scan.ZoneCompactor._isolate_block isolate_migratepages_block
compaction_free.FreeScanner.isolate isolate_freepages
kcompactd.Kcompactd._do_work kcompactd_do_work
kcompactd.Kcompactd.wakeup wakeup_kcompactd
migrate.Migrate.move_bulk migrate_pages
migrate.Migrate.migrate_pages migrate_pages
migrate.Migrate._unmap try_to_migrate
migrate.Migrate._remap remove_migration_ptes
khugepaged.Khugepaged._do_scan khugepaged_do_scan
khugepaged.Khugepaged._scan_mm khugepaged_scan_mm_slot
khugepaged.Khugepaged._look_and_collapse hpage_collapse_scan_pmd
khugepaged.Khugepaged._collapse collapse_huge_page
swapfile.SwapFiles.swapon __x64_sys_swapon
swapfile.SwapFiles._enable enable_swap_info
swapfile.SwapFiles.get_swap_pages get_swap_pages
swapfile.SwapFiles.duplicate swap_duplicate
swap_area.SwapArea.scan_swap_map_slots scan_swap_map_slots
swap_area.SwapArea.alloc_cluster swap_alloc_cluster
swap_slots.SwapSlots.alloc folio_alloc_swap
swapoff.SwapOff.swapoff __x64_sys_swapoff
swapoff.SwapOff._try_to_unuse try_to_unuse
swapoff.SwapOff._unuse_vma unuse_vma
swapoff.SwapOff._unuse_pte unuse_pte
page_io.SwapIo.write swap_writepage
page_io.SwapIo.write_to_device __swap_writepage
page_io.SwapIo.read swap_readpage
zswap.Zswap.store zswap_frontswap_store
zswap.Zswap.load zswap_frontswap_load
filemap.PageCache.add_bulk __filemap_add_folio
filemap.PageCache.remove_bulk __filemap_remove_folio
filemap.PageCache.find_get_page __filemap_get_folio
filemap.PageCache.mark_accessed folio_mark_accessed
file_read.FileReads.read_pages filemap_read
file_write.FileWriter.write_range filemap_fdatawrite_wbc do_writepages
file_write.FileWriter.wait __filemap_fdatawait_range
readahead.Readahead.sync page_cache_sync_ra
readahead.Readahead.force force_page_cache_ra
readahead.Readahead.marked page_cache_async_ra
readahead.Readahead._ondemand ondemand_readahead
readahead.Readahead._submit page_cache_ra_order
readahead.Readahead._read
fs_writeback.Flushers._workfn wb_workfn wb_do_writeback
fs_writeback.Flushers._writeback wb_writeback
fs_writeback.Flushers._queue_io queue_io
fs_writeback.Flushers._write_some __writeback_single_inode
fs_writeback.Flushers.write_inodes sync_inodes_sb
fs_writeback.Flushers.mark_inode_dirty __mark_inode_dirty
dirty_throttle.DirtyThrottle.balance_ratelimited balance_dirty_pages_ratelimited
dirty_throttle.DirtyThrottle._balance balance_dirty_pages
oom_kill.OomKill._out_of_memory
oom_kill.OomKill._kill_worst select_bad_process
oom_kill.OomKill._header dump_header
oom_kill.OomKill._kill_process oom_kill_process
oom_kill.OomKill._kill __oom_kill_process
oom_kill.OomKill._mark mark_oom_victim
oom_kill.OomReaper.queue queue_oom_reaper
memcontrol.MemControl._try_charge try_charge_memcg
memcontrol.MemControl.out_of_memory
cma.Cma.alloc_steps cma_alloc
cma.Cma.release_steps cma_release
"""
"""``module.method functions``. Several methods may be one function's parts: one in the other counts once."""
NAMES = {words[0]: tuple(words[1:]) for line in CALLS.splitlines() if (words := line.split())}
VMALLOC = ("__vmalloc_node", "__vmalloc_node_range")
ENTRIES = {
    "": VMALLOC[1:],
    "module_alloc": ("module_alloc", VMALLOC[1]),
    "vmalloc": ("vmalloc", *VMALLOC),
    "vzalloc": ("vzalloc", *VMALLOC),
}
"""What an area's caller called, and what that calls."""


def _entry(frame: FrameType) -> tuple[str, ...]:
    """What leads to an area: the entry point that was called, or for a large area's page array the kernel itself."""
    nested = frame.f_back is not None and frame.f_back.f_code.co_name == "_make_page_array"
    return VMALLOC if nested else ENTRIES.get(frame.f_locals["request"].function, VMALLOC)


CHOSEN: dict[str, Callable[[FrameType], tuple[str, ...]]] = {"vmalloc.Vmalloc.alloc_steps": _entry}
"""Methods that stand for one function or another, as their arguments say."""
HARDWARE, BY_KERNEL = "exc_page_fault", "__get_user_pages"
"""Who faults pages in for the kernel's sake does so without an exception."""


def name_of(module: str, qualified: str) -> str:
    """How the table calls a method."""
    return f"{module.rpartition('.')[2]}.{qualified}"


def functions_of(module: str, qualified: str) -> tuple[str, ...]:
    """The kernel's functions that a method of ``module`` stands for; a word alone may mean anything."""
    if not module.startswith(TRACED):
        return ()
    found = NAMES.get(name_of(module, qualified))
    if found is not None:
        return found
    name = qualified.rpartition(".")[2]
    return (name,) if "_" in name.strip("_") and name in KERNEL else ()


def begun(names: tuple[str, ...], open_calls: list[str]) -> tuple[str, ...]:
    """Those of a method's functions that its call begins, where ``open_calls`` are being executed."""
    if HARDWARE in names and BY_KERNEL in open_calls:
        names = names[names.index(HARDWARE) + 1 :]
    for count in range(min(len(names), len(open_calls)), 0, -1):
        if tuple(open_calls[-count:]) == names[:count]:
            return names[count:]
    return names
