"""The entries of /proc/sys/kernel that programs read (kernel/sysctl.c ``kern_table``, kernel/utsname_sysctl.c,
kernel/printk/sysctl.c, kernel/panic.c, kernel/exit.c, drivers/char/random.c).

Models: identification, pid and thread limits, log and panic settings, the random generator's files, and how strict
later writes of one open are taken. A setting without a counterpart in the model is kept and changes nothing.
Left out: entries about scheduling, IPC, modules and tracing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any, ClassVar, Protocol
from uuid import UUID

from kmemd.errors import KernelError
from kmemd.mm import kstrtox
from kmemd.mm.clock import HZ
from kmemd.mm.layout import I386, X86_64
from kmemd.mm.panic import LETTERS, Taint
from kmemd.mm.params import CommandLine
from kmemd.mm.sched import MAX_THREADS, RESERVED_PIDS, max_threads
from kmemd.mm.sysctl_handlers import (
    proc_dointvec_jiffies,
    proc_dointvec_minmax,
    proc_dointvec_vector,
    proc_douintvec_minmax,
    proc_doulongvec_minmax,
    refuse,
    show_jiffies,
    show_number,
    show_string,
    show_vector,
    string_of,
    take_all,
)
from kmemd.mm.units import PAGE_SIZE
from kmemd.tunable import Tunable, Tuned

WRITES_LEGACY, WRITES_WARN, WRITES_STRICT = -1, 0, 1
UTS_SIZE = 65
PIDS_PER_CPU_MIN = 8
PID_MAX_LIMIT = 8 * PAGE_SIZE
"""CONFIG_BASE_SMALL, as on the captured machines."""
CONSOLE_LOGLEVELS = [7, 4, 1, 7]
CAP_LAST_CAP = 40
NGROUPS_MAX = 65536
POOL_BITS = 256
SYSRQ_DEFAULT_ENABLE = 0x01B6
"""CONFIG_MAGIC_SYSRQ_DEFAULT_ENABLE, as Debian has it: the keys of a keyboard, which there is none."""
TAINT_FLAGS = (1 << len(LETTERS)) - 1


class Tasks(Protocol):
    """What is asked of the task table."""

    pid_max: int


def _parse_taint(text: str, current: int, tunable: Tunable) -> tuple[int, int]:
    """Flags can be set and not cleared (``proc_taint``)."""
    flags, taken = proc_doulongvec_minmax(text, current, tunable)
    return current | flags & TAINT_FLAGS, taken


def _row(name: str, parse: Any, **more: Any) -> Tunable:
    attr = more.pop("attr", name.replace("-", "_").replace("/", "_"))
    more.setdefault("mode", 0o444 if parse is refuse else 0o644)
    return Tunable(f"proc/sys/kernel/{name}", attr, more.pop("show", show_number), parse, **more)


def _name(name: str) -> Tunable:
    return _row(name, string_of(UTS_SIZE), show=show_string, text=True)


class KernelSysctl(Tuned):
    """kernel.* of one machine. ``release`` and ``version`` are what uname(2) says."""

    TUNABLES: ClassVar[tuple[Tunable, ...]] = (
        _row("ostype", refuse, show=show_string),
        _row("osrelease", refuse, show=show_string),
        _row("version", refuse, show=show_string),
        _row("arch", refuse, show=show_string, attr="machine"),
        _name("hostname"),
        _name("domainname"),
        _row("pid_max", proc_dointvec_minmax),
        _row("threads-max", proc_dointvec_minmax, min=1, max=MAX_THREADS),
        _row("ngroups_max", refuse),
        _row("cap_last_cap", refuse),
        _row("overflowuid", proc_dointvec_minmax, min=0, max=65535),
        _row("overflowgid", proc_dointvec_minmax, min=0, max=65535),
        _row("randomize_va_space", proc_dointvec_minmax),
        _row("sysctl_writes_strict", proc_dointvec_minmax, min=WRITES_LEGACY, max=WRITES_STRICT),
        _row("tainted", _parse_taint),
        _row("panic", proc_dointvec_minmax),
        _row("panic_on_oops", proc_dointvec_minmax),
        _row("panic_on_warn", proc_dointvec_minmax, min=0, max=1),
        _row("panic_print", proc_doulongvec_minmax),
        _row("oops_limit", proc_douintvec_minmax),
        _row("warn_limit", proc_douintvec_minmax),
        _row("printk", proc_dointvec_vector, show=show_vector),
        _row("printk_ratelimit", proc_dointvec_jiffies, show=show_jiffies),
        _row("printk_ratelimit_burst", proc_dointvec_minmax),
        _row("printk_delay", proc_dointvec_minmax, min=0, max=10_000),
        _row("dmesg_restrict", proc_dointvec_minmax, min=0, max=1),
        _row("kptr_restrict", proc_dointvec_minmax, min=0, max=2),
        _row("perf_event_paranoid", proc_dointvec_minmax),
        _row("sysrq", proc_dointvec_minmax),
        _row("random/poolsize", refuse),
        _row("random/entropy_avail", refuse),
        _row("random/write_wakeup_threshold", take_all),
        _row("random/urandom_min_reseed_secs", take_all),
        _row("random/boot_id", refuse, show=show_string),
        _row("random/uuid", refuse, show=show_string),
    )

    def __init__(
        self,
        release: str,
        version: str,
        cmdline: CommandLine,
        tasks: Tasks,
        cpus: int,
        totalram_pages: Callable[[], int],
        rng: Random,
        taint: Taint,
        *,
        long_bits: int = 64,
        crng_ready: bool = False,
    ) -> None:
        self._tasks = tasks
        self._cpus = cpus
        self._taint = taint
        self._uuids = Random(rng.getrandbits(64))
        self.long_bits = long_bits
        self.ostype = "Linux"
        self.osrelease = release
        self.version = version
        self.machine = "x86_64" if long_bits == 64 else "i686"
        self.hostname = "(none)"
        self.domainname = "(none)"
        self.threads_max = max_threads(X86_64 if long_bits == 64 else I386, totalram_pages())
        self.ngroups_max = NGROUPS_MAX
        self.cap_last_cap = CAP_LAST_CAP
        self.overflowuid = self.overflowgid = 65534
        self.randomize_va_space = 0 if cmdline.has("norandmaps") else 2
        self.sysctl_writes_strict = WRITES_STRICT
        self.panic = _int_parameter(cmdline, "panic", 0)
        self.panic_on_oops = int(cmdline.get("oops") == "panic")
        self.panic_on_warn = _int_parameter(cmdline, "panic_on_warn", 0)
        self.panic_print = 0
        self.oops_limit = 10_000
        self.warn_limit = 0
        self.printk = [_console_loglevel(cmdline), *CONSOLE_LOGLEVELS[1:]]
        self.printk_ratelimit = 5 * HZ
        self.printk_ratelimit_burst = 10
        self.printk_delay = 0
        self.dmesg_restrict = 0
        self.sysrq = 1 if cmdline.has("sysrq_always_enabled") else SYSRQ_DEFAULT_ENABLE
        self.kptr_restrict = 0
        self.perf_event_paranoid = 2
        self.random_poolsize = self.random_write_wakeup_threshold = POOL_BITS
        self.random_entropy_avail = POOL_BITS if crng_ready else 0
        self.random_urandom_min_reseed_secs = 60
        self.random_boot_id = str(UUID(int=self._uuids.getrandbits(128), version=4))

    @property
    def random_uuid(self) -> str:
        """A new random UUID at each reading, from a generator of its own: reading changes nothing else."""
        return str(UUID(int=self._uuids.getrandbits(128), version=4))

    @property
    def tainted(self) -> int:
        """The kernel's taint flags."""
        return self._taint.mask

    @tainted.setter
    def tainted(self, mask: int) -> None:
        self._taint.mask = mask

    @property
    def pid_max(self) -> int:
        """Pids are below this."""
        return self._tasks.pid_max

    @pid_max.setter
    def pid_max(self, limit: int) -> None:
        self._tasks.pid_max = limit

    def knob(self, tunable: Tunable) -> Tunable | None:
        """The row on this machine; pid_max has bounds by the number of CPUs."""
        row = super().knob(tunable)
        if row is not None and row.attr == "pid_max":
            row = replace(row, min=max(RESERVED_PIDS + 1, PIDS_PER_CPU_MIN * self._cpus), max=PID_MAX_LIMIT)
        return row


def _int_parameter(cmdline: CommandLine, name: str, default: int) -> int:
    text = (cmdline.get(name) or "").encode()
    try:
        return kstrtox.kstrtoint(text, 0)
    except KernelError:
        return default


def _console_loglevel(cmdline: CommandLine) -> int:
    """quiet, debug and loglevel= (init/main.c), the last one counts."""
    level = CONSOLE_LOGLEVELS[0]
    for name, value in cmdline.pairs():
        if name in ("quiet", "debug"):
            level = 4 if name == "quiet" else 10
        elif name == "loglevel" and value.isdigit():
            level = int(value)
    return level
