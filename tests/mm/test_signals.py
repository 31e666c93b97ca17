"""What tasks do with signals."""

from __future__ import annotations

import errno

import pytest

from kmemd.errors import KernelError
from kmemd.mm.signals import SIGCHLD, SIGKILL, SIGSEGV, SIGSTOP, Action, Dispositions, may_kill


@pytest.mark.parametrize("number", [SIGKILL, SIGSTOP, 0, 65, -1])
def test_some_actions_cannot_be_changed(number: int) -> None:
    with pytest.raises(KernelError) as caught:
        Dispositions().set(number, Action.IGNORE)
    assert caught.value.errno == errno.EINVAL


def test_masks_are_those_of_status() -> None:
    signals = Dispositions()
    assert signals.set(SIGSEGV, Action.CATCH) is Action.DEFAULT
    signals.set(1, Action.IGNORE)
    assert (signals.mask(Action.CATCH), signals.mask(Action.IGNORE)) == (1 << 10, 1)
    assert signals.set(SIGSEGV, Action.DEFAULT) is Action.CATCH
    assert signals.mask(Action.CATCH) == 0


def test_exec_keeps_what_is_ignored_alone() -> None:
    signals = Dispositions()
    signals.set(SIGSEGV, Action.CATCH)
    signals.set(1, Action.IGNORE)
    child = signals.copy()
    signals.flush_handlers()
    assert (signals.of(SIGSEGV), signals.of(1)) == (Action.DEFAULT, Action.IGNORE)
    assert child.of(SIGSEGV) is Action.CATCH


def test_a_forced_signal_cannot_be_ignored() -> None:
    signals = Dispositions()
    signals.set(SIGSEGV, Action.IGNORE)
    assert signals.ignored(SIGSEGV)
    assert not signals.force(SIGSEGV)
    assert signals.of(SIGSEGV) is Action.DEFAULT
    signals.set(SIGSEGV, Action.CATCH)
    assert signals.force(SIGSEGV)


def test_what_a_signal_does_by_default() -> None:
    signals = Dispositions()
    assert signals.fatal(SIGSEGV)
    assert signals.fatal(SIGKILL)
    assert signals.ignored(SIGCHLD)
    assert not signals.fatal(SIGCHLD)
    assert not signals.fatal(SIGSTOP)
    signals.set(15, Action.CATCH)
    assert not signals.fatal(15)
    assert not signals.ignored(15)


def test_who_may_send() -> None:
    assert may_kill(0, 1000)
    assert may_kill(1000, 1000)
    assert not may_kill(1000, 0)
