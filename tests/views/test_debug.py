"""The files of kmemleak and page_owner as they are opened, read and written."""

import errno
import re

import pytest

from kmemd.steps import finish
from kmemd.system import System
from kmemd.views.stream import StreamFile

LEAKS = "/sys/kernel/debug/kmemleak"


def test_page_owner_is_there_only_when_booted_with_it():
    with pytest.raises(OSError, match="page_owner") as caught:
        System.boot(cmdline="nokaslr").read("/sys/kernel/debug/page_owner")
    assert caught.value.errno == errno.ENOENT
    system = System.boot(cmdline="nokaslr page_owner=on")
    text = system.read("/sys/kernel/debug/page_owner")
    assert text.startswith(b"Page allocated via order ")
    assert text.endswith(b"\n\n")
    node = system.tree.lookup("/sys/kernel/debug/page_owner")
    assert node.entry.mode == 0o400


def test_a_leak_from_the_command_line_to_the_file():
    system = System.boot(cmdline="nokaslr")
    system.command("leak = kmalloc 100 n=3 by=leaky_probe+0x2a[leaky_drv]")
    system.command("kept = kmalloc 100")
    system.command("forget leak")
    system.advance(6)
    assert system.write(LEAKS, "scan\n") == 5
    text = system.read(LEAKS).decode()
    assert text.count("unreferenced object") == 3
    assert text.count("leaky_probe+0x2a/") == 3
    assert system.write(LEAKS, "clear") == 5
    assert system.read(LEAKS) == b""
    system.check()


def test_the_captured_writes():
    system = System.boot()
    with pytest.raises(OSError, match="EINVAL") as caught:
        system.write(LEAKS, "on")
    assert caught.value.errno == errno.EINVAL
    assert system.write(LEAKS, "off") == 3
    assert system.write(LEAKS, "clear") == 5
    for text in ("scan", "stack=on", "scan=600", "dump=zz", "", "0"):
        with pytest.raises(OSError, match="EPERM") as caught:
            system.write(LEAKS, text)
        assert caught.value.errno == errno.EPERM
    assert system.read(LEAKS) == b""


def test_warnings_come_once_until_they_are_cleared():
    system = System.boot(cmdline="nokaslr")
    clear = "/sys/kernel/debug/clear_warn_once"
    warning = "kmalloc 64M"

    def warnings():
        first = system.kernel.printk.next_seq
        with pytest.raises(OSError, match="ENOMEM"):
            system.command(warning)
        return sum(record.text.startswith("WARNING: ") for record in system.kernel.printk.since(first))

    assert (warnings(), warnings()) == (1, 0)
    for bad in ("x", "-1"):
        with pytest.raises(OSError, match="EINVAL"):
            system.write(clear, bad)
    assert warnings() == 0
    assert system.write(clear, "1\n") == 2
    assert (warnings(), warnings()) == (1, 0)
    assert system.tree.lookup(clear).entry.mode == 0o200


def test_a_stream_is_a_window_on_text_that_is_made_once():
    made = []

    def pieces():
        for number in range(40):
            made.append(number)
            yield f"{number:02d}" * 100_000

    whole = "".join(f"{number:02d}" * 100_000 for number in range(40)).encode()
    file = StreamFile(pieces)
    got, offset = b"", 0
    while part := file.read(offset, 131_072):
        got += part
        offset += len(part)
    assert got == whole
    assert made == list(range(40))
    assert file.read(offset - 10, 10) == whole[-10:]
    assert made == list(range(40))
    assert file.read(1000, 10) == whole[1000:1010]
    assert len(made) == 41
    file.close()


def test_a_stream_without_store_cannot_be_written():
    with pytest.raises(Exception, match="EINVAL"):
        finish(StreamFile(lambda: iter(())).write(b"x"))


STACKS = "/sys/kernel/debug/page_owner_stacks"


def test_page_owner_stacks_count_the_pages_of_each_stack():
    system = System.boot(cmdline="nokaslr page_owner=on")
    system.command("a = alloc_pages order=3 n=20 by=first_user")
    system.command("b = alloc_pages order=0 n=7 by=second_user")
    records = system.read(f"{STACKS}/show_stacks").decode().split("\n\n")[:-1]
    assert "second_user+" in records[0], "the newest stack stands first"
    counts = {record: int(record.rpartition("nr_base_pages: ")[2]) for record in records}
    by = {name: [n for record, n in counts.items() if name in record] for name in ("first_user", "second_user")}
    assert by == {"first_user": [160], "second_user": [7]}
    owned = system.read("/sys/kernel/debug/page_owner").decode()
    orders = [int(order) for order in re.findall(r"^Page allocated via order (\d+)", owned, re.MULTILINE)]
    assert sum(counts.values()) == sum(1 << order for order in orders)
    system.command("free_pages a")
    assert "first_user" not in system.read(f"{STACKS}/show_stacks").decode()
    system.check()


def test_page_owner_stacks_below_the_threshold_are_left_out():
    system = System.boot(cmdline="nokaslr page_owner=on")
    system.command("b = alloc_pages order=0 n=7 by=second_user")
    for threshold, shown in (("0x7", True), ("8\n", False)):
        assert system.write(f"{STACKS}/count_threshold", threshold) == len(threshold)
        assert ("second_user" in system.read(f"{STACKS}/show_stacks").decode()) is shown
    assert system.read(f"{STACKS}/count_threshold") == b"8\n"
    with pytest.raises(OSError, match="EINVAL"):
        system.write(f"{STACKS}/count_threshold", "many")
    with pytest.raises(OSError, match="page_owner_stacks"):
        System.boot(cmdline="nokaslr").read(f"{STACKS}/show_stacks")
