"""Random programs of commands: after each line every cached number of the model agrees with the truth."""

from __future__ import annotations

import errno

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from kmemd import System
from kmemd.mm.handles import Kind
from kmemd.system import SystemCallError

SHORTAGE = {errno.ENOMEM, errno.EAGAIN}
GFP = st.sampled_from(
    ["GFP_KERNEL", "GFP_ATOMIC", "GFP_HIGHUSER_MOVABLE", "GFP_KERNEL|__GFP_RECLAIMABLE", "GFP_DMA", "GFP_NOWAIT"]
)
SLAB_GFP = st.sampled_from(["GFP_KERNEL", "GFP_ATOMIC", "GFP_KERNEL|__GFP_RECLAIMABLE", "GFP_KERNEL|GFP_DMA"])
SIZES = st.sampled_from([1, 8, 100, 192, 1000, 4096, 5000, 8193, 70000])


class Commands(RuleBasedStateMachine):
    """What a user may type, kept to lines that are right; shortage of memory is the only failure."""

    pages = Bundle("pages")
    objects = Bundle("objects")
    areas = Bundle("areas")
    caches = Bundle("caches")
    cached = Bundle("cached")
    tasks = Bundle("tasks")

    def __init__(self) -> None:
        super().__init__()
        self.system = System.boot("two-node", seed=3, cmdline="page_owner=on kmemleak=on")
        self.made = 0
        self.replies: list[str] = []

    def name(self) -> str:
        self.made += 1
        return f"h{self.made}"

    def command(self, line: str, allowed: set[int] = frozenset()) -> bool:
        """Run a line; whether it was done."""
        failed = 0
        try:
            self.replies.append(self.system.command(line))
        except SystemCallError as error:
            failed = error.errno
        assert not failed or failed in allowed, f"{line}: {errno.errorcode[failed]}"
        return not failed

    def make(self, line: str):
        """Run an allocation; the handle's name if there is one now."""
        name = self.name()
        self.command(f"{name} = {line}", SHORTAGE)
        return name if name in self.system.kernel.handles else multiple()

    @rule(target=pages, order=st.integers(0, 10), gfp=GFP, n=st.integers(1, 3000), cpu=st.integers(0, 1))
    def alloc_pages(self, order: int, gfp: str, n: int, cpu: int):
        return self.make(f"alloc_pages order={order} gfp={gfp} n={n} cpu={cpu} by=probe+0x1[drv]")

    @rule(name=pages, every=st.integers(2, 5), n=st.integers(1, 100))
    def free_some_pages(self, name: str, every: int, n: int) -> None:
        if name in self.system.kernel.handles:
            self.command(f"free_pages {name} every={every} n={n}")

    @rule(name=consumes(pages))
    def free_pages(self, name: str) -> None:
        if name in self.system.kernel.handles:
            self.command(f"free_pages {name}")
            assert name not in self.system.kernel.handles

    @rule(target=objects, size=SIZES, gfp=SLAB_GFP, n=st.integers(1, 2000), zero=st.booleans())
    def kmalloc(self, size: int, gfp: str, n: int, zero: bool):
        return self.make(f"{'kzalloc' if zero else 'kmalloc'} {size} gfp={gfp} n={n}")

    @rule(name=objects, every=st.integers(2, 5), cpu=st.integers(0, 3))
    def free_some_objects(self, name: str, every: int, cpu: int) -> None:
        if name in self.system.kernel.handles:
            self.command(f"kfree {name} every={every} cpu={cpu}")

    @rule(name=objects, size=SIZES)
    def krealloc(self, name: str, size: int) -> None:
        handle = self.system.kernel.handles.get(name)
        if handle is not None and len(handle) == 1:
            self.command(f"{name} = krealloc {name} {size}", SHORTAGE)

    @rule(name=consumes(objects))
    def kfree(self, name: str) -> None:
        if name in self.system.kernel.handles:
            self.command(f"kfree {name}")

    @rule(target=caches, size=st.integers(8, 9000), align=st.sampled_from([0, 8, 64]), flags=st.integers(0, 1))
    def kmem_cache_create(self, size: int, align: int, flags: int):
        return self.make(f"kmem_cache_create c{self.made} {size} align={align} flags={flags * 0x2000:#x}")

    @rule(target=cached, cache=caches, n=st.integers(1, 500))
    def kmem_cache_alloc(self, cache: str, n: int):
        if cache not in self.system.kernel.handles:
            return multiple()
        name = self.make(f"kmem_cache_alloc {cache} n={n}")
        return (cache, name) if isinstance(name, str) else multiple()

    @rule(pair=consumes(cached))
    def kmem_cache_free(self, pair: tuple[str, str]) -> None:
        cache, name = pair
        if name in self.system.kernel.handles:
            self.command(f"kmem_cache_free {cache} {name}")

    @rule(cache=caches)
    def kmem_cache_shrink(self, cache: str) -> None:
        if cache in self.system.kernel.handles:
            self.command(f"kmem_cache_shrink {cache}")

    @rule(target=areas, size=st.integers(1, 300000), n=st.integers(1, 20))
    def vmalloc(self, size: int, n: int):
        return self.make(f"vmalloc {size} n={n}")

    @rule(name=consumes(areas))
    def vfree(self, name: str) -> None:
        if name in self.system.kernel.handles:
            self.command(f"vfree {name}")

    @rule(target=tasks, comm=st.sampled_from(["worker", "a-name-that-is-too-long"]))
    def spawn(self, comm: str):
        return self.make(f"spawn {comm}")

    @rule(name=consumes(tasks), verb=st.sampled_from(["exit {}", "kill {}", "kill {} 9"]))
    def exit(self, name: str, verb: str) -> None:
        self.command(verb.format(name))
        assert name not in self.system.kernel.handles

    @rule(where=objects, value=objects)
    def write_once(self, where: str, value: str) -> None:
        if where in self.system.kernel.handles and value in self.system.kernel.handles:
            self.command(f"WRITE_ONCE {where}[0] {value}[0]")

    @rule(name=consumes(objects))
    def forget(self, name: str) -> None:
        if name in self.system.kernel.handles:
            self.command(f"forget {name}")

    @rule(seconds=st.sampled_from(["0", "1ms", "3", "700"]))
    def sleep(self, seconds: str) -> None:
        self.command(f"sleep {seconds}")

    @rule(cpu=st.integers(0, 3))
    def sched_setaffinity(self, cpu: int) -> None:
        self.command(f"sched_setaffinity {cpu}")

    @invariant()
    def every_cached_number_is_right(self) -> None:
        self.system.check()

    @invariant()
    def handles_are_consistent(self) -> None:
        for handle in self.system.kernel.handles.values():
            assert not (len(handle.pfns) and len(handle.addresses))
            assert len(handle) > 0 or handle.kind in (Kind.CACHE, Kind.TASK)


TestCommands = Commands.TestCase
TestCommands.settings = settings(max_examples=8, stateful_step_count=20, deadline=None, derandomize=True)
