"""The log's files: one record a read, records written, the old format."""

import errno
import re

import pytest

from kmemd.errors import KernelError
from kmemd.mm.printk import KERN_ERR
from kmemd.steps import finish
from kmemd.system import System
from kmemd.views.kmsg import ext_record, syslog_record
from kmemd.views.tree import Caller

SIZE = 8192


@pytest.fixture
def system():
    return System.boot(cmdline="nokaslr")


def opened(system, path="/dev/kmsg", uid=0):
    return system.tree.open(system.tree.lookup(path), Caller(uid=uid))


def read_all(file):
    lines, offset = [], 0
    while (line := file.read(offset, SIZE)) is not None:
        lines.append(line.decode())
        offset += len(line)
    return lines


def test_one_record_a_read_then_nothing_until_something_new(system):
    log = system.kernel.printk
    log.log(KERN_ERR, "first\nsecond")
    file = opened(system)
    lines = read_all(file)
    assert len(lines) == log.next_seq
    assert re.fullmatch(r"3,\d+,\d+,-;first\n", lines[-2])
    assert not file.readable()
    log.log(KERN_ERR, "third")
    assert file.readable()
    assert file.read(999, SIZE).endswith(b";third\n")
    assert file.read(0, SIZE) == lines[0].encode()


def test_writing_adds_a_record_with_its_priority(system):
    file = opened(system)
    for text in (b"plain\n", b"<3>error", b"<13>user notice\n", b"<x>odd", b"two\nlines"):
        assert finish(file.write(text)) == len(text)
    records = system.kernel.printk.since(0)[-5:]
    assert [ext_record(record).split(b",")[0] for record in records] == [b"12", b"11", b"13", b"12", b"12"]
    assert [record.text for record in records] == ["plain", "error", "user notice", "<x>odd", "two\nlines"]
    assert ext_record(records[-1]).endswith(b";two\\x0alines\n")


def test_a_record_too_long_to_write_or_to_read(system):
    file = opened(system)
    with pytest.raises(KernelError) as caught:
        finish(file.write(b"x" * 993))
    assert caught.value.errno == errno.EINVAL
    finish(file.write(b"x" * 992))
    with pytest.raises(KernelError) as caught:
        file.read(0, 8)
    assert caught.value.errno == errno.EINVAL


def test_overwritten_records_are_epipe_once(system):
    file = opened(system)
    file.read(0, SIZE)
    log = system.kernel.printk
    for number in range(log.CAPACITY + 5):
        log.log(KERN_ERR, str(number))
    with pytest.raises(KernelError) as caught:
        file.read(1, SIZE)
    assert caught.value.errno == errno.EPIPE
    assert file.read(1, SIZE).endswith(b";5\n")


def test_one_open_writes_ten_records_in_five_seconds(system):
    file = opened(system)
    before = system.kernel.printk.next_seq
    for _ in range(12):
        assert finish(file.write(b"again")) == 5
    assert system.kernel.printk.next_seq == before + 10
    system.advance(6)
    finish(file.write(b"later"))
    assert system.kernel.printk.next_seq == before + 11
    file.close()
    assert system.kernel.printk.since(0)[-1].text.endswith(": 2 output lines suppressed due to ratelimiting")


def test_proc_kmsg_shares_its_position(system):
    one, two = opened(system, "/proc/kmsg"), opened(system, "/proc/kmsg")
    text = b"".join(iter(lambda: one.read(0, SIZE) or b"", b""))
    assert text.decode().splitlines()[0].startswith("<")
    assert two.read(0, SIZE) is None
    system.kernel.printk.log(KERN_ERR, "new")
    assert re.fullmatch(rb"<3>\[ +\d+\.\d{6}\] new\n", two.read(0, SIZE))
    assert one.read(0, SIZE) is None


def test_a_record_costs_as_much_however_long_the_log_is(system):
    log = system.kernel.printk
    for number in range(3 * log.CAPACITY // 2):
        log.emit(KERN_ERR, str(number))
    taken = []
    log.since = lambda seq: taken.append(seq)  # what copies the rest of the log
    lines = read_all(opened(system))
    assert len(lines) == log.CAPACITY
    assert [int(line.split(",")[1]) for line in lines] == list(range(log.first_seq, log.next_seq))
    assert not taken
    assert log.find(log.first_seq - 1) is None
    assert log.find(log.next_seq) is None


def test_dmesg_restrict_keeps_the_log_for_root(system):
    system.write("/proc/sys/kernel/dmesg_restrict", "1")
    with pytest.raises(KernelError) as caught:
        opened(system, uid=1000).read(0, SIZE)
    assert caught.value.errno == errno.EPERM
    assert opened(system).read(0, SIZE)


def test_the_old_format_is_whole_and_as_long_as_it_says(system):
    text = system.read("/kmemd/dmesg")
    log = system.kernel.printk
    assert len(text.splitlines()) == log.next_seq
    node = system.tree.lookup("/kmemd/dmesg")
    assert node.entry.length(system.kernel) == len(text)
    assert syslog_record(log.since(0)[0]).encode() == text.splitlines(keepends=True)[0]
