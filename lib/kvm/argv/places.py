"""A PCI address for everything, so that the same specification always gives the same machine.

On q35 the board's own helpers are functions of one slot, and every disk and card has a root port of its own, so that it
can be unplugged; more root ports stay empty for what is plugged in later. On pc all sit on ``pci.0``, whose free slots
take hotplug themselves.
"""

from collections.abc import Iterator
from typing import Final

from ...errors import ArgumentError
from .launch import device

# q35: slot 0 is the host bridge, 31 the chipset's own; 1 is left for a screen, as on boards of the kind.
_HELPERS: Final = 2
_PORTS: Final = 3
_FUNCTIONS: Final = 8
# pc: 0 is the host bridge, 1 the chipset's own, 2 is left for a screen.
_PC_FIRST: Final = 3
_PC_SLOTS: Final = 32


class Places:
    """The addresses of one machine, given out in order.

    :param q35: else it is a pc
    :param spare: root ports that stay empty
    """

    def __init__(self, q35: bool, spare: int) -> None:
        self._q35 = q35
        self._spare = spare
        self._helpers = 0
        self._ports = 0
        self._slot = _PC_FIRST

    @property
    def root(self) -> str:
        """The root bus."""
        return "pcie.0" if self._q35 else "pci.0"

    def helper(self) -> dict[str, object]:
        """The place of a device that comes with the board and stays."""
        if not self._q35:
            return self.slot()
        number, self._helpers = self._helpers, self._helpers + 1
        multi = True if number == 0 else None
        return {"bus": "pcie.0", "addr": f"{_HELPERS:x}.{number:x}", "multifunction": multi}

    def slot(self) -> dict[str, object]:
        """The place of a device that can be unplugged.

        :raises ArgumentError: a pc has no more
        """
        if self._q35:
            self._ports += 1
            return {"bus": f"rp{self._ports - 1}", "addr": "0.0"}
        if self._slot >= _PC_SLOTS:
            raise ArgumentError("machine.type", "pc", "for this many devices: q35, a pc has 32 slots in all")
        self._slot += 1
        return {"bus": "pci.0", "addr": f"{self._slot - 1:x}.0"}

    def screen(self) -> dict[str, object]:
        """The place of the screen's adapter."""
        return {"bus": self.root, "addr": "1.0" if self._q35 else "2.0"}

    def words(self) -> Iterator[str]:
        """The root ports, as words of the command line."""
        for number in range(self._ports + self._spare if self._q35 else 0):
            slot, function = _PORTS + number // _FUNCTIONS, number % _FUNCTIONS
            yield from device(
                "pcie-root-port", id=f"rp{number}", bus="pcie.0", addr=f"{slot:x}.{function:x}", chassis=number + 1,
                multifunction=True if function == 0 else None,
            )  # fmt: skip
