"""The command file as one descriptor sees it: lines in, replies out.

A write is cut into lines; the part behind the last newline waits for the next write, because bash splits long
output in mid-line. The first line that fails ends the write: what came before counts as taken, and when a
line did come before, the error waits for the writer to go on with the failing line, which is not run again.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable

from kmemd.command_state import CommandState
from kmemd.control.interpreter import Interpreter, describe
from kmemd.control.language import LINE_MAX
from kmemd.errors import KernelError
from kmemd.steps import Steps

REPLIES_KEPT = 4096
"""Replies kept for a descriptor that does not read them; the oldest go."""


class Session:
    """One open of the command file.

    Reads take the next bytes of the replies, whatever the offset: the file position also moves with writes. One read
    gives no more than one line, so that a shell's ``read`` has nothing to seek back over. A descriptor that never
    wrote reads the list of verbs.
    """

    def __init__(self, interpreter: Interpreter, state: CommandState, listing: Callable[[], str]) -> None:
        self._interpreter = interpreter
        self._state = state
        self._listing = listing
        self._partial = b""
        self._failed: tuple[bytes, KernelError] | None = None
        self._replies: deque[bytes] = deque(maxlen=REPLIES_KEPT)
        self._wrote = False

    def read(self, offset: int, size: int) -> bytes:
        """The next bytes of the replies, empty when there are none."""
        if not self._wrote:
            return self._listing().encode()[offset : offset + size]
        if not self._replies:
            return b""
        reply = self._replies.popleft()
        if len(reply) > size:
            self._replies.appendleft(reply[size:])
        return reply[:size]

    def write(self, data: bytes) -> Steps[int]:
        """Run the lines of ``data``; the number of bytes taken. What the failing line raises, if it is first."""
        self._wrote = True
        self._raise_failed(data)
        turn = object()
        self._state.queue(turn)
        try:
            while not self._state.may_run(turn):
                yield
            return (yield from self._lines(data))
        finally:
            self._state.leave(turn)

    def close(self) -> None:
        """Note a last line that no newline ended: it was not run."""
        if self._partial.strip():
            line, self._partial = self._partial, b""
            error = KernelError(errno.EINVAL, "the line was not ended by a newline and did not run")
            self._interpreter.failed(line.decode("utf-8", "replace"), error)

    def _raise_failed(self, data: bytes) -> None:
        """The error of the last write's failing line, if ``data`` goes on with that line."""
        failed, self._failed = self._failed, None
        if failed is not None and data.startswith(failed[0]):
            raise failed[1]

    def _lines(self, data: bytes) -> Steps[int]:
        taken = 0
        while (end := data.find(b"\n", taken)) >= 0:
            line = self._partial + data[taken:end]
            self._partial = b""
            try:
                yield from self._line(line)
            except KernelError as error:
                self._reply(describe(error))
                if taken == 0:
                    raise
                self._failed = (data[taken : end + 1], error)
                return taken
            taken = end + 1
        return self._keep(data, taken)

    def _keep(self, data: bytes, taken: int) -> int:
        """Keep the unfinished line behind ``taken``. EINVAL when it is too long already."""
        rest = self._partial + data[taken:]
        if len(rest) <= LINE_MAX:
            self._partial = rest
            return len(data)
        self._partial = b""
        error = KernelError(errno.EINVAL, f"a line is longer than {LINE_MAX} bytes", LINE_MAX)
        self._interpreter.failed(rest.decode("utf-8", "replace"), error)
        self._reply(describe(error))
        if taken == 0:
            raise error
        self._failed = (data[taken:], error)
        return taken

    def _line(self, line: bytes) -> Steps[int]:
        text = self._decode(line)
        reply = yield from self._interpreter.run(text)
        if reply is not None:
            self._reply(reply)
        return len(line)

    def _decode(self, line: bytes) -> str:
        if len(line) > LINE_MAX:
            error = KernelError(errno.EINVAL, f"the line is longer than {LINE_MAX} bytes", LINE_MAX)
        else:
            try:
                return line.decode()
            except UnicodeDecodeError as wrong:
                column = len(line[: wrong.start].decode())
                error = KernelError(errno.EINVAL, f"byte {line[wrong.start]:#04x} is not UTF-8", column)
        self._interpreter.failed(line.decode("utf-8", "replace"), error)
        raise error

    def _reply(self, text: str) -> None:
        self._replies.extend(line.encode("utf-8", "replace") + b"\n" for line in text.split("\n"))
