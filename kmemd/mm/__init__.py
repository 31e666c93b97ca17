"""The memory manager: one module per Linux subsystem, named as in Linux."""
