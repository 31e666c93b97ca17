"""Devices and their drivers, as far as memory goes: registers, DMA masks, the node they sit on (drivers/base/).

The PCI devices of the machine are here from boot; ``platform_device_register`` adds others, with registers in a free
range of the PCI window. What a driver does is played by commands. Left out: buses, power, interrupts, I/O ports.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass, field

from kmemd.errors import KernelError
from kmemd.mm.resource import Region, Resources
from kmemd.mm.units import NUMA_NO_NODE, PAGE_SIZE

DMA_MASK_DEFAULT = (1 << 32) - 1
"""What PCI and platform devices begin with."""


@dataclass(eq=False)
class Device:
    """One device. ``bus`` is "pci" or "platform"; masks are the highest bus addresses that it can form."""

    name: str
    bus: str
    nid: int = NUMA_NO_NODE
    dma_mask: int = DMA_MASK_DEFAULT
    coherent_dma_mask: int = DMA_MASK_DEFAULT
    coherent_bytes: int = 0
    registers: list[Region] = field(default_factory=list)

    @property
    def label(self) -> str:
        """How messages begin that are about it (``dev_driver_string``, ``dev_name``)."""
        return f"{self.bus} {self.name}"


class Devices:
    """The devices by name.

    Invariants: the registers of a device that was added are in the resource tree.
    """

    def __init__(self, resources: Resources, nid: int = NUMA_NO_NODE) -> None:
        """``nid``: the node that the PCI bus of boot is on."""
        self._resources = resources
        self._devices: dict[str, Device] = {}
        for name in resources.pci_devices():
            registers = [region for _, region in resources if region.name == name]
            self._devices[name] = Device(name, "pci", nid, registers=registers)

    def __iter__(self) -> Iterator[Device]:
        return iter(list(self._devices.values()))

    def find(self, name: str) -> Device:
        """The device of a name. ENODEV."""
        device = self._devices.get(name)
        if device is None:
            known = ", ".join(list(self._devices)[:8])
            raise KernelError(errno.ENODEV, f"no device {name}; there are {known}")
        return device

    def add(self, name: str, size: int = 0, nid: int = NUMA_NO_NODE) -> Device:
        """A new platform device, with ``size`` bytes of registers. EEXIST, EBUSY when no window has room."""
        if name in self._devices:
            raise KernelError(errno.EEXIST, f"there is a device {name}")
        device = Device(name, "platform", nid)
        if size:
            align = max(PAGE_SIZE, 1 << (size - 1).bit_length())
            device.registers.append(self._resources.allocate(size, align, name))
        self._devices[name] = device
        return device

    def remove(self, device: Device) -> None:
        """Take a device away. EBUSY while its registers are claimed, or for one of boot."""
        if device.bus != "platform":
            raise KernelError(errno.EBUSY, f"{device.name} is a device of boot")
        for region in device.registers:
            self._resources.remove(region)
        del self._devices[device.name]

    def check(self) -> None:
        """Registers are in the resource tree."""
        known = {id(region) for _, region in self._resources}
        for device in self:
            assert all(id(region) in known for region in device.registers), f"{device.name} has lost its registers"
        self._resources.check()
