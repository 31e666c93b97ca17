"""What has gone wrong since boot: the taint of the kernel (kernel/panic.c ``add_taint``, ``print_tainted``).

Left out: the panic itself; panic_on_oops, panic_on_warn and oops_limit are kept and change nothing.
"""

from __future__ import annotations

TAINT_BAD_PAGE, TAINT_DIE, TAINT_WARN = 5, 7, 9
LETTERS = "PFSRMBUDAWCIOELKXTN"
NOT_PROPRIETARY = "G"


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
