"""The inode table: references, and names that come and go."""

from __future__ import annotations

import errno

import pytest

from kmemd.errors import KernelError
from kmemd.fs.inodes import Inode, InodeTable
from kmemd.views.tree import Directory, Namespace, Node, Pattern
from tests.fs.fake import FakeKernel, namespace


def table(kernel: FakeKernel | None = None) -> InodeTable:
    return InodeTable(namespace(kernel), 0, 0)


def walk(inodes: InodeTable, path: str) -> Inode:
    inode = inodes.root
    for name in path.strip("/").split("/"):
        inode = inodes.lookup(inode, name)
    return inode


def test_an_inode_of_changeable_state_goes_with_its_last_reference() -> None:
    inodes = table()
    status = walk(inodes, "/proc/42/status")
    walk(inodes, "/proc/42/status")
    inodes.forget(status.number, 1)
    assert inodes[status.number] is status
    inodes.forget(status.number, 1)
    with pytest.raises(KernelError) as error:
        inodes[status.number]
    assert error.value.errno == errno.ESTALE
    assert walk(inodes, "/proc/42/status").number != status.number


def test_a_static_inode_stays() -> None:
    inodes = table()
    version = walk(inodes, "/proc/version")
    inodes.forget(version.number, 1)
    assert walk(inodes, "/proc/version") is version


def test_a_directory_stays_while_something_below_it_is_known() -> None:
    inodes = table()
    walk(inodes, "/proc/42/status")
    directory = walk(inodes, "/proc/42")
    inodes.forget(directory.number, 2)
    assert inodes[directory.number] is directory


def test_forgetting_an_unknown_number_is_harmless() -> None:
    inodes = table()
    inodes.forget(999, 1)
    assert len(inodes) == 1


def test_only_names_with_a_parameter_may_vanish() -> None:
    inodes = table()
    assert walk(inodes, "/proc/42").may_vanish
    assert not walk(inodes, "/proc/42/status").may_vanish
    assert not walk(inodes, "/proc/version").may_vanish
    assert not inodes.root.may_vanish


def test_vanished_names_and_what_is_below_are_stale() -> None:
    kernel = FakeKernel()
    inodes = table(kernel)
    status, init = walk(inodes, "/proc/42/status"), walk(inodes, "/proc/1")
    assert inodes.vanished() == []
    del kernel.pids[42]
    gone = inodes.vanished()
    assert [inode.name for inode in gone] == ["42"]
    assert status.dead
    assert not init.dead
    assert inodes.vanished() == []


def test_a_stale_inode_leaves_the_table_when_the_kernel_forgets_it() -> None:
    kernel = FakeKernel()
    inodes = table(kernel)
    directory = walk(inodes, "/proc/42")
    known = len(inodes)
    del kernel.pids[42]
    inodes.vanished()
    inodes.forget(directory.number, 1)
    assert len(inodes) == known - 1


class Hosts:
    """A kernel of listed names, and of visitors that no listing shows."""

    def __init__(self) -> None:
        self.listed = ["a", "b"]
        self.visitors = {"v"}
        self.listings = 0

    def keys(self) -> list[str]:
        self.listings += 1
        return list(self.listed)

    def has(self, name: str) -> str | None:
        return name if name in self.listed or name in self.visitors else None


def hosts(*, fixed: bool = False, has: bool = False) -> tuple[Hosts, InodeTable]:
    pattern = Pattern(
        "", "", "host", Directory(),
        keys=lambda kernel: kernel.keys(),
        has=(lambda kernel, name: kernel.has(name)) if has else None,
        fixed=fixed,
    )  # fmt: skip
    kernel = Hosts()
    tree = Namespace(kernel)
    tree.root = Node("/", Directory(patterns=[pattern]))
    return kernel, InodeTable(tree, 0, 0)


def test_names_that_are_not_listed_are_asked_for() -> None:
    kernel, inodes = hosts(has=True)
    for name in ("a", "v"):
        inodes.lookup(inodes.root, name)
    assert inodes.vanished() == []
    assert inodes.vanished() == []
    kernel.visitors.clear()
    assert [inode.name for inode in inodes.vanished()] == ["v"]
    kernel.listed.remove("a")
    assert [inode.name for inode in inodes.vanished()] == ["a"]


def test_a_name_that_joins_after_a_listing_is_watched() -> None:
    kernel, inodes = hosts()
    inodes.lookup(inodes.root, "a")
    assert inodes.vanished() == []
    inodes.lookup(inodes.root, "b")
    kernel.listed.remove("b")
    assert [inode.name for inode in inodes.vanished()] == ["b"]
    kernel.listed.append("b")
    again = inodes.lookup(inodes.root, "b")
    assert inodes.vanished() == []
    assert not again.dead


def test_names_that_boot_settled_are_not_watched() -> None:
    kernel, inodes = hosts(fixed=True)
    assert not inodes.lookup(inodes.root, "a").may_vanish
    kernel.listings = 0
    inodes.vanished()
    assert kernel.listings == 0


def test_nothing_is_listed_for_names_that_nobody_knows() -> None:
    kernel, inodes = hosts()
    inode = inodes.lookup(inodes.root, "a")
    inodes.forget(inode.number, 1)
    kernel.listings = 0
    inodes.vanished()
    assert kernel.listings == 0
