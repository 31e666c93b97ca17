"""What a FUSE handler may raise: every outcome of the model becomes an answer or a ``FUSEError``.

A model error carries its errno. Anything else is a bug of the model: it is logged with its
traceback, the program that asked gets EIO, and the daemon lives on.
"""

from __future__ import annotations

import errno
import functools
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, TypeVar

from pyfuse3 import FUSEError

from kmemd.errors import KernelError

log = logging.getLogger("kmemd.fs")

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")


def failure(error: Exception, where: str) -> FUSEError:
    """The answer for an exception that the model raised in the handler ``where``."""
    if isinstance(error, FUSEError):
        return error
    if isinstance(error, KernelError):
        return FUSEError(error.errno)
    log.error("%s: the model failed", where, exc_info=error)
    return FUSEError(errno.EIO)


def handler(
    function: Callable[Concatenate[S, P], R],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, R]]:
    """Decorator: a handler that never waits, written as a plain method.

    Being synchronous it is atomic: no other request runs in the middle of it.
    """
    name = function.__name__

    @functools.wraps(function)
    async def answer(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(self, *args, **kwargs)
        except Exception as error:
            raise failure(error, name) from None

    return answer


def waiting_handler(
    function: Callable[Concatenate[S, P], Awaitable[R]],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, R]]:
    """Decorator: a handler that may let others run before it answers."""
    name = function.__name__

    @functools.wraps(function)
    async def answer(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return await function(self, *args, **kwargs)
        except Exception as error:
            raise failure(error, name) from None

    return answer
