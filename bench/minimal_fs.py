"""``python -m bench.minimal_fs MOUNTPOINT FILE``: the smallest pyfuse3 file system, one file with constant bytes."""

from __future__ import annotations

import errno
import stat
import sys
from pathlib import Path

import pyfuse3
import trio


class Constant(pyfuse3.Operations):
    """The root directory and ``file``, which holds what FILE held at the start. Attributes are cached, as kmemd's."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.data = data

    async def getattr(self, inode, ctx=None):
        attributes = pyfuse3.EntryAttributes()
        attributes.st_ino = inode
        attributes.st_mode = stat.S_IFDIR | 0o755 if inode == pyfuse3.ROOT_INODE else stat.S_IFREG | 0o444
        return attributes

    async def lookup(self, parent_inode, name, ctx=None):
        if name != b"file":
            raise pyfuse3.FUSEError(errno.ENOENT)
        return await self.getattr(pyfuse3.ROOT_INODE + 1)

    async def open(self, inode, flags, ctx):
        return pyfuse3.FileInfo(fh=inode, direct_io=True, keep_cache=False)

    async def read(self, fh, off, size):
        return self.data[off : off + size]

    async def release(self, fh):
        pass


def main() -> None:
    """Serve until unmounted."""
    pyfuse3.init(Constant(Path(sys.argv[2]).read_bytes()), sys.argv[1], {"fsname=minimal", "default_permissions"})
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close(unmount=True)


if __name__ == "__main__":
    main()
