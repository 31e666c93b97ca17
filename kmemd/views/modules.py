"""``/proc/modules`` (kernel/module/procfs.c): the modules that call sites of the model are in."""

from __future__ import annotations

from collections.abc import Iterator

from kmemd.debug.kallsyms import show_values
from kmemd.kernel import Kernel
from kmemd.mm.units import PAGE_SIZE
from kmemd.views.tree import Caller, proc


@proc.file("modules", caller=True)
def modules(kernel: Kernel, caller: Caller) -> Iterator[str]:
    """Name, bytes, users, who uses it, state and address of each, the newest first."""
    knobs = kernel.kernel_sysctl
    shown = show_values(caller.uid, knobs.kptr_restrict, knobs.perf_event_paranoid)
    for name in reversed(kernel.kallsyms.modules()):
        own = [symbol for symbol in kernel.kallsyms.symbols() if symbol.module == name]
        start = min(symbol.address for symbol in own)
        end = max(symbol.address + symbol.size for symbol in own)
        size = -(-(end - start) // PAGE_SIZE) * PAGE_SIZE
        yield f"{name} {size} 0 - Live 0x{kernel.layout.format_address(start if shown else 0)}\n"
