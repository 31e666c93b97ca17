"""Rate limits: a burst in an interval, and the count of what was left out."""

from __future__ import annotations

from kmemd.core.context import Context
from kmemd.mm.clock import NSEC_PER_SEC
from kmemd.mm.printk import Printk
from kmemd.mm.ratelimit import RateLimit


def test_ten_in_five_seconds_and_a_word_on_the_rest() -> None:
    context = Context()
    printk = Printk(context)
    limit = RateLimit(lambda: context.now, printk)
    assert [limit("f") for _ in range(12)] == [True] * 10 + [False] * 2
    context.charge(5 * NSEC_PER_SEC)
    assert not limit("f")
    context.charge(1)
    assert limit("f")
    assert [record.text for record in printk.since(0)] == ["f: 3 callbacks suppressed"]


def test_no_interval_is_no_limit() -> None:
    context = Context()
    limit = RateLimit(lambda: 0, Printk(context), lambda: 0, lambda: 1)
    assert limit("f")
    assert limit("f")
