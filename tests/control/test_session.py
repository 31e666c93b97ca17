"""The command file as one descriptor sees it, over an interpreter of the test's own."""

from __future__ import annotations

import errno

import pytest

from kmemd.command_state import CommandState
from kmemd.control.language import LINE_MAX
from kmemd.control.session import REPLIES_KEPT, Session
from kmemd.errors import KernelError
from kmemd.steps import finish


class Echo:
    """Answers with the line; a line that begins with "bad" fails, one that begins with "long" takes three slices."""

    def __init__(self):
        self.ran: list[str] = []
        self.log: list[str] = []

    def run(self, line):
        self.ran.append(line)
        if line.startswith("long"):
            yield
            yield
        if line.startswith("bad"):
            error = KernelError(errno.EINVAL, f"{line} is bad", 0)
            self.failed(line, error)
            raise error
        return line or None

    def failed(self, line, error):
        self.log.append(f"{line[:20]}: {error.reason}")


class Desk:
    """An interpreter, the state writers share, and as many sessions as a test opens."""

    def __init__(self):
        self.echo = Echo()
        self.state = CommandState()

    def open(self) -> Session:
        return Session(self.echo, self.state, lambda: "verbs\n")


@pytest.fixture
def desk() -> Desk:
    return Desk()


def read_all(session: Session) -> list[bytes]:
    found = []
    while data := session.read(12345, 4096):
        found.append(data)
    return found


def test_a_line_runs_inside_the_write_and_its_reply_is_read_from_the_same_descriptor(desk: Desk) -> None:
    session, other = desk.open(), desk.open()
    assert finish(session.write(b"one\n")) == 4
    assert desk.echo.ran == ["one"]
    assert other.read(0, 4096) == b"verbs\n"
    assert session.read(4, 4096) == b"one\n"
    assert session.read(8, 4096) == b""


def test_a_read_gives_at_most_one_line_and_no_more_than_it_asked_for(desk: Desk) -> None:
    session = desk.open()
    finish(session.write(b"one\ntwo\n\n# \nthree\n"))
    assert session.read(0, 2) == b"on"
    assert session.read(2, 100) == b"e\n"
    assert read_all(session) == [b"two\n", b"# \n", b"three\n"]


def test_who_never_wrote_reads_the_verbs(desk: Desk) -> None:
    session = desk.open()
    assert session.read(0, 3) == b"ver"
    assert session.read(3, 100) == b"bs\n"
    assert session.read(6, 100) == b""
    finish(session.write(b"one\n"))
    assert read_all(session) == [b"one\n"]


def test_a_line_split_between_two_writes_runs_once_whole(desk: Desk) -> None:
    session = desk.open()
    assert finish(session.write(b"one\ntw")) == 6
    assert finish(session.write(b"o\n")) == 2
    assert desk.echo.ran == ["one", "two"]


def test_a_split_character_is_put_together(desk: Desk) -> None:
    session = desk.open()
    data = "é\n".encode()
    finish(session.write(data[:1]))
    finish(session.write(data[1:]))
    assert desk.echo.ran == ["é"]


def test_the_first_line_that_fails_gives_its_errno(desk: Desk) -> None:
    session = desk.open()
    with pytest.raises(KernelError) as caught:
        finish(session.write(b"bad\nnever\n"))
    assert caught.value.errno == errno.EINVAL
    assert desk.echo.ran == ["bad"]
    assert read_all(session) == [b"error=EINVAL column=0 reason=bad is bad\n"]


def test_a_later_failure_counts_the_lines_done_and_waits_for_the_writer_to_go_on(desk: Desk) -> None:
    session = desk.open()
    data = b"one\ntwo\nbad\nnever\n"
    taken = finish(session.write(data))
    assert data[taken:] == b"bad\nnever\n"
    with pytest.raises(KernelError):
        finish(session.write(data[taken:]))
    assert desk.echo.ran == ["one", "two", "bad"]
    assert len(desk.echo.log) == 1
    assert finish(session.write(b"next\n")) == 5


def test_a_writer_that_does_something_else_after_a_failure_is_not_told_again(desk: Desk) -> None:
    session = desk.open()
    assert finish(session.write(b"one\nbad\n")) == 4
    assert finish(session.write(b"next\n")) == 5
    with pytest.raises(KernelError):
        finish(session.write(b"bad\n"))
    assert desk.echo.ran == ["one", "bad", "next", "bad"]


def test_a_failing_line_that_began_in_an_earlier_write(desk: Desk) -> None:
    session = desk.open()
    assert finish(session.write(b"one\nba")) == 6
    with pytest.raises(KernelError):
        finish(session.write(b"d\ntwo\n"))
    assert finish(session.write(b"three\n")) == 6
    assert desk.echo.ran == ["one", "bad", "three"]


@pytest.mark.parametrize("data", [b"\xff\n", b"ok \xc3(\n", b"x" * (LINE_MAX + 1) + b"\n", b"x" * (LINE_MAX + 1)])
def test_what_is_no_line_is_einval_and_logged(desk: Desk, data: bytes) -> None:
    session = desk.open()
    with pytest.raises(KernelError) as caught:
        finish(session.write(data))
    assert caught.value.errno == errno.EINVAL
    assert desk.echo.ran == []
    assert len(desk.echo.log) == 1
    assert finish(session.write(b"next\n")) == 5


def test_an_overlong_line_behind_good_ones(desk: Desk) -> None:
    session = desk.open()
    data = b"one\n" + b"x" * (1 << 20)
    taken = finish(session.write(data))
    assert taken == 4
    with pytest.raises(KernelError):
        finish(session.write(data[taken:]))


def test_a_line_without_newline_does_not_run_and_close_says_so(desk: Desk) -> None:
    session = desk.open()
    finish(session.write(b"one"))
    session.close()
    assert desk.echo.ran == []
    assert desk.echo.log == ["one: the line was not ended by a newline and did not run"]


def test_an_empty_write_takes_nothing(desk: Desk) -> None:
    assert finish(desk.open().write(b"")) == 0


def test_writers_queue_and_lines_do_not_mix(desk: Desk) -> None:
    first, second, third = desk.open().write(b"long a\nb\n"), desk.open().write(b"c\n"), desk.open().write(b"d\n")
    next(first)
    next(second)
    next(third)
    next(second)
    assert desk.echo.ran == ["long a"]
    assert finish(first) == 9
    next(third)
    assert finish(second) == 2
    assert finish(third) == 2
    assert desk.echo.ran == ["long a", "b", "c", "d"]
    assert not desk.state.busy


def test_a_writer_that_fails_lets_the_next_one_in(desk: Desk) -> None:
    with pytest.raises(KernelError):
        finish(desk.open().write(b"bad\n"))
    assert not desk.state.busy


def test_replies_that_nobody_reads_are_bounded(desk: Desk) -> None:
    session = desk.open()
    for number in range(REPLIES_KEPT + 10):
        finish(session.write(f"{number}\n".encode()))
    replies = read_all(session)
    assert len(replies) == REPLIES_KEPT
    assert replies[0] == b"10\n"
