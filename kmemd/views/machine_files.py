"""Files of ``/proc`` that tell of the machine as a whole: CPUs, times, load, command line, file systems.

fs/proc/{stat,uptime,loadavg,version,cmdline}.c, arch/x86/kernel/cpu/proc.c, fs/filesystems.c. The model takes no
interrupts and counts no context switches: those columns of ``stat`` are zero.
"""

from __future__ import annotations

from collections.abc import Iterator

from kmemd.kernel import Kernel
from kmemd.mm.clock import NSEC_PER_SEC
from kmemd.mm.firmware import FILESYSTEMS, mounts_of
from kmemd.mm.sched import USER_HZ
from kmemd.mm.sysinfo import highmem_pages
from kmemd.steps import Steps
from kmemd.views.tree import Caller, proc

NS_PER_TICK = NSEC_PER_SEC // USER_HZ
IRQ_BASE = 40
IRQS_PER_CPU = 8
"""nr_irqs: the IO-APIC's 24, 16 legacy ones, and 8 for each CPU."""
SOFTIRQS = 10


@proc.file("cpuinfo")
def cpuinfo(kernel: Kernel) -> Iterator[str]:
    """A block of lines for each CPU."""
    model, machine = kernel.machine.cpu_model, kernel.machine
    for cpu in range(machine.cpus):
        yield f"processor\t: {cpu}\nvendor_id\t: {model.vendor}\ncpu family\t: {model.family}\n"
        yield f"model\t\t: {model.model}\nmodel name\t: {model.model_name}\nstepping\t: {model.stepping}\n"
        yield f"microcode\t: {model.microcode}\ncpu MHz\t\t: {model.mhz:.3f}\ncache size\t: {model.cache_kib} KB\n"
        if machine.cpus > 1 or machine.arch == "x86_64":
            yield f"physical id\t: 0\nsiblings\t: {machine.cpus}\ncore id\t\t: {cpu}\ncpu cores\t: {machine.cpus}\n"
            yield f"apicid\t\t: {cpu}\ninitial apicid\t: {cpu}\n"
        if machine.arch == "i386":
            yield "fdiv_bug\t: no\nf00f_bug\t: no\ncoma_bug\t: no\n"
        yield f"fpu\t\t: yes\nfpu_exception\t: yes\ncpuid level\t: {model.cpuid_level}\nwp\t\t: yes\n"
        yield f"flags\t\t: {machine.cpu_flags}\nbugs\t\t: {model.bugs}\nbogomips\t: {model.bogomips:.2f}\n"
        if model.tlb_pages:
            yield f"TLB size\t: {model.tlb_pages} 4K pages\n"
        yield f"clflush size\t: {model.clflush}\ncache_alignment\t: {model.clflush}\n"
        yield f"address sizes\t: {model.address_sizes}\npower management:\n\n"


@proc.file("version")
def version(kernel: Kernel) -> str:
    """The kernel's banner."""
    return kernel.machine.banner + "\n"


@proc.file("cmdline")
def cmdline(kernel: Kernel) -> str:
    """The kernel command line."""
    return kernel.cmdline.text + "\n"


def idle_ns(kernel: Kernel, cpu: int) -> int:
    """Model time in which a CPU ran no task."""
    return max(0, kernel.clock.now - sum(kernel.tasks.cpu_times(cpu)))


@proc.file("uptime")
def uptime(kernel: Kernel) -> str:
    """Seconds since boot, and idle seconds summed over all CPUs."""
    idle = sum(idle_ns(kernel, cpu) for cpu in range(kernel.machine.cpus))
    return f"{_seconds(kernel.clock.now)} {_seconds(idle)}\n"


def _seconds(ns: int) -> str:
    seconds, rest = divmod(ns, NSEC_PER_SEC)
    return f"{seconds}.{rest // NS_PER_TICK:02d}"


@proc.file("loadavg")
def loadavg(kernel: Kernel) -> str:
    """Load averages (the model's tasks run to completion: never two at a time), running/all tasks, last pid."""
    running = max(1, sum(task.state == "R" for task in kernel.tasks))
    return f"0.00 0.00 0.00 {running}/{len(kernel.tasks)} {kernel.tasks.last_pid}\n"


@proc.file("stat")
def stat(kernel: Kernel) -> Iterator[str]:
    """CPU times in ticks, interrupts, boot time, forks."""
    cpus = [_cpu_ticks(kernel, cpu) for cpu in range(kernel.machine.cpus)]
    total = [sum(column) for column in zip(*cpus, strict=True)]
    yield "cpu  " + " ".join(map(str, total)) + "\n"
    for cpu, ticks in enumerate(cpus):
        yield f"cpu{cpu} " + " ".join(map(str, ticks)) + "\n"
    yield "intr 0" + " 0" * (IRQ_BASE + IRQS_PER_CPU * kernel.machine.cpus) + "\n"
    yield f"ctxt {kernel.tasks.nr_switches}\nbtime {kernel.clock.boot_time_s}\nprocesses {kernel.tasks.forks}\n"
    running = max(1, sum(task.state == "R" for task in kernel.tasks))
    yield f"procs_running {running}\nprocs_blocked {sum(task.state == 'D' for task in kernel.tasks)}\n"
    yield "softirq 0" + " 0" * SOFTIRQS + "\n"


def _cpu_ticks(kernel: Kernel, cpu: int) -> list[int]:
    """user, nice, system, idle, iowait, irq, softirq, steal, guest, guest_nice."""
    user, system = (ns // NS_PER_TICK for ns in kernel.tasks.cpu_times(cpu))
    iowait = kernel.tasks.iowait_ns[cpu]
    idle = max(0, idle_ns(kernel, cpu) - iowait)
    return [user, 0, system, idle // NS_PER_TICK, iowait // NS_PER_TICK, 0, 0, 0, 0, 0]


@proc.file("filesystems")
def filesystems(kernel: Kernel) -> Iterator[str]:
    """Registered file systems; those without ``nodev`` live on a block device."""
    for name in FILESYSTEMS[kernel.machine.arch]:
        yield f"{'' if name.startswith('ext') else 'nodev'}\t{name}\n"


@proc.link("mounts")
def mounts(kernel: Kernel, caller: Caller) -> str:
    """The mounts of the process that looks."""
    return "self/mounts"


def mount_lines(kernel: Kernel) -> Iterator[str]:
    """What is mounted, as /proc/PID/mounts shows it."""
    high, _ = highmem_pages(kernel.zones)
    for device, point, kind, options in mounts_of(kernel.machine.arch, kernel.totalram_pages(), high):
        yield f"{device} {point} {kind} {options} 0 0\n"
    for mount in kernel.user.vfs.added:
        yield f"{mount.source} {mount.point} {mount.kind} {mount.options} 0 0\n"


@proc.link("net")
def net(kernel: Kernel, caller: Caller) -> str:
    """The network of the process that looks: the model has none, a visitor the host's."""
    return "self/net"


@proc.link("self")
def self_link(kernel: Kernel, caller: Caller) -> str:
    """The process that looks; a program outside the model becomes a visitor with its own pid."""
    return str(kernel.tasks.visit(caller.process, caller.uid))


@proc.link("thread-self")
def thread_self_link(kernel: Kernel, caller: Caller) -> str:
    """The thread that looks."""
    pid = kernel.tasks.visit(caller.process, caller.uid)
    return f"{pid}/task/{pid}"


@proc.write_only("sysrq-trigger")
def sysrq_trigger(kernel: Kernel, text: str) -> Steps[None]:
    """The first character is the key (drivers/tty/sysrq.c ``write_sysrq_trigger``)."""
    if text:
        yield from kernel.sysrq(text[0])
