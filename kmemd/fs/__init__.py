"""The tree of pseudo files as a FUSE file system: inodes, handles, errno, waiting. No model knowledge."""
