"""Migration."""

from collections.abc import Mapping
from typing import Annotated, Final

from msgspec import Meta, field

from .base import EventData, Known

MigrationStatus = Annotated[
    str,
    Meta(
        examples=[
            "none",
            "setup",
            "cancelling",
            "cancelled",
            "active",
            "postcopy-active",
            "postcopy-paused",
            "postcopy-recover-setup",
            "postcopy-recover",
            "completed",
            "failed",
            "colo",
            "pre-switchover",
            "device",
            "wait-unplug",
        ]
    ),
]
ColoMode = Annotated[str, Meta(examples=["none", "primary", "secondary"])]
ColoReason = Annotated[str, Meta(examples=["none", "request", "error", "processing"])]
VfioState = Annotated[
    str,
    Meta(examples=["stop", "running", "stop-copy", "resuming", "running-p2p", "pre-copy", "pre-copy-p2p"]),
]


class Migration(EventData, frozen=True, kw_only=True):
    """A migration went to another status. Only with the capability ``events``.

    :ivar status: where it is now
    """

    status: MigrationStatus


class MigrationPass(EventData, frozen=True, kw_only=True):
    """A migration begins a new round over the guest's memory. Only with the capability ``events``.

    :ivar pass_: number of the round, from 1
    """

    pass_: int = field(name="pass")


class ColoExit(EventData, frozen=True, kw_only=True):
    """A pair of machines in lockstep (COLO) is one no more.

    :ivar mode: which of the two tells
    :ivar reason: why
    """

    mode: ColoMode
    reason: ColoReason


class VfioMigration(EventData, frozen=True, kw_only=True):
    """A passed-through device went to another state of its migration. Only where the device asks for such events.

    :ivar device_id: the device's id
    :ivar qom_path: its path
    :ivar device_state: where it is now
    """

    device_id: str
    qom_path: str
    device_state: VfioState


MIGRATION_EVENTS: Final[Mapping[str, Known]] = {
    "COLO_EXIT": Known(ColoExit, (3, 1)),
    "MIGRATION": Known(Migration, (2, 4)),
    "MIGRATION_PASS": Known(MigrationPass, (2, 6)),
    "VFIO_MIGRATION": Known(VfioMigration, (9, 1)),
}
