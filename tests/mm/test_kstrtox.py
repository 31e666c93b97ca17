"""Numbers in text, as lib/kstrtox.c reads them."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmemd.errors import KernelError
from kmemd.mm import kstrtox


@pytest.mark.parametrize(
    ("data", "base", "value"),
    [
        (b"12", 10, 12),
        (b"12\n", 10, 12),
        (b"+7", 10, 7),
        (b"0x1f", 0, 31),
        (b"0X1F\n", 0, 31),
        (b"0x1f", 16, 31),
        (b"017", 0, 15),
        (b"017", 10, 17),
        (b"5\x00junk", 10, 5),
        (b"18446744073709551615", 10, 2**64 - 1),
    ],
)
def test_kstrtoull_takes(data: bytes, base: int, value: int) -> None:
    assert kstrtox.kstrtoull(data, base) == value


@pytest.mark.parametrize(
    ("data", "base", "error"),
    [
        (b"", 10, errno.EINVAL),
        (b"-1", 10, errno.EINVAL),
        (b" 1", 10, errno.EINVAL),
        (b"1 ", 10, errno.EINVAL),
        (b"1\n\n", 10, errno.EINVAL),
        (b"0x", 0, errno.EINVAL),
        (b"08", 0, errno.EINVAL),
        (b"1x", 10, errno.EINVAL),
        (b"18446744073709551616", 10, errno.ERANGE),
    ],
)
def test_kstrtoull_refuses(data: bytes, base: int, error: int) -> None:
    with pytest.raises(KernelError) as raised:
        kstrtox.kstrtoull(data, base)
    assert raised.value.errno == error


def test_widths() -> None:
    assert kstrtox.kstrtoint(b"-2147483648") == -(2**31)
    assert kstrtox.kstrtouint(b"4294967295") == 2**32 - 1
    for reader, text in (
        (kstrtox.kstrtoint, b"2147483648"),
        (kstrtox.kstrtouint, b"4294967296"),
        (kstrtox.kstrtoint, b"-2147483649"),
    ):
        with pytest.raises(KernelError) as raised:
            reader(text)
        assert raised.value.errno == errno.ERANGE


@pytest.mark.parametrize(
    ("data", "value"),
    [(b"y", True), (b"never", False), (b"1\\n", True), (b"on", True), (b"OFF", False), (b"0", False), (b"true", True)],
)
def test_kstrtobool(data: bytes, value: bool) -> None:
    assert kstrtox.kstrtobool(data) is value


@pytest.mark.parametrize("data", [b"", b"2", b"o", b"ox", b"always", b"\x00y"])
def test_kstrtobool_refuses(data: bytes) -> None:
    with pytest.raises(KernelError):
        kstrtox.kstrtobool(data)


@given(st.binary(max_size=40), st.sampled_from([0, 8, 10, 16]))
def test_any_bytes_give_a_number_or_an_error(data: bytes, base: int) -> None:
    reason = 0
    try:
        assert 0 <= kstrtox.kstrtoull(data, base) < 2**64
    except KernelError as error:
        reason = error.errno
    assert reason in (0, errno.EINVAL, errno.ERANGE)


@given(st.integers(0, 2**64 - 1))
def test_a_number_reads_back(number: int) -> None:
    assert kstrtox.kstrtoull(str(number).encode()) == number
    assert kstrtox.kstrtoull(hex(number).encode(), 0) == number
