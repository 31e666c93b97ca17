"""/sys/kernel/debug/kfence and /sys/module/kfence/parameters (mm/kfence/core.c), with ``kfence.sample_interval=``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from kmemd.mm import kstrtox
from kmemd.mm.kfence import COUNTERS
from kmemd.views.tree import debugfs, sysfs

if TYPE_CHECKING:
    from kmemd.kernel import Kernel

_PARAMETERS = "module/kfence/parameters"
_LINE = "-" * 33


def _present(kernel: Kernel) -> bool:
    return bool(kernel.kfence.pool)


debugfs.dir("kfence", 0o755, exists=_present)
sysfs.dir("module/kfence", exists=_present)


@debugfs.file("kfence/stats", mode=0o444, exists=_present)
def stats(kernel: Kernel) -> Iterator[str]:
    """What was served, and what was found."""
    yield f"enabled: {int(kernel.kfence.enabled)}\n"
    for name, count in zip(COUNTERS, kernel.kfence.counters, strict=True):
        yield f"{name}: {count}\n"


@debugfs.file("kfence/objects", mode=0o400, exists=_present)
def objects(kernel: Kernel) -> Iterator[str]:
    """Every object of the pool."""
    for meta in kernel.kfence.objects:
        yield "".join(f"{line}\n" for line in (*kernel.kfence.describe(meta), _LINE))


@sysfs.file(f"{_PARAMETERS}/sample_interval", mode=0o600, exists=_present)
def sample_interval(kernel: Kernel) -> str:
    """Milliseconds between objects; 0: off."""
    return f"{kernel.kfence.interval_ms if kernel.kfence.enabled else 0}\n"


@sample_interval.store
def sample_interval_store(kernel: Kernel, text: str) -> None:
    """0 turns KFENCE off, anything else on."""
    kernel.kfence.set_interval(kstrtox.kstrtoul(kstrtox.to_bytes(text), 0, kernel.machine.long_bits))


@sysfs.file(f"{_PARAMETERS}/skip_covered_thresh", mode=0o644, exists=_present)
def skip_covered_thresh(kernel: Kernel) -> str:
    """Percent of the pool in use from which sources that have an object in it are passed over."""
    return f"{kernel.kfence.skip_covered_thresh}\n"


@skip_covered_thresh.store
def skip_covered_thresh_store(kernel: Kernel, text: str) -> None:
    """Any number."""
    kernel.kfence.skip_covered_thresh = kstrtox.kstrtoul(kstrtox.to_bytes(text), 0, kernel.machine.long_bits)


def _constant(name: str) -> None:
    def show(kernel: Kernel) -> str:
        """A parameter that only the command line can set."""
        return "N\n"

    sysfs.file(f"{_PARAMETERS}/{name}", mode=0o444, exists=_present)(show)


_constant("deferrable")
_constant("check_on_panic")
