"""Each event of QEMU as a type: one table from its name to what its data hold.

::

    match event.typed:
        case BlockJobCompleted(device="mirror0", error=None):
            ...
        case DeviceDeleted(device=str(name)):
            ...

Every event of the list of 2011, of QEMU 7.2's schema and of 10.0's is in :data:`EVENTS`, by theme:
:mod:`.machine`, :mod:`.block`, :mod:`.device`, :mod:`.migration`, :mod:`.display`. What is not in it
(newer events, downstream's ``__…``), or does not fit its type, stays the mapping that QEMU sent: a
newer QEMU must not break an older Drover. Members that the type does not know are in ``event.data``.
"""

from collections.abc import Mapping
from typing import Any, Final

from msgspec import ValidationError, convert

from ..ready import ready
from .base import EventData, Known, Version
from .block import BLOCK_EVENTS
from .device import DEVICE_EVENTS
from .display import DISPLAY_EVENTS
from .machine import MACHINE_EVENTS
from .migration import MIGRATION_EVENTS

__all__ = ["EVENTS", "EventData", "Known", "Version", "typed_data"]

EVENTS: Final[Mapping[str, Known]] = {
    **MACHINE_EVENTS,
    **BLOCK_EVENTS,
    **DEVICE_EVENTS,
    **MIGRATION_EVENTS,
    **DISPLAY_EVENTS,
}
ready(*(known.type for known in EVENTS.values()))


def typed_data(name: str, data: dict[str, Any]) -> EventData | dict[str, Any]:
    """Give an event's data its type.

    :param name: of the event
    :param data: as QEMU sent them
    :returns: an instance of the event's type; `data` itself where there is none, or they do not fit it
    """
    known = EVENTS.get(name)
    if known is None:
        return data
    try:
        return convert(data, known.type)
    except ValidationError:
        return data
