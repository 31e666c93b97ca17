"""``/proc/modules`` and ``/sys/module`` (kernel/module/procfs.c, sysfs.c): the modules that were loaded, or that call
sites are in, which have nothing but code.
"""

from __future__ import annotations

from collections.abc import Iterator

from kmemd.debug.kallsyms import show_values
from kmemd.kernel import Kernel
from kmemd.mm.capability import CAP_SYSLOG
from kmemd.mm.units import PAGE_SIZE
from kmemd.views.tree import Caller, proc, sysfs

MODULE = "module/{module}"


def _span(kernel: Kernel, name: str) -> tuple[int, int]:
    """Where a module begins, and its bytes in whole pages."""
    loaded = kernel.modules.find(name)
    if loaded is not None:
        return loaded.address, loaded.size
    own = [symbol for symbol in kernel.kallsyms.symbols() if symbol.module == name]
    start = min(symbol.address for symbol in own)
    end = max(symbol.address + symbol.size for symbol in own)
    return start, -(-(end - start) // PAGE_SIZE) * PAGE_SIZE


@proc.file("modules", caller=True)
def modules(kernel: Kernel, caller: Caller) -> Iterator[str]:
    """Name, bytes, users, who uses it, state and address of each, the newest first."""
    knobs = kernel.kernel_sysctl
    shown = show_values(caller.capable(CAP_SYSLOG), knobs.kptr_restrict, knobs.perf_event_paranoid)
    for name in reversed(kernel.kallsyms.modules()):
        start, size = _span(kernel, name)
        yield f"{name} {size} 0 - Live 0x{kernel.layout.format_address(start if shown else 0)}\n"


@sysfs.keys(MODULE)
def module_names(kernel: Kernel) -> list[str]:
    """A directory for each module, beside those of built-in parameters."""
    return list(kernel.kallsyms.modules())


sysfs.dir(f"{MODULE}/holders")


@sysfs.file(f"{MODULE}/coresize", mode=0o444)
def coresize(kernel: Kernel, module: str) -> str:
    """Bytes of the module."""
    return f"{_span(kernel, module)[1]}\n"


SECTION = f"{MODULE}/sections/{{section}}"


def _sections(kernel: Kernel, name: str) -> dict[str, int]:
    loaded = kernel.modules.find(name)
    return {".text": _span(kernel, name)[0]} if loaded is None else dict(loaded.sections())


@sysfs.file(SECTION, mode=0o400, caller=True)
def section(kernel: Kernel, module: str, name: str, caller: Caller) -> str:
    """Where a section begins (``module_sect_read``)."""
    knobs = kernel.kernel_sysctl
    shown = show_values(caller.capable(CAP_SYSLOG), knobs.kptr_restrict, knobs.perf_event_paranoid)
    address = _sections(kernel, module)[name] if shown else 0
    return f"0x{kernel.layout.format_address(address)}\n"


@sysfs.keys(SECTION)
def section_names(kernel: Kernel, module: str) -> list[str]:
    """The sections that a module has."""
    return list(_sections(kernel, module))


@sysfs.file(f"{MODULE}/initstate", mode=0o444)
def initstate(kernel: Kernel, module: str) -> str:
    """Whether it is loaded, or about to be."""
    return "live\n"


@sysfs.file(f"{MODULE}/refcnt", mode=0o444)
def refcnt(kernel: Kernel, module: str) -> str:
    """How many use it."""
    return "0\n"
