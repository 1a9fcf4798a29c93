"""Displays: VNC and SPICE."""

from collections.abc import Mapping
from typing import Annotated, Final

from msgspec import Meta, field

from .base import EventData, Known

AddressFamily = Annotated[str, Meta(examples=["ipv4", "ipv6", "unix", "vsock", "unknown"])]


class VncServer(EventData, frozen=True, kw_only=True):
    """The server's end of a VNC connection.

    :ivar host: its address
    :ivar service: its port
    :ivar family: which kind of address
    :ivar websocket: whether it is a websocket
    :ivar auth: how clients must prove who they are
    """

    host: str
    service: str
    family: AddressFamily
    websocket: bool | None = None
    auth: str | None = None


class VncPeer(EventData, frozen=True, kw_only=True):
    """The client's end of a VNC connection, before anybody knows who it is.

    :ivar host: its address
    :ivar service: its port
    :ivar family: which kind of address
    :ivar websocket: whether it is a websocket
    """

    host: str
    service: str
    family: AddressFamily
    websocket: bool | None = None


class VncClient(VncPeer, frozen=True, kw_only=True):
    """The client's end of a VNC connection.

    :ivar host: its address
    :ivar service: its port
    :ivar family: which kind of address
    :ivar websocket: whether it is a websocket
    :ivar x509_dname: whom its TLS certificate names
    :ivar sasl_username: whom SASL knows it as
    """

    x509_dname: str | None = field(default=None, name="x509_dname")
    sasl_username: str | None = field(default=None, name="sasl_username")


class VncConnected(EventData, frozen=True, kw_only=True):
    """A VNC client has connected; who it is nobody knows yet.

    :ivar server: our end
    :ivar client: its end
    """

    server: VncServer
    client: VncPeer


class VncInitialized(EventData, frozen=True, kw_only=True):
    """A VNC client has proved who it is, and is served.

    :ivar server: our end
    :ivar client: its end
    """

    server: VncServer
    client: VncClient


class VncDisconnected(EventData, frozen=True, kw_only=True):
    """A VNC client has gone.

    :ivar server: our end
    :ivar client: its end
    """

    server: VncServer
    client: VncClient


class SpicePeer(EventData, frozen=True, kw_only=True):
    """An end of a SPICE connection.

    :ivar host: its address
    :ivar port: its port
    :ivar family: which kind of address
    """

    host: str
    port: str
    family: AddressFamily


class SpiceServer(SpicePeer, frozen=True, kw_only=True):
    """The server's end of a SPICE connection.

    :ivar host: its address
    :ivar port: its port
    :ivar family: which kind of address
    :ivar auth: how clients must prove who they are
    """

    auth: str | None = None


class SpiceChannel(SpicePeer, frozen=True, kw_only=True):
    """The client's end of one channel of a SPICE session.

    :ivar host: its address
    :ivar port: its port
    :ivar family: which kind of address
    :ivar connection_id: of the session: all its channels have the same
    :ivar channel_type: 1 is the main channel, of which a session has one
    :ivar channel_id: tells channels of one type apart, such as several displays'
    :ivar tls: whether the channel is encrypted
    """

    connection_id: int
    channel_type: int
    channel_id: int
    tls: bool


class SpiceConnected(EventData, frozen=True, kw_only=True):
    """A SPICE client has connected.

    :ivar server: our end
    :ivar client: its end
    """

    server: SpicePeer
    client: SpicePeer


class SpiceInitialized(EventData, frozen=True, kw_only=True):
    """A channel of a SPICE session is up, its client has proved who it is.

    :ivar server: our end
    :ivar client: its end
    """

    server: SpiceServer
    client: SpiceChannel


class SpiceDisconnected(EventData, frozen=True, kw_only=True):
    """A SPICE client has gone.

    :ivar server: our end
    :ivar client: its end
    """

    server: SpicePeer
    client: SpicePeer


class SpiceMigrateCompleted(EventData, frozen=True, kw_only=True):
    """The SPICE clients have moved to the target of a migration."""


_WEBSOCKET: Final = {"server.websocket": (2, 3), "client.websocket": (2, 3)}

DISPLAY_EVENTS: Final[Mapping[str, Known]] = {
    "SPICE_CONNECTED": Known(SpiceConnected, (0, 14)),
    "SPICE_DISCONNECTED": Known(SpiceDisconnected, (0, 14)),
    "SPICE_INITIALIZED": Known(SpiceInitialized, (0, 14)),
    "SPICE_MIGRATE_COMPLETED": Known(SpiceMigrateCompleted, (1, 3)),
    "VNC_CONNECTED": Known(VncConnected, (0, 13), later=_WEBSOCKET),
    "VNC_DISCONNECTED": Known(VncDisconnected, (0, 13), later=_WEBSOCKET),
    "VNC_INITIALIZED": Known(VncInitialized, (0, 13), later=_WEBSOCKET),
}
