"""The nodes that a person speaks to by name, and which one is meant where none is said.

``~/.config/drover/contexts/NAME`` has their certificate and key for one; nobody else may enter it. ``local`` is this
host.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from ..errors import ArgumentError, NotJoined
from ..kvm.record import sync_folder
from .link import RemoteDaemon
from .pki.folder import Folder, read, save, write

if TYPE_CHECKING:
    from .pki.authority import Card

LOCAL: Final = "local"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


class Context(Struct, frozen=True, kw_only=True):
    """A node that one speaks to.

    :ivar addresses: where it answers
    :ivar due: Unix time from which on our certificate there should be renewed
    :ivar until: Unix time of its end
    """

    addresses: list[str]
    due: float = 0.0
    until: float = 0.0


class Contexts:
    """A person's.

    :param folder: of Drover's configuration
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._all = folder / "contexts"

    @property
    def names(self) -> list[str]:
        """Of all of them, but ``local``."""
        try:
            return sorted(name for name in os.listdir(self._all) if _NAME.fullmatch(name))
        except FileNotFoundError:
            return []

    @property
    def current(self) -> str:
        """Which one is meant where none is said."""
        try:
            return (self._folder / "context").read_text().strip() or LOCAL
        except FileNotFoundError:
            return LOCAL

    def use(self, name: str) -> None:
        """Have one be meant where none is said.

        :raises NotJoined: there is none of this name
        """
        if name != LOCAL:
            self.get(name)
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write(self._folder / "context", f"{name}\n".encode())

    def folder(self, name: str) -> Folder:
        """Where one lies."""
        if not _NAME.fullmatch(name) or name == LOCAL:
            raise ArgumentError("context", name, f"letters, digits, '.', '_' and '-', and not {LOCAL}")
        return Folder(self._all / name)

    def get(self, name: str) -> Context:
        """What is known of one.

        :raises NotJoined: there is none of this name
        """
        try:
            return read(self.folder(name).path / "context.json", Context)
        except FileNotFoundError:
            known = ", ".join([LOCAL, *self.names])
            raise NotJoined(f"there is no context {name!r}: there are {known}; drover context add makes one") from None

    def daemon(self, name: str) -> RemoteDaemon:
        """The daemon of one."""
        return RemoteDaemon(self.get(name).addresses, self.folder(name))

    def add(self, name: str, addresses: list[str], fill: Callable[[Folder], "Card"]) -> None:
        """Make one: wholly, or not at all.

        :param addresses: where it answers
        :param fill: puts the certificates into its folder
        :raises ArgumentError: there is one of this name already
        """
        there = self.folder(name).path
        if there.exists():
            raise ArgumentError("context", name, "a name that no other has: drover context remove forgets one")
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._all.mkdir(exist_ok=True, mode=0o700)
        made = Path(tempfile.mkdtemp(prefix=".", dir=self._all))  # which nobody else may enter
        try:
            save(made / "context.json", _known(addresses, fill(Folder(made))))
            os.rename(made, there)
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            raise
        sync_folder(self._all)

    def renewed(self, name: str, card: "Card") -> None:
        """Our certificate there is a new one."""
        save(self.folder(name).path / "context.json", _known(self.get(name).addresses, card))

    def remove(self, name: str) -> None:
        """Forget one, with its key.

        :raises NotJoined: there is none of this name
        """
        self.get(name)
        if self.current == name:
            self.use(LOCAL)
        shutil.rmtree(self.folder(name).path)


def _known(addresses: list[str], card: "Card") -> Context:
    return Context(addresses=addresses, due=card.due, until=card.until)
