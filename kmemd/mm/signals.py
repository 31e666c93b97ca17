"""Signals: what a bad access raises, what tasks do with signals, who may send them (kernel/signal.c,
include/linux/signal.h, arch/x86/include/uapi/asm/signal.h).

A task of the model runs no handler: a caught signal is one that does not end it. Left out: masks and queues of
signals (each acts at once), stopping, real-time order, threads.
"""

from __future__ import annotations

import errno
import signal as signals
from dataclasses import dataclass, field
from enum import Enum

from kmemd.errors import KernelError

NSIG = 64
SIGILL, SIGBUS, SIGKILL, SIGSEGV, SIGTERM, SIGCHLD, SIGCONT, SIGSTOP = 4, 7, 9, 11, 15, 17, 18, 19
SIGTSTP, SIGTTIN, SIGTTOU, SIGURG, SIGWINCH = 20, 21, 22, 23, 28
KERNEL_ONLY = frozenset({SIGKILL, SIGSTOP})
"""Signals whose action cannot be changed (sig_kernel_only)."""
IGNORED_BY_DEFAULT = frozenset({SIGCONT, SIGCHLD, SIGWINCH, SIGURG})
COREDUMP = frozenset({3, SIGILL, 5, 6, SIGBUS, 8, SIGSEGV, 24, 25, 31})
"""Signals that end a task with a core dump by default (sig_kernel_coredump)."""
STOPPING = frozenset({SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU})

SEGV_MAPERR, SEGV_ACCERR = 1, 2
BUS_ADRERR = 2
SI_KERNEL = 128


class Signal(Exception):  # noqa: N818 -- what it is called wherever it arrives
    """A bad access: the signal that the kernel forces on the executing task, and ``si_code`` and ``si_addr`` of it.

    ``present`` says that the page was there and protected, ``write`` and ``execute`` what the access wanted:
    they make the error code that the processor gave.
    """

    def __init__(
        self, number: int, code: int, address: int, *, write: bool = False, execute: bool = False, present: bool = False
    ) -> None:
        super().__init__(number, code, address)
        self.number = number
        self.code = code
        self.address = address
        self.write = write
        self.execute = execute
        self.present = present

    def __str__(self) -> str:
        name = signals.Signals(self.number).name
        return name if self.number == SIGKILL else f"{name} at {self.address:#x} (si_code {self.code})"


class Action(Enum):
    """What a task does with a signal."""

    DEFAULT = "default"
    IGNORE = "ignore"
    CATCH = "catch"


@dataclass(slots=True)
class Dispositions:
    """A task's actions for signals (struct sighand_struct); those not listed are the default ones."""

    actions: dict[int, Action] = field(default_factory=dict)

    def of(self, number: int) -> Action:
        """The action for a signal."""
        return self.actions.get(number, Action.DEFAULT)

    def set(self, number: int, action: Action) -> Action:
        """Change an action (do_sigaction); returns what it was. EINVAL for SIGKILL, SIGSTOP and no signal."""
        if not 1 <= number <= NSIG:
            raise KernelError(errno.EINVAL, f"there is no signal {number}; 1 to {NSIG}")
        if number in KERNEL_ONLY:
            raise KernelError(errno.EINVAL, f"signal {number} can be neither caught nor ignored")
        before = self.of(number)
        if action is Action.DEFAULT:
            self.actions.pop(number, None)
        else:
            self.actions[number] = action
        return before

    def mask(self, action: Action) -> int:
        """The signals with an action as bits, signal 1 in bit 0 (collect_sigign_sigcatch)."""
        return sum(1 << number - 1 for number, found in self.actions.items() if found is action)

    def copy(self) -> Dispositions:
        """What a forked child has."""
        return Dispositions(dict(self.actions))

    def flush_handlers(self) -> None:
        """What exec does: handlers are gone with the text they were in, ignored signals stay ignored."""
        self.actions = {number: action for number, action in self.actions.items() if action is Action.IGNORE}

    def ignored(self, number: int) -> bool:
        """Whether a signal sent has no effect (sig_handler_ignored)."""
        action = self.of(number)
        return action is Action.IGNORE or (action is Action.DEFAULT and number in IGNORED_BY_DEFAULT)

    def fatal(self, number: int) -> bool:
        """Whether a signal sent ends the task."""
        return self.of(number) is Action.DEFAULT and number not in IGNORED_BY_DEFAULT and number not in STOPPING

    def force(self, number: int) -> bool:
        """A signal that the kernel forces: one that is ignored acts by default. Whether a handler takes it."""
        if self.of(number) is Action.CATCH:
            return True
        self.actions.pop(number, None)
        return False


def may_kill(sender_uid: int, uid: int) -> bool:
    """Whether a user may send signals to a task of ``uid`` (kill_ok_by_cred): root may to all."""
    return sender_uid in (0, uid)
