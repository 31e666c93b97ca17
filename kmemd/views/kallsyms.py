"""``/proc/kallsyms``: the kernel's symbols, with addresses for those who may see them (kernel/kallsyms.c)."""

from __future__ import annotations

from collections.abc import Iterator

from kmemd.debug.kallsyms import show_values
from kmemd.kernel import Kernel
from kmemd.mm.capability import CAP_SYSLOG
from kmemd.views.tree import Caller, proc


@proc.file("kallsyms", caller=True)
def kallsyms(kernel: Kernel, caller: Caller) -> Iterator[str]:
    """Address, type and name of each symbol, and its module."""
    knobs = kernel.kernel_sysctl
    shown = show_values(caller.capable(CAP_SYSLOG), knobs.kptr_restrict, knobs.perf_event_paranoid)
    show = kernel.layout.format_address
    for symbol in kernel.kallsyms.symbols():
        module = f"\t[{symbol.module}]" if symbol.module else ""
        yield f"{show(symbol.address if shown else 0)} {symbol.kind} {symbol.name}{module}\n"
