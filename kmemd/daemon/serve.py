"""Serve a booted machine at a mountpoint until a signal or an unmount ends it."""

from __future__ import annotations

import gc
import logging
import os
import resource
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import pyfuse3
import trio

from kmemd.daemon import clock, loop, mountpoint, notify
from kmemd.fs.operations import Operations
from kmemd.views.tree import Namespace

MAX_TASKS = 4000
"""Each reader that waits holds one task of pyfuse3; when all are held the mount answers nothing."""

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
FULL_COLLECTION = 1000
"""So many collections of the middle generation come before a full one."""

log = logging.getLogger("kmemd.daemon")


class Machine(Protocol):
    """What is served: a ``System``."""

    kernel: Any
    tree: Namespace


@dataclass(frozen=True)
class Options:
    """How to serve. ``real_clock``: idle model time follows the wall clock."""

    allow_other: bool = False
    real_clock: bool = True

    def fuse(self) -> set[str]:
        """The mount options. ``default_permissions``: the kernel checks the mode bits of every access."""
        options = {"default_permissions", "fsname=kmemd", "subtype=kmemd"}
        return options | ({"allow_other"} if self.allow_other else set())


def serve(system: Machine, path: str, options: Options) -> None:
    """Mount, answer until SIGINT, SIGTERM, SIGHUP or an unmount, then unmount. MountError."""
    logging.basicConfig(format="%(name)s: %(message)s")
    trio.run(_main, system, path, options)


@contextmanager
def mounted(system: Machine, path: str, options: Options) -> Iterator[Operations]:
    """Mount at a prepared path, unmounted at the end whatever happens."""
    operations = Operations(system.tree, os.geteuid(), os.getegid(), pyfuse3.invalidate_entry)
    try:
        pyfuse3.init(operations, path, options.fuse())
    except RuntimeError as error:
        raise mountpoint.MountError(f"cannot mount {path}: {error}") from None
    try:
        yield operations
    finally:
        pyfuse3.close(unmount=True)


async def _main(system: Machine, path: str, options: Options) -> None:
    """Signals are received from before the mount until after the unmount, so that none leaves a stale mount."""
    with trio.open_signal_receiver(*SIGNALS) as received, mounted(system, path, options) as operations:
        _settle()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_stop_on_signal, received, nursery.cancel_scope)
            if options.real_clock:
                nursery.start_soon(clock.follow, system.kernel, operations)
            loop.install(lambda: operations.writing)
            notify.notify(notify.READY, f"STATUS=serving {path}")
            await pyfuse3.main(max_tasks=MAX_TASKS)
            nursery.cancel_scope.cancel()
        notify.notify(notify.STOPPING)


def _settle() -> None:
    """Allow a descriptor for each waiting reader, and keep the garbage collector off what was booted.

    Its full collections go over all objects of the model, 20 ms and more of them: they are made rare.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    gc.collect()
    gc.freeze()
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, FULL_COLLECTION)


async def _stop_on_signal(received: AsyncIterator[int], scope: trio.CancelScope) -> None:
    async for number in received:
        log.info("%s: unmounting", signal.Signals(number).name)
        scope.cancel()
        return
