"""Handlers raise nothing but FUSEError."""

from __future__ import annotations

import errno
import logging

import pytest
import trio
from pyfuse3 import FUSEError

from kmemd.errors import KernelError
from kmemd.fs.answers import handler, waiting_handler


class Example:
    @handler
    def now(self, error: BaseException | None) -> str:
        if error is not None:
            raise error
        return "answer"

    @waiting_handler
    async def later(self, error: BaseException | None) -> str:
        await trio.lowlevel.checkpoint()
        if error is not None:
            raise error
        return "answer"


@pytest.fixture(params=["now", "later"])
def call(request: pytest.FixtureRequest):
    return getattr(Example(), request.param)


async def test_an_answer(call) -> None:
    assert await call(None) == "answer"


@pytest.mark.parametrize(
    ("raised", "number"),
    [
        (KernelError(errno.ENOMEM, "no memory"), errno.ENOMEM),
        (FUSEError(errno.EINTR), errno.EINTR),
    ],
)
async def test_an_errno_is_kept_and_not_logged(
    call, raised: Exception, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(FUSEError) as error:
        await call(raised)
    assert error.value.errno == number
    assert caplog.text == ""


async def test_anything_else_is_eio_with_a_traceback_in_the_log(call, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR), pytest.raises(FUSEError) as error:
        await call(ZeroDivisionError("a bug"))
    assert error.value.errno == errno.EIO
    assert "ZeroDivisionError: a bug" in caplog.text


async def test_cancellation_passes() -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await Example().later(None)
    assert scope.cancelled_caught
