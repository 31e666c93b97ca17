"""What mount(8) does with control groups; all else is in their files under sys/fs/cgroup."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kmemd.control.language import Reply, invalid, verb
from kmemd.control.words import Text

if TYPE_CHECKING:
    from kmemd.kernel import Kernel

CGROUP2 = "/sys/fs/cgroup"


@verb
def remount(kernel: Kernel, point: Text, options: Text) -> Reply:
    """Mount /sys/fs/cgroup anew with options, separated by commas; those that are not named are off.

    memory_recursiveprot shares out what memory.min and memory.low of a group protect among its children,
    memory_localevents keeps what memory.events counts to the group itself.
    """
    if point != CGROUP2:
        invalid(f"{CGROUP2} is what can be mounted anew")
    kernel.cgroups.remount([name for name in options.split(",") if name])
    return Reply({"point": point, "options": ",".join(("rw", "relatime", *kernel.cgroups.options))})
