"""Names and inodes in memory, as far as millions of them need room: ``struct dentry`` and ``struct inode``.

Python's collector would walk over them again and again, for half a second at a million. They are compiled without its
header, so that it never sees them; what they refer to leads neither back to them nor to the kernel.
"""

from typing import Any

import cython


@cython.no_gc
@cython.cclass
class Inode:
    """An inode of a file system: ``count`` dentries hold it. It is found by its path."""

    path: str = cython.declare(str, visibility="readonly")
    ino: int = cython.declare(cython.longlong, visibility="readonly")
    address: int = cython.declare(cython.ulonglong, visibility="readonly")
    nid: int = cython.declare(cython.int, visibility="readonly")
    count: int = cython.declare(cython.longlong, visibility="public")
    referenced: bool = cython.declare(cython.bint, visibility="public")

    def __init__(self, path: str, ino: int, address: int, nid: int) -> None:
        self.path = path
        self.ino = ino
        self.address = address
        self.nid = nid
        self.count = 0
        self.referenced = False


@cython.no_gc
@cython.cclass
class Dentry:
    """A name. ``children`` of them are cached below it; without an inode it is negative."""

    path: str = cython.declare(str, visibility="readonly")
    address: int = cython.declare(cython.ulonglong, visibility="readonly")
    nid: int = cython.declare(cython.int, visibility="readonly")
    parent: Any = cython.declare(object, visibility="readonly")
    inode: Any = cython.declare(object, visibility="public")
    children: int = cython.declare(cython.longlong, visibility="public")
    referenced: bool = cython.declare(cython.bint, visibility="public")

    def __init__(self, path: str, address: int, nid: int, parent: Any, inode: Any) -> None:
        self.path = path
        self.address = address
        self.nid = nid
        self.parent = parent
        self.inode = inode
        self.children = 0
        self.referenced = False
