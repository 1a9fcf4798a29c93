"""Whom a QEMU runs as: a user id of its own."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Identity:
    """The user and the groups that a program runs under, numbers all.

    :ivar groups: supplementary groups, such as the one that may open ``/dev/kvm``
    """

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
