"""The files of kmemleak and page_owner as they are opened, read and written."""

import errno

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
