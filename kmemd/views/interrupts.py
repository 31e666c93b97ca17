"""``/proc/interrupts`` and ``/proc/softirqs`` (kernel/irq/proc.c, arch/x86/kernel/irq.c, fs/proc/softirqs.c).

The model takes no interrupts: every count is zero, and no line of a device has a handler. Left out: the rows that a
kernel has only with thermal, machine check or hypervisor support.
"""

from __future__ import annotations

from collections.abc import Iterator

from kmemd.kernel import Kernel
from kmemd.views.machine_files import IRQ_BASE, IRQS_PER_CPU
from kmemd.views.tree import proc

OF_EACH_CPU = {
    "NMI": "Non-maskable interrupts",
    "LOC": "Local timer interrupts",
    "SPU": "Spurious interrupts",
    "PMI": "Performance monitoring interrupts",
    "IWI": "IRQ work interrupts",
    "RTR": "APIC ICR read retries",
    "RES": "Rescheduling interrupts",
    "CAL": "Function call interrupts",
    "TLB": "TLB shootdowns",
}
OF_THE_MACHINE = ("ERR", "MIS")
SOFTIRQ_NAMES = ("HI", "TIMER", "NET_TX", "NET_RX", "BLOCK", "IRQ_POLL", "TASKLET", "SCHED", "HRTIMER", "RCU")


def _header(kernel: Kernel) -> str:
    return "".join(f"CPU{cpu:<8}" for cpu in range(kernel.machine.cpus)) + "\n"


@proc.file("interrupts")
def interrupts(kernel: Kernel) -> Iterator[str]:
    """Interrupts that each CPU took, by kind."""
    cpus = kernel.machine.cpus
    width = max(3, len(str(IRQ_BASE + IRQS_PER_CPU * cpus)))
    yield " " * (width + 8) + _header(kernel)
    for name, meaning in OF_EACH_CPU.items():
        yield f"{name:>{width}}: " + f"{0:10} " * cpus + f"  {meaning}\n"
    for name in OF_THE_MACHINE:
        yield f"{name:>{width}}: {0:10}\n"


@proc.file("softirqs")
def softirqs(kernel: Kernel) -> Iterator[str]:
    """Deferred interrupt work that each CPU did, by kind."""
    yield " " * 20 + _header(kernel)
    for name in SOFTIRQ_NAMES:
        yield f"{name:>12}:" + f" {0:10}" * kernel.machine.cpus + "\n"
