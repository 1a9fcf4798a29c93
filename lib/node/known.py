"""This node, as others know it: by its certificate."""

from msgspec import Struct

from ..errors import NotJoined
from ..migration.checks import FOREVER
from .pki.folder import Folder, this_host


class Here(Struct, frozen=True, kw_only=True):
    """This node, as others know it.

    :ivar name: of it
    :ivar addresses: where its daemon answers
    :ivar until: Unix time of the end of its certificate
    """

    name: str
    addresses: list[str]
    until: float = FOREVER


def known_as(folder: Folder) -> Here:
    """This node, by its certificate; by the host's name where it has none."""
    from .pki.own import about, own_card

    try:
        found = about(folder)
        return Here(name=found.name, addresses=found.addresses, until=own_card(folder).until)
    except NotJoined:
        return Here(name=this_host(), addresses=[])
