"""A file with a true length shows it, as it is now."""

from kmemd.fs.inodes import InodeTable
from kmemd.system import System


def test_the_size_follows_the_log():
    system = System.boot(cmdline="nokaslr")
    table = InodeTable(system.tree, 0, 0)
    directory = table.lookup(table.root, "kmemd")
    inode = table.lookup(directory, "dmesg")
    before = table.attributes(inode).st_size
    assert before == len(system.read("/kmemd/dmesg"))
    system.kernel.printk.log(3, "one more")
    assert table.attributes(inode).st_size == len(system.read("/kmemd/dmesg")) > before
    assert table.attributes(inode).attr_timeout == 0
    assert table.attributes(table.lookup(directory, "seed")).st_size == 0
