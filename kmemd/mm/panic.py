"""What has gone wrong since boot: the taint of the kernel, and its end (kernel/panic.c ``add_taint``, ``panic``).

A panic that settings or people ask for (panic_on_oops, panic_on_warn, their limits, panic_on_oom, SysRq c) halts the
machine: time stands still, nothing acts, and all files can be read, as of a crash dump. Others, that nobody is left to
kill or that init would end, are logged, and the model lives on. Left out: reboots.
"""

from __future__ import annotations

import errno

from kmemd.errors import KernelError

TAINT_BAD_PAGE, TAINT_DIE, TAINT_WARN = 5, 7, 9
LETTERS = "PFSRMBUDAWCIOELKXTN"
NOT_PROPRIETARY = "G"


class Halt:
    """Whether the machine has panicked for good. ``reason``: the message of the panic, "" before."""

    def __init__(self) -> None:
        self.reason = ""

    def refuse(self) -> None:
        """EHOSTDOWN for whoever wants something done after the end."""
        if self.reason:
            said = f"the kernel has panicked ({self.reason}): its files can be read, but nothing acts"
            raise KernelError(errno.EHOSTDOWN, f"{said}; mount the machine anew")


class Taint:
    """The flags of /proc/sys/kernel/tainted. ``mask`` has bit n for the letter n of ``LETTERS``."""

    def __init__(self) -> None:
        self.mask = 0

    def add(self, flag: int) -> None:
        """Set a flag for good."""
        self.mask |= 1 << flag

    @property
    def text(self) -> str:
        """How reports begin the state of the kernel: ``Tainted: G    B D`` and so on, or ``Not tainted``."""
        if not self.mask:
            return "Not tainted"
        letters = [letter if self.mask >> bit & 1 else " " for bit, letter in enumerate(LETTERS)]
        if letters[0] == " ":
            letters[0] = NOT_PROPRIETARY
        return "Tainted: " + "".join(letters)
