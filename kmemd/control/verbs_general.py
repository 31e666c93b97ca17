"""Verbs that no one allocator owns: time, handles, pointers in memory, the log, help."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from kmemd.control.language import VERBS, Reply, Slices, Verb, Word, verb
from kmemd.control.words import Cpu, Duration, Name, Text
from kmemd.mm.printk import KERN_NOTICE

if TYPE_CHECKING:
    from kmemd.kernel import Kernel


@verb
def sleep(kernel: Kernel, duration: Duration) -> Slices:
    """Let model time pass; kernel threads and timers that are due run."""
    kernel.preempt.schedule("do_nanosleep", "hrtimer_nanosleep")
    end = kernel.clock.now + duration
    while kernel.clock.now < end:
        timer = kernel.clock.next_timer_ns  # one at a time, so that no slice has many scans in it
        until = end if timer is None else min(end, max(timer, kernel.clock.now + 1))
        yield from kernel.clock.advance_steps(until - kernel.clock.now)
        yield
    return Reply({"now": kernel.context.now})


@verb
def forget(kernel: Kernel, name: Name) -> Reply:
    """Drop the pointers that a handle holds, and not the memory: what kmemleak calls a leak."""
    handle = kernel.handles.forget(name)
    return Reply({"n": len(handle)})


@verb
def sched_setaffinity(kernel: Kernel, cpu: Cpu) -> Reply:
    """Run later lines on a CPU. cpu= does it for one line."""
    return Reply({"cpu": cpu, "node": kernel.machine.cpu_nodes[cpu]}, cpu=cpu)


@verb
def printk(kernel: Kernel, *text: Text) -> Reply:
    """Write a line to the kernel log, which dev/kmsg shows: a mark between steps of a script."""
    seq = kernel.printk.next_seq
    kernel.printk.log(KERN_NOTICE, " ".join(text))
    return Reply({"seq": seq})


@verb
def help(kernel: Kernel, verb: Text = "") -> Reply:
    """List the verbs, or say what one does. The reply has several lines."""
    if not verb:
        return Reply(lines=listing().splitlines())
    found = VERBS.find(Word(verb, len("help ")))
    lines = [found.usage, "", *found.help.splitlines(), ""]
    lines += [f"  {item.name}: {item.type.meaning}" for item in found.parameters()]
    return Reply(lines=[line.rstrip() for line in lines])


SECTIONS = {
    "verbs_pages": "Pages",
    "verbs_slab": "Slab objects and caches",
    "verbs_vmalloc": "vmalloc and ioremap",
    "verbs_highmem": "High memory",
    "verbs_devices": "Devices",
    "verbs_memory": "Pointers in memory",
    "verbs_kernel": "Kernel code that touches memory",
    "verbs_modules": "Modules and programs of BPF",
    "verbs_usercopy": "Kernel code that moves bytes",
    "verbs_tasks": "Processes",
    "verbs_mm": "Mappings of a process",
    "verbs_access": "What a process does with its memory",
    "verbs_files": "Files and swap",
    "verbs_cgroups": "Control groups",
    "verbs_numa": "NUMA placement of a process",
    "verbs_signals": "Signals",
    "verbs_kmemleak": "What kmemleak is told",
    "verbs_perf": "Sampling",
    "verbs_general": "Time, handles, the log",
}
"""The modules with verbs, in the order in which these are listed, and what they are about."""


def sections() -> Iterator[tuple[str, list[Verb]]]:
    """The verbs by section, in the order in which they are listed."""
    for module, title in SECTIONS.items():
        yield title, [found for found in VERBS if found.function.__module__.rpartition(".")[2] == module]


def listing() -> str:
    """The verbs, a line each with the first line of the help, under the titles of their sections."""
    width = max(map(len, VERBS.names()))
    return "\n".join(
        f"# {title}\n" + "".join(f"{found.name:<{width}} {found.summary}\n" for found in verbs)
        for title, verbs in sections()
    )
