"""Who was given which certificate until when, and which of them hold no longer.

Both are short lists, in files that are written whole. What has expired is forgotten: a certificate that is over needs
no revocation, and one that was over for a month asks nobody's interest.
"""

import time
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from ...errors import PkiError
from ...qmp.ready import ready
from .folder import Folder, read, save

# A certificate takes 250 bytes here, and the file is written whole: 10,000 are 2.5 MB, in 30 ms.
MAX_ISSUED: Final = 10_000
MAX_REVOKED: Final = 10_000
# Lost answers happen; that one certificate begets many is an attempt to fill the list.
MAX_RENEWALS: Final = 8
_SHORTEST: Final = 8  # digits of a number that may stand for it
_REMEMBERED: Final = 30 * 86400.0  # s


class Issued(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A certificate that was made here.

    :ivar serial: in hexadecimal digits
    :ivar name: whose it is
    :ivar role: what they may
    :ivar hosts: where they answer
    :ivar since: Unix time when it was made
    :ivar until: Unix time of its end
    :ivar by: how they came to it: ``init``, a token's id, a renewal of which serial
    :ivar renewals: how often it was renewed
    :ivar revoked: Unix time since when it holds no longer
    """

    serial: str
    name: str
    role: str
    hosts: list[str] = []
    since: float
    until: float
    by: str = ""
    renewals: int = 0
    revoked: float | None = None

    def holds(self, now: float) -> bool:
        """Whether it is of use."""
        return self.revoked is None and now < self.until


class _Book(Struct, kw_only=True):
    issued: list[Issued] = []


class Revoked(Struct, kw_only=True):
    """Certificates that hold no longer.

    :ivar serials: Unix times of their ends, by their numbers in hexadecimal digits
    """

    serials: dict[str, float] = {}

    def numbers(self) -> frozenset[int]:
        """The numbers."""
        return frozenset(int(serial, 16) for serial in self.serials)


class Ledger:
    """The lists in a folder. Whoever changes them holds its lock.

    :param folder: where the authority is
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder

    def all(self) -> list[Issued]:
        """Every certificate that is remembered, the oldest first."""
        try:
            return read(self._folder.issued, _Book).issued
        except FileNotFoundError:
            return []

    def add(self, issued: Issued) -> None:
        """Note a certificate, before anybody gets it.

        :raises PkiError: there are too many
        """
        now = time.time()
        kept = [each for each in self.all() if each.until + _REMEMBERED > now]
        if len(kept) >= MAX_ISSUED:
            raise PkiError(f"there are {MAX_ISSUED} certificates already")
        save(self._folder.issued, _Book(issued=[*kept, issued]))

    def renewed(self, serial: str) -> Issued:
        """The certificate of this number, which is renewed once more.

        :raises PkiError: it was not made here, holds no longer, or was renewed too often
        """
        every = self.all()
        found = next((each for each in every if each.serial == serial), None)
        if found is None or not found.holds(time.time()):
            raise PkiError("this certificate is not one of ours that holds: it cannot be renewed")
        if found.renewals >= MAX_RENEWALS:
            raise PkiError(f"this certificate was renewed {MAX_RENEWALS} times already: use the newest one")
        more = replace(found, renewals=found.renewals + 1)
        save(self._folder.issued, _Book(issued=[more if each is found else each for each in every]))
        return more

    def find(self, what: str) -> list[Issued]:
        """Those of a name, or the one of a number, or of what it begins with.

        :raises PkiError: several numbers begin so
        """
        every = self.all()
        if found := [each for each in every if what in (each.serial, each.name)]:
            return found
        found = [each for each in every if len(what) >= _SHORTEST and each.serial.startswith(what.lower())]
        if len(found) > 1:
            raise PkiError(f"{len(found)} certificates have a number that begins with {what!r}")
        return found

    def revoke(self, what: str) -> list[Issued]:
        """Have those of a name, or the one of a number, hold no longer; which.

        :raises PkiError: there is none, or there are too many
        """
        now = time.time()
        every = self.all()
        gone = {each.serial for each in self.find(what) if each.holds(now)}
        if not gone:
            raise PkiError(f"no certificate that holds is {what!r}'s, or has that number")
        old = {serial: until for serial, until in revoked(self._folder).serials.items() if until > now}
        serials = old | {each.serial: each.until for each in every if each.serial in gone}
        if len(serials) > MAX_REVOKED:
            raise PkiError(f"more than {MAX_REVOKED} certificates would be revoked: make a new authority")
        save(self._folder.revoked, Revoked(serials=serials))  # first what is looked at
        book = [replace(each, revoked=now) if each.serial in gone else each for each in every]
        save(self._folder.issued, _Book(issued=book))
        return [each for each in book if each.serial in gone]


def revoked(folder: Folder) -> Revoked:
    """What is revoked, as far as this node knows."""
    try:
        return read(folder.revoked, Revoked)
    except FileNotFoundError:
        return Revoked()


ready(_Book, Revoked)
