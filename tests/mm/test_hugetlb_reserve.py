"""Region maps and subpools count what huge pages are promised."""

from __future__ import annotations

import errno
from itertools import product

import pytest

from kmemd.errors import KernelError
from kmemd.mm.hugetlb_reserve import ResvMap, Subpool


def test_regions_join_and_split() -> None:
    resv = ResvMap()
    assert (resv.missing(2, 5), resv.add(2, 5), resv.missing(2, 5)) == (3, 3, 0)
    assert resv.add(7, 9) == 2
    assert resv.regions == [(2, 5), (7, 9)]
    assert resv.add(4, 8) == 2
    assert resv.regions == [(2, 9)]
    assert resv.delete(3, 4) == 1
    assert resv.regions == [(2, 3), (4, 9)]
    assert (resv.count(0, 100), resv.delete(0, 100), resv.regions) == (6, 6, [])


def test_regions_are_the_set_of_their_pages() -> None:
    spans = [(0, 2), (1, 4), (5, 6), (3, 7), (0, 8)]
    for first, second, third in product(spans, repeat=3):
        resv, pages = ResvMap(), set(range(*first))
        resv.add(*first)
        assert resv.add(*second) == len(set(range(*second)) - pages)
        pages |= set(range(*second))
        assert resv.delete(*third) == len(pages & set(range(*third)))
        pages -= set(range(*third))
        assert {page for low, high in resv.regions for page in range(low, high)} == pages
        assert all(a[1] < b[0] for a, b in zip(resv.regions, resv.regions[1:], strict=False))


class Pool:
    """Counts reservations; refuses beyond ``size``."""

    def __init__(self, size: int) -> None:
        self.size, self.resv = size, 0

    def account(self, delta: int) -> None:
        if self.resv + delta > self.size:
            raise KernelError(errno.ENOMEM, "too few pages")
        self.resv += delta


def test_subpool_with_a_maximum() -> None:
    subpool = Subpool(Pool(100).account, max_hpages=4)
    assert (subpool.get_pages(3), subpool.get_pages(2), subpool.get_pages(1)) == (3, None, 1)
    assert (subpool.put_pages(4), subpool.used) == (4, 0)


def test_subpool_with_a_minimum_holds_it_reserved() -> None:
    pool = Pool(10)
    subpool = Subpool(pool.account, min_hpages=3)
    assert pool.resv == 3
    assert (subpool.get_pages(2), subpool.get_pages(2)) == (0, 1)
    assert (subpool.put_pages(1), subpool.put_pages(2), subpool.put_pages(1)) == (0, 0, 1)
    subpool.unmount()
    assert pool.resv == 0


def test_subpool_that_cannot_have_its_minimum() -> None:
    with pytest.raises(KernelError) as error:
        Subpool(Pool(2).account, min_hpages=3)
    assert error.value.errno == errno.ENOMEM
