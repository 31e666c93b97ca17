"""The kernel memory leak detector (mm/kmemleak.c): a mark and sweep over what the model's objects point to.

Allocators report objects (``mm.leak_observer.LeakObserver``); whoever writes a pointer into one calls ``store``.
A scan starts at the roots (module data: the handles; the kernel's lists; task stacks), follows the
stored pointers, and takes what is left with too few references for a leak, if it is old enough and has not
changed since the last scan. Contents of an object are the byte it was filled with and the pointers stored since;
checksum and hex dump are of these bytes. Memory that nobody wrote reads as zero.

A scan that a command asks for runs in slices, and so does that of the scanning thread; as in Linux the world may go
on meanwhile, and what is made during a scan is too young to be its leak.

Left out: percpu and physical-address objects, the pool that Linux takes early objects from (its size is a
constant). Objects made before ``late_init``, or inside ``kernel_data``, are
grey: the structures that hold them are not modelled pointer by pointer.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from kmemd.core.context import Context
from kmemd.core.leak import (
    BLACK,
    GREY,
    LINUX_FLAGS,
    OBJECT_NO_SCAN,
    LeakTable,
)
from kmemd.debug import leak_sweep
from kmemd.debug.kallsyms import Kallsyms
from kmemd.debug.leak_contents import LeakContents
from kmemd.debug.leak_text import HEX_BYTES, hex_dump, kstrtoul_or_invalid
from kmemd.errors import KernelError
from kmemd.mm.clock import HZ, NSEC_PER_SEC, Clock
from kmemd.mm.dump_stack import DumpStack
from kmemd.mm.kstrtox import UINT_MAX, c_string, kstrtouint, to_bytes
from kmemd.mm.layout import Layout
from kmemd.mm.leak_observer import FILL_ZERO, Addresses
from kmemd.mm.printk import KERN_INFO, KERN_NOTICE, KERN_WARNING, Printk
from kmemd.mm.sched import PF_KTHREAD, TaskTable
from kmemd.steps import Steps, finish

MSECS_MIN_AGE = 5000
SECS_FIRST_SCAN = 60
SECS_SCAN_WAIT = 600
MAX_TRACE = 16
COMMAND_MAX = 63
MEM_POOL_AVAILABLE = 15747
KTHREADD_PID = 2
REPORT_CHUNK = 512
SCAN_CHUNK = 1 << 13
"""Objects and pointers that a scan looks at before others may get in, in a millisecond or two."""
WHITEN_PER_LOOKUP = 32
FILE = "/sys/kernel/debug/kmemleak"

NO_ROOTS: Addresses = np.zeros(0, dtype=np.uint64)
Roots = Callable[[], Addresses | Iterable[Addresses]]
Scan = Steps[int]


class Kmemleak:
    """The detector of one kernel.

    ``enabled``: not booted with ``kmemleak=off``. ``auto_scan`` is CONFIG_DEBUG_KMEMLEAK_AUTO_SCAN: the
    scanning thread starts at boot, its first scan a minute later. ``roots`` are read at every scan, ``stacks``
    (pointers on task stacks) while ``stack=on``. ``alloc_ns`` and ``scan_ns`` are what tracking an
    object and scanning one cost in model time.

    Invariants: an object is tracked from ``alloc`` to ``free``; once disabled, nothing is tracked again.
    """

    def __init__(
        self,
        context: Context,
        clock: Clock,
        printk: Printk,
        kallsyms: Kallsyms,
        layout: Layout,
        dump_stack: DumpStack,
        *,
        enabled: bool = True,
        auto_scan: bool = False,
        roots: Sequence[Roots] = (),
        stacks: Roots = lambda: NO_ROOTS,
        tasks: TaskTable | None = None,
        alloc_ns: int = 0,
        scan_ns: int = 0,
    ) -> None:
        self._context = context
        self._clock = clock
        self._printk = printk
        self._kallsyms = kallsyms
        self._dump_stack = dump_stack
        self._roots = tuple(roots)
        self._stacks = stacks
        self._tasks = tasks
        self._auto_scan = auto_scan
        self._alloc_ns, self._scan_ns = alloc_ns, scan_ns
        self._layout = layout
        self.table = self._empty_table()
        self.enabled = True
        self.stack_scan = True
        self.verbose = False
        self.scan_wait_ns = SECS_SCAN_WAIT * NSEC_PER_SEC
        self.last_scan = 0
        self._free_enabled = True
        self._found_leaks = False
        self._initialized = False
        self._grey = 1
        self._under_way: Scan | None = None
        self._thread = 0
        self._threads_started = 0
        self._thread_pid = 0
        self._task_ids: dict[tuple[int, int], int] = {}
        self._tasks_seen: list[tuple[int, str]] = []
        self._contents = LeakContents(lambda: self.table, layout.pointer_size)
        self._backtraces: dict[int, str] = {}
        self._dumps: dict[tuple[int, int], str] = {}
        if not enabled:
            self._disable()

    def _empty_table(self) -> LeakTable:
        return LeakTable(self._layout.pointer_size, self._layout.max_pfn)

    def late_init(self) -> None:
        """The kernel is up: what is allocated from now on can leak (``kmemleak_late_init``)."""
        self._initialized = True
        self._grey -= 1
        if not self.enabled:
            return
        if self._auto_scan:
            self._start_thread(SECS_FIRST_SCAN * NSEC_PER_SEC)
        self._info(f"Kernel memory leak detector initialized (mem pool available: {MEM_POOL_AVAILABLE})")

    @contextmanager
    def kernel_data(self) -> Iterator[None]:
        """What is allocated inside is held by structures of the kernel that the model does not write out."""
        self._grey += 1
        try:
            yield
        finally:
            self._grey -= 1

    # -- what allocators report ----------------------------------------------------------------------------

    def alloc(
        self, address: int, size: int, stack: int | None = None, *, min_count: int = 1, fill: int = FILL_ZERO
    ) -> None:
        """Track one object (``kmemleak_alloc``); see ``LeakObserver``."""
        if self.enabled and address:
            self.alloc_bulk(np.array([address], np.uint64), size, stack, min_count=min_count, fill=fill)

    def alloc_bulk(
        self,
        addresses: Addresses,
        size: int,
        stack: int | None = None,
        *,
        min_count: int = 1,
        fill: int = FILL_ZERO,
    ) -> None:
        """Track objects of one size."""
        if not self.enabled or not len(addresses):
            return
        self._context.charge(self._alloc_ns * len(addresses))
        if self._grey and min_count > 0:
            min_count = GREY
        if stack is None:
            stack = self._context.stack or self._context.site
        addresses = np.ascontiguousarray(addresses, dtype=np.uint64)
        bad = self.table.insert_bulk(addresses, size, min_count, self._clock.jiffies, self._task(), stack, fill)
        if bad >= 0:
            self._stop_overlap(int(addresses[bad]))

    def vmalloc(self, address: int, size: int, area: int, stack: int | None = None) -> None:
        """Track a vmalloc area (``kmemleak_vmalloc``); one whose ``vm_struct`` is nowhere needs one reference."""
        self.alloc(address, size, stack, min_count=2 if area else 1)
        row = self._row(area) if self.enabled and area else -1
        if row >= 0:
            self.table.set_excess(row, address)

    def free(self, address: int) -> None:
        """Forget an object (``kmemleak_free``)."""
        if self._free_enabled and address:
            self.table.remove_bulk(np.array([address], np.uint64))

    def free_bulk(self, addresses: Addresses) -> None:
        """Forget many objects."""
        if self._free_enabled and len(addresses):
            self.table.remove_bulk(np.ascontiguousarray(addresses, dtype=np.uint64))

    def free_part(self, address: int, size: int) -> None:
        """Forget ``size`` bytes of an object; what stands on either side becomes an object of its own."""
        row = self._containing(address) if self.enabled else -1
        if row < 0:
            return
        table = self.table
        start, length = int(table.pointer[row]), int(table.size[row])
        min_count = int(table.min_count[row])
        self.free(start)
        if address > start:
            self.alloc(start, address - start, min_count=min_count)
        if address + size < start + length:
            self.alloc(address + size, start + length - address - size, min_count=min_count)

    def not_leak(self, address: int) -> None:
        """Never report the object, always scan it (``kmemleak_not_leak``)."""
        self._paint(address, GREY, "Grey")

    def ignore(self, address: int) -> None:
        """Neither report nor scan the object (``kmemleak_ignore``)."""
        self._paint(address, BLACK, "Black")

    def no_scan(self, address: int) -> None:
        """The object holds no pointers (``kmemleak_no_scan``)."""
        if not self.enabled:
            return
        row = self._row(address)
        if row < 0:
            self._warn(f"Not scanning unknown object at 0x{address:08x}")
            return
        self.table.flags[row] |= OBJECT_NO_SCAN

    def scan_area(self, address: int, size: int | None = None) -> None:
        """Only this part of the object holds pointers (``kmemleak_scan_area``)."""
        if not self.enabled:
            return
        row = self._containing(address)
        if row < 0:
            self._warn(f"Adding scan area to unknown object at 0x{address:08x}")
            return
        start = address - int(self.table.pointer[row])
        room = int(self.table.size[row]) - start
        if size is not None and size > room:
            self._warn(f"Scan area larger than object 0x{address:08x}")
            self._dump(row)
            return
        self.table.add_area(row, start, room if size is None else size)

    def update_trace(self, address: int) -> None:
        """The object was handed on: its maker is now the current call site (``kmemleak_update_trace``)."""
        row = self._containing(address) if self.enabled else -1
        if row >= 0:
            self.table.stack[row] = self._context.site

    def _paint(self, address: int, colour: int, name: str) -> None:
        if not self.enabled:
            return
        row = self._row(address)
        if row < 0:
            self._warn(f"Trying to color unknown object at 0x{address:08x} as {name}")
            return
        leak_sweep.paint(self.table, row, colour)

    # -- contents ------------------------------------------------------------------------------------------

    def store(self, address: int, value: int) -> bool:
        """A pointer was written at ``address``. Whether that lies in a tracked object, whole."""
        row = self._containing(address)
        if row < 0:
            return False
        offset = address - int(self.table.pointer[row])
        if offset + self._layout.pointer_size > int(self.table.size[row]):
            return False
        self.table.store(row, offset, value)
        return True

    def store_bulk(self, objects: Addresses, offset: int, values: Addresses) -> int:
        """``values[i]`` was written ``offset`` bytes into the object at ``objects[i]``. How many are known."""
        where = np.asarray(objects, dtype=np.uint64) + np.uint64(offset)
        return int(self.table.store_bulk(where, np.array(values, dtype=np.uint64)))

    def memset(self, address: int, byte: int, length: int | None = None) -> bool:
        """The object that begins at ``address`` was overwritten with one byte, all of it by default.

        Whether it is known, and no longer than ``length``: of a part, words are stores.
        """
        row = self._row(address)
        whole = row >= 0 and (length is None or length >= int(self.table.size[row]))
        if whole:
            self.table.set_fill(row, byte & 0xFF)
        return whole

    # -- scanning ------------------------------------------------------------------------------------------

    def scan(self) -> int:
        """Look for leaks once. How many are new (``kmemleak_scan``)."""
        return finish(self.scan_steps())

    def scan_steps(self) -> Scan:
        """``scan`` in slices. One that is under way already comes to its end first (``scan_mutex``)."""
        while self._under_way is not None:
            self._go_on()
            yield
        self._under_way = self._scan()
        scan = self._under_way
        while self._under_way is scan:
            found = self._go_on()
            if found is not None:
                return found
            yield
        return 0

    def _go_on(self) -> int | None:
        """A slice of the scan that is under way. What it found, at its end."""
        assert self._under_way is not None
        try:
            next(self._under_way)
        except StopIteration as end:
            self._under_way = None
            return int(end.value)
        except BaseException:
            self._under_way = None
            raise
        return None

    def _scan(self) -> Scan:
        table = self.table
        self.last_scan = self._clock.jiffies
        self._context.charge(self._scan_ns * int(table.live))
        work = 0
        for done in self._phases(table):
            work += done
            if work >= SCAN_CHUNK:
                work = 0
                yield
            if not self.enabled:
                return 0  # scan_should_stop
        new = 0
        for part in leak_sweep.pieces(table):
            found = leak_sweep.report(table, self._newest(), part)
            new += len(found)
            if self.verbose:
                self._print(found.tolist())
            if table.rows > leak_sweep.PIECE:
                yield
        if new:
            self._found_leaks = True
            self._info(f"{new} new suspected memory leaks (see {FILE})")
        return new

    def _print(self, rows: list[int]) -> None:
        """What the file will show of new leaks, in the kernel log (``kmemleak_verbose``)."""
        for row in rows:
            for line in self._unreferenced(row).splitlines():
                self._printk.log(KERN_WARNING, f"kmemleak: {line}")

    def _phases(self, table: LeakTable) -> Iterator[int]:
        """Mark what is referenced, and what changed since the last scan. Gives the work done, in lookups."""
        for part in leak_sweep.pieces(table):
            table.whiten(part.start, part.stop)
            yield (part.stop - part.start) // WHITEN_PER_LOOKUP
        for words in self._root_words():
            table.mark(words)
            yield len(words)
        while table.drain(SCAN_CHUNK):
            yield SCAN_CHUNK
        for rows in leak_sweep.recheck(table, self._contents.checksum, self._contents.fill_checksum):
            yield rows * SCAN_CHUNK // leak_sweep.PIECE
        while table.drain(SCAN_CHUNK):
            yield SCAN_CHUNK

    def _root_words(self) -> Iterator[Addresses]:
        """The pointers outside of objects, in pieces."""
        for root in (*self._roots, *([self._stacks] if self.stack_scan else [])):
            found = root()
            for words in [found] if isinstance(found, np.ndarray) else found:
                for start in range(0, len(words), SCAN_CHUNK):
                    yield np.ascontiguousarray(words[start : start + SCAN_CHUNK], dtype=np.uint64)

    def _newest(self) -> int:
        """The jiffy at which an object must have been born, or before, to be reported."""
        return self.last_scan - MSECS_MIN_AGE * HZ // 1000

    def _start_thread(self, delay_ns: int) -> None:
        if self._thread:
            return
        self._threads_started += 1
        self._thread = self._threads_started
        if self._tasks is not None:
            ppid = KTHREADD_PID if KTHREADD_PID in self._tasks else 0
            self._thread_pid = self._tasks.spawn("kmemleak", ppid, flags=PF_KTHREAD, nice=10).pid
        self._info("Automatic memory scanning thread started")
        self._schedule(delay_ns)

    def _schedule(self, delay_ns: int) -> None:
        thread = self._thread

        def run() -> None:
            if self._thread == thread:
                wait = self.scan_wait_ns
                self._run_slice(self.scan_steps(), thread, wait)

        self._clock.call_at(self._clock.now + delay_ns, run)

    def _run_slice(self, steps: Scan, thread: int, wait_ns: int) -> None:
        """A slice of the thread's scan; the next is due at once, when others have had their turn."""
        try:
            next(steps)
        except StopIteration:
            if self._thread == thread:
                self._schedule(wait_ns)
            return
        self._clock.call_at(self._clock.now + 1, lambda: self._run_slice(steps, thread, wait_ns))

    def _stop_thread(self) -> None:
        if not self._thread:
            return
        self._thread = 0
        if self._tasks is not None:
            self._tasks.exit(self._thread_pid)
        self._info("Automatic memory scanning thread ended")

    # -- the file ------------------------------------------------------------------------------------------

    def write(self, text: str) -> None:
        """A command written to the file. EPERM when disabled, EINVAL, ERANGE (``kmemleak_write``)."""
        finish(self.write_steps(text))

    def write_steps(self, text: str) -> Scan:
        """``write`` in slices."""
        command = c_string(to_bytes(text)[:COMMAND_MAX])
        if command.startswith(b"clear"):
            yield from self._clear()
            return 0
        if not self.enabled:
            raise KernelError(errno.EPERM, "kmemleak was turned off, which cannot be undone")
        for prefix, action in self._commands().items():
            if command.startswith(prefix):
                steps = action(command[len(prefix) :])
                if steps is not None:
                    yield from steps
                return 0
        words = "off, stack=on|off, scan=on|off|SECONDS, scan, clear, dump=ADDRESS"
        raise KernelError(errno.EINVAL, f"kmemleak takes {words}")

    def _commands(self) -> dict[bytes, Callable[[bytes], Scan | None]]:
        """The commands by the prefix that Linux compares, in its order."""
        return {
            b"off": lambda rest: self._disable(),
            b"stack=on": lambda rest: setattr(self, "stack_scan", True),
            b"stack=off": lambda rest: setattr(self, "stack_scan", False),
            b"scan=on": lambda rest: self._start_thread(0),
            b"scan=off": lambda rest: self._stop_thread(),
            b"scan=": self._set_period,
            b"scan": lambda rest: self.scan_steps(),
            b"dump=": self._dump_at,
        }

    def _set_period(self, rest: bytes) -> None:
        milliseconds = min(kstrtouint(rest, 0) * 1000, UINT_MAX)
        self._stop_thread()
        if milliseconds:
            self.scan_wait_ns = milliseconds * 1_000_000
            self._start_thread(0)

    def _clear(self) -> Iterator[None]:
        if not self.enabled:
            self.table = self._empty_table()
            return
        for part in leak_sweep.pieces(self.table):
            leak_sweep.clear(self.table, self._newest(), part)
            yield
        self._found_leaks = False

    def _disable(self) -> None:
        """Turn tracking off for good (``kmemleak_disable`` and its cleanup work)."""
        if not self.enabled:
            return
        self.enabled = False
        self._info("Kernel memory leak detector disabled")
        self._stop_thread()
        self._free_enabled = False
        if not self._found_leaks:
            self.table = self._empty_table()
            return
        self._info(f'Kmemleak disabled without freeing internal data. Reclaim the memory with "echo clear > {FILE}".')

    def _dump_at(self, rest: bytes) -> None:
        address = kstrtoul_or_invalid(rest, self._layout.pointer_size * 8)
        row = self._row(address)
        if row < 0:
            inside = self._containing(address)
            if inside >= 0:
                self._warn(f"Found object by alias at 0x{address:08x}")
                self._dump(inside)
            self._info(f"Unknown object at 0x{address:08x}")
            raise KernelError(errno.EINVAL, f"no object begins at {address:#x}")
        self._dump(row)

    def _dump(self, row: int) -> None:
        """Log all that is known of an object (``dump_object_info``)."""
        table = self.table
        pid, comm = self._tasks_seen[int(table.task[row])]
        for line in (
            f"Object 0x{int(table.pointer[row]):08x} (size {int(table.size[row])}):",
            f'  comm "{comm}", pid {pid}, jiffies {int(table.born[row])}',
            f"  min_count = {int(table.min_count[row])}",
            f"  count = {int(table.count[row])}",
            f"  flags = {int(table.flags[row]) & LINUX_FLAGS:#x}",
            f"  checksum = {int(table.checksum[row])}",
            "  backtrace:",
        ):
            self._printk.log(KERN_NOTICE, f"kmemleak: {line}")
        for frame in self._kallsyms.stack(int(table.stack[row]))[:MAX_TRACE]:
            self._printk.log(KERN_WARNING, f" {frame}")

    def report(self) -> Iterator[str]:
        """The file's text: the leaks, in the order in which the objects were made."""
        for rows in leak_sweep.shown_pieces(self.table, self._newest, REPORT_CHUNK):
            yield "".join(map(self._unreferenced, rows))

    def _unreferenced(self, row: int) -> str:
        """One object's paragraph (``print_unreferenced``)."""
        table = self.table
        pid, comm = self._tasks_seen[int(table.task[row])]
        return (
            f"unreferenced object 0x{int(table.pointer[row]):08x} (size {int(table.size[row])}):\n"
            f'  comm "{comm}", pid {pid}, jiffies {int(table.born[row])}\n'
            f"{self._hex_dump(row)}"
            f"{self._backtrace(int(table.stack[row]))}"
        )

    def _hex_dump(self, row: int) -> str:
        """The dump of an object; one that holds nothing but its fill looks like its likes."""
        if self.table.first_edge[row]:
            return hex_dump(self._contents(row, HEX_BYTES))
        kind = (min(int(self.table.size[row]), HEX_BYTES + 1), int(self.table.fill[row]))
        text = self._dumps.get(kind)
        if text is None:
            text = self._dumps[kind] = hex_dump(self._contents(row, HEX_BYTES))
        return text

    def _backtrace(self, handle: int) -> str:
        text = self._backtraces.get(handle)
        if text is None:
            frames = zip(self._kallsyms.addresses(handle), self._kallsyms.stack(handle), strict=True)
            lines = [f"    [<{self._kallsyms.p(address)}>] {frame}\n" for address, frame in frames]
            text = self._backtraces[handle] = "  backtrace:\n" + "".join(lines[:MAX_TRACE])
        return text

    # -- helpers -------------------------------------------------------------------------------------------

    def _row(self, address: int) -> int:
        return int(self.table.find(address))

    def _containing(self, address: int) -> int:
        return int(self.table.find_containing(address))

    def _task(self) -> int:
        """The number that stands for the current task."""
        key = (self._context.pid, self._context.comm_id(self._context.comm))
        number = self._task_ids.get(key)
        if number is None:
            number = self._task_ids[key] = len(self._tasks_seen)
            self._tasks_seen.append((key[0], self._context.comm))
        return number

    def _info(self, text: str) -> None:
        self._printk.log(KERN_INFO, f"kmemleak: {text}")

    def _warn(self, text: str) -> None:
        self._printk.log(KERN_WARNING, f"kmemleak: {text}")
        self._dump_stack()

    def _stop_overlap(self, address: int) -> None:
        """Two objects in one place: the detector gives up (``kmemleak_stop``)."""
        self._warn(f"Cannot insert 0x{address:x} into the object search tree (overlaps existing)")
        row = self._row(address)
        self._dump(row)
        self._disable()

    def check(self) -> None:
        """The table is consistent, and empty where nothing may be tracked."""
        leak_sweep.check(self.table)
        assert self._grey >= (0 if self._initialized else 1)
        if not self.enabled and not self._found_leaks:
            assert self.table.live == 0, f"{self.table.live} objects tracked while disabled"
