"""Reads a machine from a TOML file, and says exactly what is wrong with it when it cannot.

description = "two nodes"
arch = "x86_64"                   # or "i386"
cpus = 4
cpu_features = ["pdpe1gb"]        # optional: 1 GiB pages; "smep", "smap", "rdrand"
soft_dirty = true                 # optional: pagemap tells which pages were written
distances = [[10, 20], [20, 10]]  # optional, 10 to itself and 20 to others otherwise
cmdline = "console=ttyS0"         # optional
[[node]]
memory = "2G"
cpus = "0-1"                      # optional with one node: all
[[swap]]
path = "/dev/vdb"
size = "1G"
[[disk]]                          # optional: disks with a speed of their own
path = "/dev/ram0"
read_latency = 100                # us of a request
write_bandwidth = "200M"          # bytes a second
[latency]
minor_fault = 600                 # ns
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kmemd.machine import DEFAULT_CMDLINE, MIN_MEMORY, DiskDevice, Latency, Machine, MachineError, SwapDevice
from kmemd.mm.params import memparse
from kmemd.mm.units import PAGE_SIZE

MAX_NODES = 64
MAX_CPUS = 8192
MAX_MEMORY = 1 << 42
_SIZE = re.compile(r"\d+[KMGT]?")
CPU_FEATURES = {"x86_64": ("pdpe1gb", "smep", "smap", "rdrand"), "i386": ("rdrand",)}
_KEYS = (
    *("description", "arch", "cpus", "cpu_features", "soft_dirty", "distances", "cmdline", "node", "swap", "latency"),
    "disk",
)
_NODE_KEYS = ("memory", "cpus")
_SWAP_KEYS = ("path", "size", "kind", "priority", "active")
_DISK_LATENCIES = ("read_latency", "write_latency")
_DISK_BANDWIDTHS = ("read_bandwidth", "write_bandwidth")
_DISK_KEYS = ("path", *_DISK_LATENCIES, *_DISK_BANDWIDTHS)
MAX_LATENCY_US, MAX_BANDWIDTH = 10**9, 1 << 40
NS_PER_US = 1000
_DISK_PATH = re.compile(r"/dev/[A-Za-z0-9_-]+")


class _Reader:
    """One file: every complaint names it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def bad(self, key: str, value: object, allowed: str) -> MachineError:
        return MachineError(f"{self.path}: {key} = {value!r}: must be {allowed}")

    def known(self, where: str, table: Mapping[str, Any], keys: Sequence[str]) -> None:
        for key in table:
            if key not in keys:
                name = f"{where}.{key}" if where else key
                raise MachineError(f"{self.path}: {name}: unknown key; allowed are {', '.join(keys)}")

    def integer(self, key: str, value: object, low: int, high: int) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.bad(key, value, f"an integer from {low} to {high}")
        return value

    def size(self, key: str, value: object, low: int, high: int) -> int:
        """A size such as "512M", a whole number of pages."""
        if isinstance(value, int) and not isinstance(value, bool):
            size = value
        elif isinstance(value, str) and _SIZE.fullmatch(value):
            size = memparse(value)[0]
        else:
            raise self.bad(key, value, 'a size such as "512M" or "2G"')
        if size % 4096 or not low <= size <= high:
            raise self.bad(key, value, f"whole pages, from {low} to {high} bytes")
        return size

    def text(self, key: str, value: object) -> str:
        if not isinstance(value, str) or "\n" in value:
            raise self.bad(key, value, "one line of text")
        return value

    def tables(self, key: str, value: object) -> list[dict[str, Any]]:
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise self.bad(key, value, f"a list of tables, [[{key}]]")
        return value


def load_machine(path: Path) -> Machine:
    """The machine in a TOML file. Raises MachineError: file, key, and what is allowed."""
    reader = _Reader(path)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise MachineError(f"{path}: not TOML: {error}") from error
    reader.known("", table, _KEYS)
    arch = table.get("arch", "x86_64")
    if arch not in ("x86_64", "i386"):
        raise reader.bad("arch", arch, '"x86_64" or "i386"')
    cpus = reader.integer("cpus", table.get("cpus", 1), 1, MAX_CPUS)
    nodes = reader.tables("node", table.get("node", []))
    if not 1 <= len(nodes) <= MAX_NODES:
        raise MachineError(f"{path}: node: from 1 to {MAX_NODES} [[node]] tables are needed, not {len(nodes)}")
    sizes = tuple(_node_size(reader, nid, node) for nid, node in enumerate(nodes))
    _check_total(reader, arch, sum(sizes))
    return Machine.of_memory(
        path.stem,
        arch,
        cpus,
        sizes,
        _node_cpus(reader, nodes, cpus),
        _distances(reader, table.get("distances"), len(nodes)),
        description=reader.text("description", table.get("description", "")),
        cmdline=reader.text("cmdline", table.get("cmdline", DEFAULT_CMDLINE)),
        swap=_swap(reader, table.get("swap", [])),
        latency=_latency(reader, table.get("latency", {})),
        cpu_features=_cpu_features(reader, arch, table.get("cpu_features", [])),
        soft_dirty=_soft_dirty(reader, arch, table.get("soft_dirty", False)),
        disks=_disks(reader, table.get("disk", [])),
    )


def _soft_dirty(reader: _Reader, arch: str, value: object) -> bool:
    if not isinstance(value, bool) or (value and arch != "x86_64"):
        raise reader.bad("soft_dirty", value, "true or false; x86_64 alone tracks what is written")
    return value


def _cpu_features(reader: _Reader, arch: str, value: object) -> tuple[str, ...]:
    allowed = CPU_FEATURES[arch]
    if not isinstance(value, list) or not all(feature in allowed for feature in value):
        raise reader.bad("cpu_features", value, f"a list of some of {list(allowed)} on {arch}")
    return tuple(value)


def _node_size(reader: _Reader, nid: int, node: dict[str, Any]) -> int:
    key = f"node[{nid}]"
    reader.known(key, node, _NODE_KEYS)
    if "memory" not in node:
        raise MachineError(f'{reader.path}: {key}.memory: missing; give a size such as "2G"')
    return reader.size(f"{key}.memory", node["memory"], 0, MAX_MEMORY)


def _check_total(reader: _Reader, arch: str, total: int) -> None:
    high = MAX_MEMORY if arch == "x86_64" else 4 << 30
    if not MIN_MEMORY <= total <= high:
        raise reader.bad("node.memory", total, f"from {MIN_MEMORY} to {high} bytes in all on {arch}")


def parse_cpu_list(text: str) -> tuple[int, ...]:
    """CPU numbers of a list such as ``0-3,8``. Raises ValueError."""
    cpus: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        low, _, high = part.partition("-")
        first, last = int(low), int(high or low)
        if last < first or last - first > MAX_CPUS:
            raise ValueError(part)
        cpus |= set(range(first, last + 1))
    return tuple(sorted(cpus))


def _node_cpus(reader: _Reader, nodes: list[dict[str, Any]], cpus: int) -> tuple[tuple[int, ...], ...]:
    if len(nodes) == 1 and "cpus" not in nodes[0]:
        return (tuple(range(cpus)),)
    lists = []
    for nid, node in enumerate(nodes):
        text = node.get("cpus", "")
        try:
            lists.append(parse_cpu_list(text))
        except (ValueError, AttributeError):
            raise reader.bad(f"node[{nid}].cpus", text, 'a CPU list such as "0-3,8", or ""') from None
    flat = sorted(cpu for cpu_list in lists for cpu in cpu_list)
    if flat != list(range(cpus)):
        raise MachineError(
            f"{reader.path}: node.cpus: the nodes list CPUs {flat}; must be each of 0-{cpus - 1} exactly once"
        )
    return tuple(lists)


def _distances(reader: _Reader, value: object, nodes: int) -> tuple[tuple[int, ...], ...]:
    if value is None:
        return tuple(tuple(10 if i == j else 20 for j in range(nodes)) for i in range(nodes))
    if not isinstance(value, list) or len(value) != nodes:
        raise reader.bad("distances", value, f"{nodes} rows, one per node")
    rows = []
    for i, row in enumerate(value):
        if not isinstance(row, list) or len(row) != nodes:
            raise reader.bad(f"distances[{i}]", row, f"{nodes} numbers")
        for j, number in enumerate(row):
            low, high = (10, 10) if i == j else (11, 254)
            reader.integer(f"distances[{i}][{j}]", number, low, high)
        rows.append(tuple(row))
    return tuple(rows)


def _swap(reader: _Reader, value: object) -> tuple[SwapDevice, ...]:
    devices = []
    for number, table in enumerate(reader.tables("swap", value)):
        key = f"swap[{number}]"
        reader.known(key, table, _SWAP_KEYS)
        kind = table.get("kind", "partition")
        if kind not in ("partition", "file"):
            raise reader.bad(f"{key}.kind", kind, '"partition" or "file"')
        active = table.get("active", True)
        if not isinstance(active, bool):
            raise reader.bad(f"{key}.active", active, "true or false")
        devices.append(
            SwapDevice(
                reader.text(f"{key}.path", table.get("path", f"/dev/vd{chr(ord('b') + number)}")),
                reader.size(f"{key}.size", table.get("size"), 40 << 10, 1 << 44),
                kind,
                reader.integer(f"{key}.priority", table.get("priority", -2 - number), -32768, 32767),
                active,
            )
        )
    return tuple(devices)


def _disks(reader: _Reader, value: object) -> tuple[DiskDevice, ...]:
    devices: dict[str, DiskDevice] = {}
    for number, table in enumerate(reader.tables("disk", value)):
        key = f"disk[{number}]"
        reader.known(key, table, _DISK_KEYS)
        path = table.get("path")
        if not isinstance(path, str) or not _DISK_PATH.fullmatch(path):
            raise reader.bad(f"{key}.path", path, 'the path of a disk such as "/dev/ram0"')
        if path in devices:
            raise reader.bad(f"{key}.path", path, "another disk than those before")
        speed = {
            name: reader.integer(f"{key}.{name}", table[name], 0, MAX_LATENCY_US) * NS_PER_US
            for name in _DISK_LATENCIES
            if name in table
        }
        speed |= {
            name: reader.size(f"{key}.{name}", table[name], PAGE_SIZE, MAX_BANDWIDTH)
            for name in _DISK_BANDWIDTHS
            if name in table
        }
        devices[path] = DiskDevice(path, **speed)
    return tuple(devices.values())


def _latency(reader: _Reader, value: object) -> Latency:
    if not isinstance(value, dict):
        raise reader.bad("latency", value, "a table, [latency]")
    reader.known("latency", value, [item.name for item in dataclasses.fields(Latency)])
    for key, number in value.items():
        reader.integer(f"latency.{key}", number, 0, 10**12)
    return Latency(**value)
