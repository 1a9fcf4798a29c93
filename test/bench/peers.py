"""The clients of qemu.qmp (PyPI), behind the names that the sides use. Importing it fails where that is missing."""

from collections.abc import Iterator

from qemu.qmp import EventListener, QMPClient
from qemu.qmp.legacy import QEMUMonitorProtocol


class QemuQmp:
    """``qemu.qmp.QMPClient``, on asyncio."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.client = QMPClient()
        self.execute = self.client.execute  # bound here, so that this class adds nothing to a call
        self.close = self.client.disconnect

    async def connect(self) -> None:
        """Connect, greet and negotiate."""
        await self.client.connect(self.address)

    def events(self) -> EventListener:
        """A listener to all events from here on; the client's own default listener keeps them too."""
        listener = EventListener()
        self.client.register_listener(listener)
        return listener


class Legacy:
    """``qemu.qmp.legacy.QEMUMonitorProtocol``, blocking."""

    def __init__(self, address: str) -> None:
        self.monitor = QEMUMonitorProtocol(address)
        self.connect = self.monitor.connect
        self.execute = self.monitor.cmd
        self.close = self.monitor.close

    def events(self) -> Iterator[object]:
        """All events, each time as many as there are."""
        while True:
            yield from self.monitor.get_events(wait=True)
