"""Call sites and the frames above them."""

from __future__ import annotations

import errno
from types import SimpleNamespace

import pytest

from kmemd.control import callsite
from kmemd.errors import KernelError
from kmemd.mm.stackdepot import StackDepot


@pytest.mark.parametrize(
    ("text", "frames"),
    [
        ("leaky_probe", ("leaky_probe",)),
        ("leaky_probe+42", ("leaky_probe+0x2a",)),
        ("leaky_probe+0x2A/0x100[leaky_drv]", ("leaky_probe+0x2a[leaky_drv]",)),
        ("a+0x1[m],b[m],c", ("a+0x1[m]", "b[m]", "c")),
    ],
)
def test_frames(text: str, frames: tuple[str, ...]) -> None:
    assert callsite.frames(text) == frames


@pytest.mark.parametrize("text", ["", "+0x1", "a b", "a[", "a[]", "a+0xfffffffff", "a,,b", "a-b", "é"])
def test_what_is_no_call_site(text: str) -> None:
    with pytest.raises(KernelError) as caught:
        callsite.frames(text)
    assert caught.value.errno == errno.EINVAL


def test_at_most_as_many_frames_as_kmemleak_keeps() -> None:
    callsite.frames(",".join(["f"] * 16))
    with pytest.raises(KernelError):
        callsite.frames(",".join(["f"] * 17))


@pytest.mark.parametrize(
    ("symbol", "above", "outermost"),
    [
        ("leaky_probe+0x2a[leaky_drv]", "really_probe", "entry_SYSCALL_64_after_hwframe"),
        ("leaky_init[leaky_drv]", "do_one_initcall", "entry_SYSCALL_64_after_hwframe"),
        ("flush_work", "process_one_work", "ret_from_fork"),
        ("leaky_thread[leaky_drv]", "kthread", "ret_from_fork"),
        ("leaky_ioctl", "__x64_sys_ioctl", "entry_SYSCALL_64_after_hwframe"),
        ("anything", "vfs_write", "entry_SYSCALL_64_after_hwframe"),
    ],
)
def test_the_name_says_who_calls(symbol: str, above: str, outermost: str) -> None:
    stack = callsite.stack((symbol,), "x86_64")
    assert stack[:2] == (symbol, above)
    assert stack[-1] == outermost


def test_the_outermost_named_frame_decides() -> None:
    stack = callsite.stack(("helper", "leaky_probe[leaky_drv]"), "x86_64")
    assert stack[2] == "really_probe"


def test_i386_has_its_own_entry_code() -> None:
    stack = callsite.stack(("leaky_ioctl",), "i386")
    assert stack == ("leaky_ioctl", "__ia32_sys_ioctl", "do_int80_syscall_32", "entry_INT80_32")


def test_without_a_call_site_it_is_the_command_file() -> None:
    kernel = SimpleNamespace(depot=StackDepot(), machine=SimpleNamespace(arch="x86_64"))
    frames = kernel.depot.frames(callsite.site((), kernel))
    assert frames[:3] == ("ctl_write[kmemd]", "full_proxy_write", "vfs_write")
    assert callsite.site((), kernel) == callsite.site((), kernel)
