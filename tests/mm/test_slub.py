"""SLUB above its lists: caches, kmalloc, pages, complaints."""

import errno

import numpy as np
import pytest

from kmemd.core.stats import NR_SLAB_RECLAIMABLE_B, NR_SLAB_UNRECLAIMABLE_B
from kmemd.errors import KernelError
from kmemd.mm import slab_flags as sf
from kmemd.mm.gfp import GFP_DMA, GFP_KERNEL, GFP_KERNEL_ACCOUNT, GFP_NOWAIT, F
from tests.mm.slub_fake import PAGE_OFFSET, make


class Listener:
    """Counts what an allocator tells the leak detector."""

    enabled = True

    def __init__(self):
        self.live = {}
        self.handles = set()

    def alloc_bulk(self, addresses, size, stack=None, *, min_count=1, fill=0):
        self.handles.add(stack)
        self.live.update(dict.fromkeys(addresses.tolist(), (size, fill)))

    def free(self, address):
        del self.live[address]

    def free_bulk(self, addresses):
        for address in addresses.tolist():
            del self.live[address]


def refused(call, *arguments):
    with pytest.raises(KernelError) as caught:
        call(*arguments)
    return caught.value.errno


def test_boot_describes_every_cache():
    world = make(cpus=2, nodes=2)
    slub = world.slub
    names = [cache.name for cache in slub.caches]
    assert names[-4:] == ["kmalloc-16", "kmalloc-8", "kmem_cache_node", "kmem_cache"]
    assert names[0] == "dma-kmalloc-8k"
    assert names.index("kmalloc-192") + 1 == names.index("kmalloc-128")
    assert len(names) == 2 + 4 * 13
    structs = {cache.struct for cache in slub.caches}
    assert len(structs) == len(names)
    used = sum(len(slub.lists.used(slab)) for slab in slub.lists.live())
    assert used == len(names) * 3
    assert "SLUB: HWalign=64, Order=0-3, MinObjects=0, CPUs=2, Nodes=2" in world.log()
    slub.check()


@pytest.mark.parametrize(
    ("size", "gfp", "name"),
    [
        (1, GFP_KERNEL, "kmalloc-8"),
        (65, GFP_KERNEL, "kmalloc-96"),
        (97, GFP_KERNEL, "kmalloc-128"),
        (129, GFP_KERNEL, "kmalloc-192"),
        (193, GFP_KERNEL, "kmalloc-256"),
        (8192, GFP_KERNEL, "kmalloc-8k"),
        (100, GFP_KERNEL_ACCOUNT, "kmalloc-cg-128"),
        (60, GFP_KERNEL_ACCOUNT | F.RECLAIMABLE, "kmalloc-rcl-64"),
        (60, GFP_KERNEL_ACCOUNT | GFP_DMA, "dma-kmalloc-64"),
    ],
)
def test_kmalloc_picks_the_cache(size, gfp, name):
    slub = make().slub
    address = slub.kmalloc(size, gfp)
    cache = slub.cache_of(address)
    assert cache.name == name
    assert slub.ksize(address) == cache.size
    slub.kfree(address)
    assert slub.cache_of(address) is None


def test_large_kmalloc_is_counted_and_given_back():
    world = make()
    slub = world.slub
    before = slub.node_stat.copy()
    address = slub.kmalloc(20000)
    assert slub.ksize(address) == 32768
    assert slub.node_stat[0, NR_SLAB_UNRECLAIMABLE_B] == before[0, NR_SLAB_UNRECLAIMABLE_B] + 8
    assert world.pages.requests[-1] == (GFP_KERNEL | F.COMP, 3, -1)
    slub.check()
    slub.kfree(address)
    assert (slub.node_stat == before).all()
    assert refused(slub.kmalloc, 1 << 23) == errno.ENOMEM


def test_page_requests_are_those_of_allocate_slab():
    world = make(cpus=2)
    cache = world.slub.kmem_cache_create("big", 1000, 0, sf.SLAB_RECLAIM_ACCOUNT)
    world.pages.requests.clear()
    world.slub.kmem_cache_alloc(cache, GFP_KERNEL | F.ZERO)
    quick = F.NOWARN | F.NORETRY | F.NOMEMALLOC | F.COMP | F.RECLAIMABLE
    assert world.pages.requests == [(quick | F.IO | F.FS, 2, -1)]
    assert world.slub.node_stat[0, NR_SLAB_RECLAIMABLE_B] == 4
    frames = world.depot.frames(
        world.depot.extend(0, ("allocate_slab", "new_slab", "___slab_alloc", "kmem_cache_alloc"))
    )
    assert world.depot.frames(world.context.stack) == frames


def test_only_the_lowest_order_may_not_fail():
    world = make()
    cache = world.slub.kmem_cache_create("big", 1000)
    world.pages.max_order = 0
    world.pages.requests.clear()
    world.slub.kmem_cache_alloc(cache, GFP_KERNEL | F.NOFAIL)
    assert [bool(gfp & F.NOFAIL) for gfp, _, _ in world.pages.requests] == [False, True]


def test_order_fallback_and_exhaustion():
    world = make()
    cache = world.slub.kmem_cache_create("big", 1000)
    world.pages.max_order = 0
    first = world.slub.kmem_cache_alloc_bulk(cache, GFP_KERNEL, 5)
    assert len(first) == 5
    assert world.slub.slab_counts(cache) == (8, 8, 2)
    world.pages.limit = 0
    got = world.slub.kmem_cache_alloc_bulk(cache, GFP_NOWAIT, 100)
    assert len(got) == 3
    assert refused(world.slub.kmem_cache_alloc, cache, GFP_NOWAIT) == errno.ENOMEM
    assert any(
        line.startswith("SLUB: Unable to allocate memory on node -1, gfp=0x800(GFP_NOWAIT)") for line in world.log()
    )
    world.slub.check()


def test_krealloc_stays_or_moves():
    slub = make().slub
    address = slub.kmalloc(40)
    assert slub.krealloc(address, 64) == address
    moved = slub.krealloc(address, 65)
    assert moved != address
    assert slub.cache_of(moved).name == "kmalloc-96"
    assert slub.krealloc(moved, 0) == 16
    assert slub.krealloc(0, 10) != 0
    slub.kfree(16)
    slub.kfree(0)
    slub.check()


def test_wrong_pointers_are_reported_and_harmless():
    world = make()
    slub = world.slub
    address = slub.kmalloc(100)
    assert refused(slub.kfree, address + 8) == errno.EINVAL
    assert "BUG kmalloc-128 (Not tainted): Invalid object pointer" in "\n".join(world.log())
    slub.kfree(address)
    assert refused(slub.kfree, address) == errno.EINVAL
    assert "BUG kmalloc-128 (Tainted: G    B             ): Object already free" in world.log()
    assert f"FIX kmalloc-128: Object at {address:#018x} not freed" in world.log()
    assert refused(slub.kfree, PAGE_OFFSET + 5 * 4096) == errno.EINVAL
    assert any("at free_large_kmalloc" in line for line in world.log())
    assert refused(slub.kfree, 0x1234) == errno.EFAULT
    slub.check()


def test_bulk_free_refuses_one_and_frees_the_others():
    slub = make().slub
    objects = slub.kmalloc_bulk(32, GFP_KERNEL, 4)
    with pytest.raises(KernelError):
        slub.kfree_bulk(np.array([objects[0], 99, objects[1], objects[1], objects[2]], dtype=np.uint64))
    assert [slub.cache_of(int(address)) is None for address in objects] == [True, True, True, False]


def test_wrong_cache_is_refused():
    world = make()
    cache = world.slub.kmem_cache_create("mine", 120)
    other = world.slub.kmalloc(120)
    assert refused(world.slub.kmem_cache_free, cache, other) == errno.EINVAL
    assert "cache_from_obj: Wrong slab cache. mine but object is from kmalloc-128" in world.log()


def test_double_free_in_a_debugged_cache_reads_as_linux_writes_it():
    world = make(cpus=2, cmdline="slub_debug=FZPU,kmalloc-128,kmalloc-96")
    world.context.site = world.depot.save(("one", "cmd_write"))
    objects = world.slub.kmalloc_bulk(100, GFP_KERNEL, 20)
    cache = world.slub.cache("kmalloc-128")
    assert (cache.size, cache.objects, cache.order, cache.geometry.red_left_pad) == (384, 21, 1, 128)
    address = int(objects[5])
    world.slub.kfree(address)
    assert refused(world.slub.kfree, address) == errno.EINVAL
    text = "\n".join(world.log())
    assert "Allocated in one+0x1/0x2 age=0 cpu=0 pid=0\n __kmalloc+0x1/0x2\n one+0x1/0x2\n cmd_write" in text
    assert "Freed in one+0x1/0x2 age=0 cpu=0 pid=0\n __kmem_cache_free+0x1/0x2\n kfree+0x1/0x2\n one" in text
    rows = [line for line in text.splitlines() if line.startswith(("Redzone", "Object  ", "Padding"))]
    assert len(rows) == 8 + 8 + 1 + 3
    assert rows[15].endswith("6b 6b a5  kkkkkkkkkkkkkkk.")
    assert rows[16] == f"Redzone  {address + 128:016x}: bb bb bb bb bb bb bb bb                          ........"
    assert rows[17].startswith(f"Padding  {address + 212:016x}: 5a 5a")
    world.slub.check()


def test_debug_flags_follow_the_command_line():
    slub = make(cmdline="slub_debug=FZPU,kmalloc-128,kmalloc-c*").slub
    assert slub.cache("kmalloc-128").flags & sf.DEBUG_FLAGS == sf.DEBUG_DEFAULT_FLAGS
    assert slub.cache("kmalloc-cg-8").debugged
    assert not slub.cache("kmalloc-96").debugged
    assert not slub.kmem_cache_create("own", 100).debugged
    assert make(cmdline="slub_debug").slub.kmem_cache_create("own", 100).flags & sf.SLAB_POISON
    only = make(cmdline="slub_debug=Z").slub.cache("kmalloc-64")
    assert only.flags & sf.DEBUG_FLAGS == sf.SLAB_RED_ZONE
    assert (only.size, only.cpu_partial) == (192, 0)


def test_higher_order_debugging_can_be_switched_off():
    plain = make().slub.cache("kmalloc-4k").size
    assert make(cmdline="slub_debug=O,kmalloc-4k").slub.cache("kmalloc-4k").size == plain
    assert make(cmdline="slub_debug=FZPUO").slub.cache("kmalloc-4k").size == plain
    assert make(cmdline="slub_debug=FZPU").slub.cache("kmalloc-4k").size > plain


def test_merging_is_off_unless_asked_for():
    slub = make().slub
    assert slub.kmem_cache_create("a", 200) is not slub.kmem_cache_create("b", 200)
    assert refused(slub.kmem_cache_create, "a", 300) == errno.EEXIST
    merged = make(cmdline="slab_merge").slub
    first = merged.kmem_cache_create("a", 200)
    assert merged.kmem_cache_create("b", 196) is first
    assert (first.aliases, first.object_size, first.directory) == (1, 200, ":0000200")
    assert merged.kmem_cache_create("c", 200, 0, sf.SLAB_ACCOUNT) is not first
    assert merged.kmem_cache_create("d", 200, 0, 0, "init_once") is not first
    assert merged.kmem_cache_create("e", 56) is not merged.cache("kmalloc-64")
    # kmalloc caches may be copied to user space whole, which keeps them from being merged
    assert merged.kmem_cache_create("f", 64, 0, sf.SLAB_ACCOUNT) is not merged.cache("kmalloc-cg-64")
    assert not make(cmdline="slab_merge slab_nomerge").slub.merging.enabled


def test_an_alias_keeps_the_cache_alive():
    slub = make(cmdline="slab_merge").slub
    cache = slub.kmem_cache_create("a", 200)
    slub.kmem_cache_create("b", 200)
    slub.kmem_cache_destroy(cache, "a")
    assert slub.cache("b") is cache
    slub.kmem_cache_destroy(cache, "b")
    assert refused(slub.cache, "b") == errno.ENOENT
    assert ":0000200" not in slub.directories
    slub.check()


def test_an_alias_makes_the_object_as_large_as_the_largest():
    slub = make(cmdline="slab_merge").slub
    cache = slub.kmem_cache_create("a", 201)
    assert slub.kmem_cache_create("b", 204) is cache
    assert cache.object_size == 204


def test_destroy_gives_everything_back():
    world = make(nodes=2, cpus=2)
    slub = world.slub
    pages, kinds = len(world.pages.out), slub.slab_counts(slub.kmem_cache)
    cache = slub.kmem_cache_create("gone", 700)
    objects = slub.kmem_cache_alloc_bulk(cache, GFP_KERNEL, 100)
    assert refused(slub.kmem_cache_destroy, cache) == errno.EBUSY
    assert "Objects remaining in gone on __kmem_cache_shutdown()" in "\n".join(world.log())
    slub.kmem_cache_free_bulk(cache, objects)
    slub.kmem_cache_destroy(cache)
    assert len(world.pages.out) == pages
    assert slub.slab_counts(slub.kmem_cache) == kinds
    assert refused(slub.kmem_cache_destroy, slub.cache("kmalloc-8")) == errno.EPERM
    slub.check()


@pytest.mark.parametrize(
    ("name", "size", "flags"),
    [("x", 0, 0), ("x", 1 << 23, 0), ("", 8, 0), ("x", 8, sf.SLAB_KMALLOC), ("x", -5, 0)],
)
def test_impossible_caches_are_refused(name, size, flags):
    slub = make().slub
    count = len(slub.caches)
    assert refused(slub.kmem_cache_create, name, size, 0, flags) == errno.EINVAL
    assert len(slub.caches) == count


def test_the_observer_hears_of_objects_but_not_of_quiet_caches():
    listener = Listener()
    world = make(cmdline="slub_debug=P,kmalloc-64", observer=listener)
    slub = world.slub
    assert listener.live == {}
    first, poisoned, zeroed = slub.kmalloc(30), slub.kmalloc(60), slub.kzalloc(60)
    assert listener.live == {first: (32, 0), poisoned: (64, 0x16B), zeroed: (64, 0)}
    frames = {world.depot.frames(handle) for handle in listener.handles}
    assert frames == {("slab_post_alloc_hook", "__kmem_cache_alloc_node", "__kmalloc")}
    quiet = slub.kmem_cache_create("quiet", 64, 0, sf.SLAB_NOLEAKTRACE)
    address = slub.kmem_cache_alloc(quiet)
    slub.kmem_cache_free(quiet, address)
    large = slub.kmalloc(9000)
    assert large in listener.live
    slub.kfree_bulk(np.array([first, large, poisoned, zeroed], dtype=np.uint64))
    assert listener.live == {}


def test_cpu_partial_of_zero_keeps_one_slab():
    slub = make().slub
    cache = slub.cache("kmalloc-512")
    slub.set_cpu_partial(cache, 0)
    objects = slub.kmalloc_bulk(512, GFP_KERNEL, 8 * 6).reshape(6, 8)
    slub.kfree_bulk(objects[:4, 0])
    assert len(slub.lists.cpu_partial(cache.index, 0)) == 1
    assert refused(slub.set_defrag_ratio, cache, 101) == errno.ERANGE
    slub.check()


@pytest.mark.parametrize("column", ["slab", "node", "used", "link"])
def test_check_sees_what_is_wrong(column):
    slub = make().slub
    slub.kfree_bulk(slub.kmalloc_bulk(64, GFP_KERNEL, 300)[::2])
    slub.check()
    array = slub.core.arrays[column]
    rng = np.random.default_rng(1)
    found = 0
    for place in rng.choice(np.flatnonzero(array), 5, replace=False):
        value = array[place]
        array[place] = value ^ 1
        try:
            slub.check()
        except (AssertionError, IndexError, KeyError):
            found += 1
        array[place] = value
    assert found >= 4
    slub.check()


def test_zero_bytes_and_contradicting_zones():
    world = make()
    assert world.slub.kmalloc(0) == 16
    address = world.slub.kmalloc(100, GFP_KERNEL | F.HIGHMEM)
    assert world.slub.cache_of(address).name == "kmalloc-128"
    assert any(line.startswith("Unexpected gfp: 0x2 (__GFP_HIGHMEM). Fixing up to gfp: 0xcc0") for line in world.log())
