"""The grammar, on verbs and a kernel of the test's own."""

from __future__ import annotations

import errno
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmemd.control.language import LINE_MAX, Command, Reply, Verbs, parse, split, suggestion
from kmemd.control.words import GENERIC, Address, Count, Duration, Gfp, Order, Size, Text
from kmemd.errors import KernelError
from kmemd.mm.gfp import GFP_KERNEL
from kmemd.mm.handles import Handle, Handles, Kind


def take(kernel, *, order: Order = 0, gfp: Gfp = GFP_KERNEL, n: Count = 1) -> Reply:
    """Take."""
    return Reply()


def give(kernel, what: Address, size: Size = 0, *, after: Duration) -> Reply:
    """Give."""
    return Reply()


def say(kernel, *text: Text) -> Reply:
    """Say."""
    return Reply()


VERBS = Verbs()
VERBS.declare(take, makes_handle=True)
VERBS.declare(give, makes_handle=False)
VERBS.declare(say, makes_handle=False)


def fake_kernel() -> SimpleNamespace:
    handles = Handles()
    pointers = np.array([0xFFFF888000100000, 0xFFFF888000200000], dtype=np.uint64)
    handles.bind("p", Handle(Kind.SLAB, pointers, size=96))
    handles.bind("t", Handle(Kind.TASK, pid=7))
    nodes = [SimpleNamespace(nid=0, cpus=(0, 1)), SimpleNamespace(nid=1, cpus=(2, 3))]
    return SimpleNamespace(handles=handles, nodes=nodes)


KERNEL = fake_kernel()


def parsed(line: str) -> Command:
    command = parse(line, VERBS, GENERIC, KERNEL)
    assert command is not None
    return command


def refused(line: str) -> KernelError:
    with pytest.raises(KernelError) as caught:
        parse(line, VERBS, GENERIC, KERNEL)
    return caught.value


def test_words_know_their_columns() -> None:
    name, words = split("  p = take order=3   n=7 # two of them")
    assert name is not None
    assert (name.text, name.column) == ("p", 2)
    assert [(word.text, word.column) for word in words] == [("take", 6), ("order=3", 11), ("n=7", 21)]


@pytest.mark.parametrize("line", ["p=take", "p =take", "p= take", "p = take"])
def test_spaces_around_the_equals_sign_do_not_matter(line: str) -> None:
    command = parsed(line)
    assert command.name is not None
    assert command.name.text == "p"


@pytest.mark.parametrize("line", ["", "   ", "\t", "# all comment", "   # indented"])
def test_blank_lines_and_comments_are_nothing(line: str) -> None:
    assert parse(line, VERBS, GENERIC, KERNEL) is None


def test_keys_are_read_by_type_and_the_rest_is_default() -> None:
    command = parsed("take order=3 gfp=GFP_ATOMIC|__GFP_ZERO n=0x10")
    assert command.keyword == {"order": 3, "gfp": 0x220 | 0x800 | 0x100, "n": 16}
    assert parsed("take").keyword == {}


def test_positional_words_may_be_given_by_key() -> None:
    assert parsed("give p 4K after=1").positional[1] == 4096
    assert parsed("give size=4K what=p after=1").positional[1] == 4096


def test_generic_keys_belong_to_every_verb() -> None:
    command = parsed("take by=leaky_probe+42[leaky_drv],helper comm=modprobe cpu=3 pid=12")
    assert command.generic == {
        "by": ("leaky_probe+0x2a[leaky_drv]", "helper"),
        "comm": "modprobe",
        "cpu": 3,
        "pid": 12,
    }


def test_the_rest_of_the_words_may_look_like_keys() -> None:
    assert parsed("say order=3 here = x").positional == ("order=3", "here", "=", "x")


@pytest.mark.parametrize(
    ("line", "column", "reason"),
    [
        ("tkae", 0, "no verb tkae (did you mean take?)"),
        ("TAKE", 0, "no verb TAKE (did you mean take?)"),
        ("p =", 3, "p = needs a verb"),
        ("x = give p after=1", 0, "give gives nothing to name"),
        ("take oder=3", 5, "take has no key oder (did you mean order?)"),
        ("take order=3 order=4", 13, "order= is given twice"),
        ("take 3", 5, "take takes no word 3: [NAME =] take [order=ORDER] [gfp=GFP] [n=COUNT]"),
        ("take order=", 11, "order: an order is missing"),
        ("take order=x", 11, "order: x is not a number"),
        ("take order=11", 11, "order: 11 is beyond 10"),
        ("take order=-1", 11, "order: -1 is not a number"),
        ("take order=99999999999999999999999", 11, "order: 99999999999999999999999 is beyond 10"),
        ("take gfp=GFP_KERNEL|__GFP_ZRO", 20, "gfp: no flag __GFP_ZRO (did you mean __GFP_ZERO?)"),
        ("take gfp=GFP_KERNEL|", 20, "gfp: a flag is missing"),
        ("take n=0", 7, "n: a count is 1 or more"),
        ("take cpu=4", 9, "cpu: no CPU 4; there are 4"),
        ("take by=a+b", 8, "by: a+b is not a call site; write symbol+0x2a[module]"),
        ("take by=ok,not-ok", 11, "by: not-ok is not a call site; write symbol+0x2a[module]"),
        ("give", 4, "give needs WHAT: give WHAT [SIZE] after=DURATION"),
        ("give p", 6, "give needs after=DURATION"),
        ("give p 4Q after=1", 7, "size: 4Q is not a size; write bytes, or a number with K, M, G or T"),
        ("give p 9999999999T after=1", 7, "size: 9999999999T does not fit 63 bits"),
        ("give t after=1", 5, "what: t is task and has no address"),
        ("give p after=-3", 13, "after: -3 is not a duration; write 5, 0.25, 10ms, 3us, 2m"),
        ("say \0", 4, "a NUL byte in the line"),
    ],
)
def test_errors_say_where_and_what_would_be_right(line: str, column: int, reason: str) -> None:
    error = refused(line)
    assert (error.errno, error.column, error.reason) == (errno.EINVAL, column, reason)


@pytest.mark.parametrize("word", ["q", "p[2]", "abc", "q+8"])
def test_no_such_handle_is_enoent(word: str) -> None:
    error = refused(f"give {word} after=1")
    assert (error.errno, error.column) == (errno.ENOENT, 5)


@pytest.mark.parametrize(
    ("word", "address"),
    [
        ("p", 0xFFFF888000100000),
        ("p[1]", 0xFFFF888000200000),
        ("p+8", 0xFFFF888000100008),
        ("p[1]+0x10", 0xFFFF888000200010),
        ("0xffff888000100000", 0xFFFF888000100000),
        ("ffff888000100000+16", 0xFFFF888000100010),
        ("0", 0),
    ],
)
def test_addresses(word: str, address: int) -> None:
    assert parsed(f"give {word} after=1").positional[0].address == address


@pytest.mark.parametrize(
    ("word", "ns"),
    [("5", 5 * 10**9), ("0.25", 250_000_000), ("10ms", 10**7), ("1.5us", 1500), ("3ns", 3), ("2m", 120 * 10**9)],
)
def test_durations(word: str, ns: int) -> None:
    assert parsed(f"give p after={word}").keyword["after"] == ns


@pytest.mark.parametrize(
    ("word", "size"), [("4096", 4096), ("4k", 4096), ("2MiB", 2 << 20), ("1GB", 1 << 30), ("0x10K", 16384)]
)
def test_sizes(word: str, size: int) -> None:
    assert parsed(f"give p {word} after=1").positional[1] == size


def test_every_k_th_item_and_at_most_n() -> None:
    handle = Handle(Kind.SLAB, np.arange(1, 11, dtype=np.uint64))
    KERNEL.handles.bind("ten", handle)
    what = parsed("give ten after=1").positional[0]
    assert what.positions(every=3) == range(0, 10, 3)
    assert what.positions(every=3, n=2) == range(0, 6, 3)
    assert parsed("give ten[4] after=1").positional[0].positions() == range(4, 5)


def test_suggestions_are_close_or_absent() -> None:
    assert suggestion("kmaloc", ["kmalloc", "kfree"]) == " (did you mean kmalloc?)"
    assert suggestion("xyzzy", ["kmalloc", "kfree"]) == ""


def test_a_reply_is_words_and_the_time_it_took() -> None:
    assert Reply({"pfn": 4096, "zone": "Normal"}).text(1500) == "pfn=4096 zone=Normal ns=1500"


HOSTILE = ("\0", "ÿ", "९", "9" * 5000, "0x" + "f" * 40)
WORDS = "take give say p = t order=3 order= gfp=| n=1e3 p[ p[0]+ # by=, -1 after=1. by=a[b] p= == pid=t"
PIECES = (*WORDS.split(), *HOSTILE)
LINES = st.one_of(
    st.text(max_size=200),
    st.lists(st.sampled_from(PIECES), max_size=8).map(" ".join),
)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(LINES)
def test_whatever_is_written_the_only_exception_is_kernel_error(line: str) -> None:
    error = KernelError(errno.EINVAL, "nothing wrong", 0)
    try:
        parse(line, VERBS, GENERIC, KERNEL)
    except KernelError as caught:
        error = caught
    assert error.errno in (errno.EINVAL, errno.ENOENT)
    assert error.column is None or 0 <= error.column <= len(line)
    assert "\n" not in error.reason
    assert len(error.reason) < 400


def test_a_line_as_long_as_may_be_is_read_in_time() -> None:
    error = refused("take " + "x" * (LINE_MAX - 5))
    assert error.reason.startswith("take takes no word " + "x" * 40 + "...:")
