"""A migration did not do what was asked; :mod:`drover.errors` draws the whole tree."""

from collections.abc import Iterable

from msgspec import Struct

from .base import DroverError


class MigrationError(DroverError):
    """A migration did not do what was asked.

    :ivar status: QEMU's migration status when this was found
    :ivar desc: QEMU's own explanation, where it gave one
    """

    def __init__(self, problem: str, status: str = "", desc: str = "") -> None:
        super().__init__(problem + (f": {desc}" if desc else ""))
        self.status = status
        self.desc = desc


class MigrationFailed(MigrationError):
    """QEMU reports the migration as failed."""


class MigrationCancelled(MigrationError):
    """The migration was cancelled; the source runs on."""


class Blocker(Struct, frozen=True):
    """One thing that is in the way of a migration.

    :ivar code: what kind of thing it is, always the same, such as ``machine-type``
    :ivar what: it is about: a field of the specification such as ``nics[0].link``, a file, a part of a node
    :ivar why: it is in the way
    :ivar remedy: what to do about it
    """

    code: str
    what: str
    why: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what}: {self.why}: {self.remedy}"


class MigrationBlocked(MigrationError):
    """A machine cannot go to another node as things are. Nothing was done on either.

    :ivar name: of the instance
    :ivar node: that it was to go to
    :ivar blockers: all that is in the way
    """

    def __init__(self, name: str, node: str, blockers: Iterable[Blocker]) -> None:
        self.name = name
        self.node = node
        self.blockers = tuple(blockers)
        super().__init__(f"{name} cannot go to {node}: {'; '.join(map(str, self.blockers))}")
