"""How a run has ended, and what comes after: the parts of a document that a list tells.

Apart from it, for a list needs none of the rest, which takes as long to load as all that a list does.
"""

from msgspec import Struct


class Stop(Struct, kw_only=True, omit_defaults=True):
    """How the last run ended.

    :ivar reason: ``request``, ``guest-shutdown``, ``host-signal``, ``panic``, ``crash``, ``host-boot``,
        ``start-failed``, ``migrated``, ``saved`` or ``unknown``
    :ivar at: Unix time when it was found
    :ivar detail: in words
    :ivar exit_code: of QEMU, where it is known; `signal` that killed it
    :ivar log: the last lines of QEMU's log
    :ivar forced: we ended QEMU as if the plug was pulled
    :ivar generation: of the run
    """

    reason: str
    at: float
    detail: str = ""
    exit_code: int | None = None
    signal: int | None = None
    log: str = ""
    forced: bool = False
    generation: int = 0


class Restart(Struct, kw_only=True, omit_defaults=True):
    """A start after a run that has ended by itself.

    :ivar count: how many there were in a row, with this one
    :ivar at: Unix time when it is due, or was begun
    :ivar due: it has not begun
    :ivar boot_id: the host's boot in which the run ended: it is due in no other one
    """

    count: int = 0
    at: float = 0.0
    due: bool = False
    boot_id: str = ""
