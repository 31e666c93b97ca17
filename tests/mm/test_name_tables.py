"""Tables of names in parts behave as one dictionary, and as one ordered set."""

from __future__ import annotations

from random import Random

import pytest

from kmemd.mm import name_tables
from kmemd.mm.name_tables import NameTable, Queue


def test_a_table_is_a_dictionary() -> None:
    table, plain, random = NameTable[int](), dict[str, int](), Random(1)
    for step in range(5000):
        name = f"/mnt/f{random.randrange(700)}"
        if random.random() < 0.6:
            table[name] = plain[name] = step
        else:
            assert table.pop(name) == plain.pop(name, None)
        assert (len(table), name in table, table.get(name)) == (len(plain), name in plain, plain.get(name))
    assert dict(table.items()) == plain
    assert sorted(table.values()) == sorted(plain.values())
    while plain:
        name, value = table.popitem()
        assert plain.pop(name) == value
    assert len(table) == 0
    with pytest.raises(KeyError):
        table.popitem()


def test_the_order_of_a_table_follows_from_its_names() -> None:
    names = [f"/mnt/f{number}" for number in range(1000)]
    first, second = NameTable[int](), NameTable[int]()
    for name in names:
        first[name] = 1
    for name in reversed(names):
        second[name] = 1
    parts = [[sorted(part) for part in table._parts] for table in (first, second)]
    assert parts[0] == parts[1]
    assert max(map(len, parts[0])) < 30, "names that follow each other are spread"


def test_a_queue_keeps_the_order_in_which_things_came(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(name_tables, "CHUNK", 8)
    queue, plain, random = Queue[int](), list[int](), Random(2)
    for _ in range(5000):
        item = random.randrange(60)
        what = random.random()
        if what < 0.5 and item not in plain:
            queue.append(item)
            plain.append(item)
        elif what < 0.75:
            assert queue.remove(item) == (item in plain)
            plain = [other for other in plain if other != item]
        elif plain:
            assert queue.popleft() == plain.pop(0)
        assert (len(queue), item in queue) == (len(plain), item in plain)
    assert all(queue._chunks.values())
    with pytest.raises(KeyError):
        Queue[int]().popleft()
