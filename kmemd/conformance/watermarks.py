"""Zone thresholds after sysctl settings: every number of the captured zoneinfo that they decide.

A folder holds machines, a machine folder holds files (at any depth) that begin with the settings in force
(``min_free_kbytes=8192``) and go on as zoneinfo. Where a file is called ``never-default`` or ``always-default`` the
kernel's own choice of min_free_kbytes is compared too.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from kmemd.capture import ZoneState, parse_zoneinfo
from kmemd.conformance.case import Case, guarded
from kmemd.conformance.shape import bare_kernel
from kmemd.kernel import Kernel
from kmemd.mm.mmzone import Zone


def run(folder: Path) -> Iterator[Case]:
    """One case per zone and file, and one per default."""
    for machine in sorted(path for path in folder.iterdir() if path.is_dir()):
        for file in sorted(path for path in machine.rglob("*") if path.is_file()):
            settings, zoneinfo = split(file.read_text())
            if zoneinfo:
                name = f"{machine.name}/{file.name}"
                yield from guarded(name, compare(name, settings, zoneinfo, machine.name))


def split(text: str) -> tuple[dict[str, str], str]:
    """The settings at the head of a file, and the zoneinfo text."""
    settings, lines = {}, text.splitlines(keepends=True)
    while lines and not lines[0].startswith("Node"):
        name, equals, value = lines.pop(0).strip().partition("=")
        if equals:
            settings[name] = value
    return settings, "".join(lines)


def compare(name: str, settings: dict[str, str], zoneinfo: str, machine: str) -> Iterator[Case]:
    """Boot the zones, apply the settings, compare."""
    kernel = bare_kernel(zoneinfo, machine)
    marks = kernel.watermarks
    base = name.rpartition("/")[2]
    if base.endswith("-default") and "min_free_kbytes" in settings:
        marks.set_recommended_min_free_kbytes(True)  # as booted; then what was written to "enabled"
        marks.set_recommended_min_free_kbytes(base.startswith("always"))
        wanted = int(settings["min_free_kbytes"])
        have = marks.min_free_kbytes
        yield Case(f"{name} min_free_kbytes", have == wanted, f"captured {wanted}, model {have}")
    apply(kernel, settings)
    by_name = {(zone.nid, zone.name): zone for zone in kernel.zones}
    for state in parse_zoneinfo(zoneinfo):
        wanted_numbers = captured_numbers(state)
        have_numbers = model_numbers(by_name[state.nid, state.name], kernel)
        wrong = {key: (value, have_numbers[key]) for key, value in wanted_numbers.items() if value != have_numbers[key]}
        detail = ", ".join(f"{key}: captured {value[0]}, model {value[1]}" for key, value in wrong.items())
        yield Case(f"{name} node {state.nid} {state.name}", not wrong, detail)


def apply(kernel: Kernel, settings: dict[str, str]) -> None:
    """Put the sysctls in force, as if each had been written."""
    marks = kernel.watermarks
    for attr in ("watermark_scale_factor", "watermark_boost_factor", "percpu_pagelist_high_fraction"):
        if attr in settings:
            setattr(marks, attr, int(settings[attr]))
    if "lowmem_reserve_ratio" in settings:
        marks.lowmem_reserve_ratio = [int(word) for word in settings["lowmem_reserve_ratio"].split()]
        marks.on_lowmem_reserve_ratio()
    if "min_free_kbytes" in settings:
        marks.min_free_kbytes = int(settings["min_free_kbytes"])
        marks.on_min_free_kbytes()


def captured_numbers(state: ZoneState) -> dict[str, object]:
    """The thresholds of a captured zone."""
    names = ("min", "low", "high", "spanned", "present", "managed")
    numbers: dict[str, object] = {name: state.fields.get(name, 0) for name in names}
    numbers["protection"] = state.protection
    numbers["pagesets"] = state.pagesets
    return numbers


def model_numbers(zone: Zone, kernel: Kernel) -> dict[str, object]:
    """The same of a model zone."""
    pagesets = tuple(zone.pageset(cpu)[1:] for cpu in kernel.online_cpus) if zone.populated else ()
    return {
        "min": zone.watermark_min,
        "low": zone.watermark_low,
        "high": zone.watermark_high,
        "spanned": zone.spanned,
        "present": zone.present,
        "managed": zone.managed,
        "protection": zone.protection,
        "pagesets": pagesets,
    }
