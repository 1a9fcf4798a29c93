"""What each migration may use of this node's link, told to it when that changes: :mod:`drover.migration.budget`, live.

A migration runs over two links, its source's and its target's, and keeps to the lesser of what they grant.
"""

from collections.abc import Callable
from typing import Final

from ..migration.budget import Claim, Grants, demand_of, settle
from ..migration.forecast import ENDLESS

_STREAM: Final = "machine"  # memory and disks of one machine go by one grant: who moves it shares that among them


class Shares:
    """One link.

    :param capacity: bytes a second that migrations may use of it; None: all of it, and nothing is shared out
    """

    def __init__(self, capacity: float | None) -> None:
        self._capacity = capacity
        self._told: dict[str, Callable[[float], None]] = {}
        self._claims: dict[str, Claim] = {}
        self._grants: Grants = {}

    @property
    def capacity(self) -> float:
        """Bytes a second of the whole link; endless where nobody says."""
        return ENDLESS if self._capacity is None else self._capacity

    def join(self, name: str, told: Callable[[float], None]) -> None:
        """Take one in.

        :param told: called with bytes a second now, and whenever that changes
        """
        self._told[name], self._claims[name] = told, Claim()
        self._settle()
        if self._capacity is None:
            told(ENDLESS)

    def leave(self, name: str) -> None:
        """One is over."""
        if self._told.pop(name, None) is not None:
            del self._claims[name]
            self._settle()

    def uses(self, name: str, rate: float, limit: float = ENDLESS) -> None:
        """One has used so much for the last second or more: what it cannot use goes to the others.

        :param rate: bytes a second
        :param limit: it may use no more, whatever is granted here
        """
        if name in self._claims:
            self._claims[name] = Claim(demand_of(self.granted(name), rate, limit))
            self._settle()

    def granted(self, name: str) -> float:
        """What one may use now."""
        return self._grants.get(name, {}).get(_STREAM, ENDLESS)

    def _settle(self) -> None:
        if self._capacity is None:
            return
        before = self._grants
        self._grants = settle(before, self._capacity, {name: {_STREAM: each} for name, each in self._claims.items()})
        if self._grants is before:
            return
        for name, streams in self._grants.items():
            if streams != before.get(name):
                self._told[name](streams[_STREAM])
