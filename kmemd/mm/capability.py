"""Numbers of the capabilities that a file or a call may ask for (include/uapi/linux/capability.h)."""

from __future__ import annotations

CAP_SYS_PTRACE = 19
CAP_SYS_ADMIN = 21
CAP_SYS_NICE = 23
CAP_SYS_RESOURCE = 24
CAP_SYSLOG = 34
