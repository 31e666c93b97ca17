"""Runs command lines: who runs them, for how long before others may, what is answered, what is logged.

A line runs as the task that ``kernel.context`` is at rest, on its CPU, called from the command file; ``by=``,
``cpu=``, ``comm=`` and ``pid=`` change that for one line. There is no Linux counterpart.
"""

from __future__ import annotations

import errno
import inspect
import time
from collections.abc import Generator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from kmemd.control import callsite
from kmemd.control.language import (
    Command,
    Reply,
    Slices,
    parse,
)
from kmemd.control.verbs import VERBS
from kmemd.control.words import GENERIC
from kmemd.core.context import NOW
from kmemd.errors import KernelError
from kmemd.mm.printk import KERN_NOTICE

if TYPE_CHECKING:
    from kmemd.kernel import Kernel

SLICE_S = 0.001
"""Wall time after which a long command lets others in, at its next chunk of work. Chunks are below 4 ms."""

Lines = Generator[None, None, str | None]
"""A line's work in slices; the value is the reply, None when there was nothing to do."""


class Interpreter:
    """Runs lines on one kernel.

    Invariants: outside of a slice the kernel's context is the one at rest, whatever line is under way. A verb's
    chunks, after each of which due timers run, do not depend on wall time; only where others may get in does.
    """

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    def run(self, line: str) -> Lines:
        """Run one line. What goes wrong is logged, then raised as ``KernelError``."""
        try:
            command = parse(line, VERBS, GENERIC, self._kernel)
            if command is None:
                return None
            self._kernel.dump_stack.halt.refuse()
            return (yield from self._command(command))
        except KernelError as error:
            self.failed(line, error)
            raise

    def failed(self, line: str, error: KernelError) -> None:
        """Note a line that failed in ``kmemd/error_log`` and the kernel log."""
        kernel = self._kernel
        kernel.commands.failed(kernel.context.now, line, error)
        kernel.printk.log(KERN_NOTICE, f"kmemd: {error}")

    def _command(self, command: Command) -> Generator[None, None, str]:
        self._check_name(command)
        context = self._kernel.context
        start = context.now
        at_rest = context.words.copy()
        try:
            self._enter(command)
            reply = yield from self._slices(command, at_rest)
        finally:
            self._return_to_user()
            context.words[NOW + 1 :] = at_rest[NOW + 1 :]
        if reply.cpu is not None:
            context.cpu = reply.cpu
        yield from self._timers(time.monotonic() + SLICE_S)
        self._bind(command, reply)
        return reply.text(context.now - start)

    def _check_name(self, command: Command) -> None:
        """EBUSY for a name in use, unless the verb takes that very handle (``p = krealloc p 200``)."""
        name = command.name
        if name is None or name.text not in self._kernel.handles or _names(command, name.text):
            return
        reason = f"{name.text} is in use; free it, or forget {name.text} to drop the pointer"
        raise KernelError(errno.EBUSY, reason, name.column)

    def _enter(self, command: Command) -> None:
        """Become the task, CPU and call site the line asks for. ESRCH."""
        kernel, keys = self._kernel, command.generic
        context = kernel.context
        if "pid" in keys:
            task = kernel.tasks.find(keys["pid"])
            context.switch(task.pid, task.tgid, task.comm, task.cpu)
        if "comm" in keys:
            context.switch(context.pid, context.tgid, keys["comm"], context.cpu)
        if "cpu" in keys:
            context.cpu = keys["cpu"]
        context.site = callsite.site(keys.get("by", ()), kernel)

    def _return_to_user(self) -> None:
        """The line's task leaves the kernel: a fatal signal that came meanwhile ends it (exit_to_user_mode_loop)."""
        task = self._kernel.tasks.current()
        if task is not None and task.killed:
            with suppress(KernelError):
                self._kernel.do_exit(task)

    def _slices(self, command: Command, at_rest: Any) -> Slices:
        result = command.verb.function(self._kernel, *command.positional, **command.keyword)
        if not inspect.isgenerator(result):
            assert isinstance(result, Reply)
            return result
        words = self._kernel.context.words
        until = time.monotonic() + SLICE_S
        while True:
            try:
                next(result)
            except StopIteration as stop:
                reply: Reply = stop.value
                return reply
            mine = words.copy()
            words[NOW + 1 :] = at_rest[NOW + 1 :]
            until = yield from self._timers(until)
            if time.monotonic() >= until:
                yield
                until = time.monotonic() + SLICE_S
            words[NOW + 1 :] = mine[NOW + 1 :]

    def _timers(self, until: float) -> Generator[None, None, float]:
        """Run the timers that are due, and let others in where the slice is over at ``until``. When the next one is."""
        for _ in self._kernel.step_steps():
            if time.monotonic() >= until:
                yield
                until = time.monotonic() + SLICE_S
        return until

    def _bind(self, command: Command, reply: Reply) -> None:
        if command.name is not None and reply.handle is not None:
            handles = self._kernel.handles
            old = handles.name_of(reply.handle)
            if old is not None:
                handles.forget(old)
            handles.bind(command.name.text, reply.handle)
        if reply.partial:
            kept = f"kept as {command.name.text}" if command.name else "not kept by any handle"
            reason = f"{command.verb.name}: {reply.partial}, {kept}"
            raise KernelError(errno.EAGAIN, reason, command.words[0].column)


def _names(command: Command, name: str) -> bool:
    return any(word.text == name for word in command.words[1:])


def describe(error: KernelError) -> str:
    """The one-line reply for a line that failed: ``error=EINVAL column=4 reason=...``."""
    name = errno.errorcode.get(error.errno, str(error.errno))
    column = "" if error.column is None else f" column={error.column}"
    return f"error={name}{column} reason={error.reason}"
