"""What all types of events share."""

from collections.abc import Mapping
from typing import Annotated, NamedTuple

from msgspec import Meta, Struct

Version = tuple[int, int]


class EventData(Struct, frozen=True, kw_only=True, gc=False, rename="kebab"):
    """The data of an event, with a type for each member.

    A member that is None was not sent: it is optional, or this QEMU is older than the member.
    A text whose values QEMU enumerates stays a ``str``, for a newer QEMU may say more than we know.
    """


class Known(NamedTuple):
    """One row of the table of events.

    :ivar type: its data
    :ivar since: the first QEMU that sends it
    :ivar until: the last one; None for those that still do
    :ivar later: members that QEMU always sends today, but did not when the event was new: first version of each
    """

    type: type[EventData]
    since: Version
    until: Version | None = None
    later: Mapping[str, Version] = {}


# Shared by several themes: the values that QEMU 7.2 and 10.0 know.
IoOperation = Annotated[str, Meta(examples=["read", "write"])]
IoErrorAction = Annotated[str, Meta(examples=["ignore", "report", "stop"])]
