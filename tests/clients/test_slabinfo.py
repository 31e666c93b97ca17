"""The kernel's slabinfo on the model's /sys/kernel/slab."""

from __future__ import annotations

import re

import pytest

from tests.clients.conftest import Mounted

pytestmark = pytest.mark.mount


def test_caches_and_their_objects(mounted: Mounted, slabinfo: str) -> None:
    rows = {line.split()[0]: line.split() for line in mounted.bound(slabinfo, "-l").splitlines() if line}
    assert rows["Name"][:3] == ["Name", "Objects", "Objsize"]
    active = re.search(r"^kmalloc-1k +(\d+)", mounted.text("proc/slabinfo"), re.M)
    assert active is not None
    assert int(rows["kmalloc-1k"][1]) == int(active[1]) >= 5000
    assert int(rows["kmalloc-1k"][2]) == 1024


def test_totals(mounted: Mounted, slabinfo: str) -> None:
    output = mounted.bound(slabinfo, "-T")
    caches = re.search(r"Slabcaches *: *(\d+)", output)
    assert caches is not None
    assert int(caches[1]) == sum(
        path.is_dir() and not path.is_symlink() for path in (mounted.path / "sys/kernel/slab").iterdir()
    )
