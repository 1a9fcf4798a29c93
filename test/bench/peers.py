"""Others' clients, behind the names that the sides use. A class fails where its package is missing."""

import logging
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TEST = Path(__file__).resolve().parents[1]
if str(TEST) not in sys.path:
    sys.path.append(str(TEST))


class QemuQmp:
    """``qemu.qmp.QMPClient``, on asyncio."""

    def __init__(self, address: str) -> None:
        from qemu.qmp import QMPClient

        self.address = address
        self.client = QMPClient()
        self.execute = self.client.execute  # bound here, so that this class adds nothing to a call
        self.close = self.client.disconnect

    async def connect(self) -> None:
        """Connect, greet and negotiate."""
        await self.client.connect(self.address)

    def events(self, *names: str) -> Any:
        """A listener from here on; the client's own default listener keeps all of them too."""
        from qemu.qmp import EventListener

        listener = EventListener(names or None)
        self.client.register_listener(listener)
        return listener


class Legacy:
    """``qemu.qmp.legacy.QEMUMonitorProtocol``, blocking."""

    def __init__(self, address: str) -> None:
        from qemu.qmp.legacy import QEMUMonitorProtocol

        self.monitor = QEMUMonitorProtocol(address)
        self.connect = self.monitor.connect
        self.execute = self.monitor.cmd
        self.close = self.monitor.close

    def events(self, *names: str) -> Iterator[Any]:
        """All events, or those of these names, each time as many as there are."""
        while True:
            for event in self.monitor.get_events(wait=True):
                if not names or event["event"] in names:
                    yield event


class Ganeti:
    """Ganeti's ``QmpConnection``, held; blocking. It throws events away."""

    def __init__(self, address: str) -> None:
        self.monitor = ganeti_monitor().QmpConnection(address)
        self.connect = self.monitor.connect
        self.execute = self.monitor.Execute
        self.close = self.monitor.close


_loaded: dict[str, Any] = {}


def ganeti_monitor() -> Any:
    """Its module.

    :raises ImportError: its package is not unpacked here
    """
    if "ganeti" not in _loaded:
        from compat.peers import ABSENT, GANETI, load_ganeti_monitor

        if not GANETI.exists():
            raise ImportError(ABSENT)
        _loaded["ganeti"] = load_ganeti_monitor()
    return _loaded["ganeti"]


class Avocado:
    """avocado-vt's ``QMPMonitor``, blocking; it logs each line to a file, as always."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.module = avocado_monitor()

    def connect(self) -> None:
        """Its objects connect when they are made."""
        from virttest import utils_logfile

        self.folder = tempfile.mkdtemp(prefix="drover-bench-")
        utils_logfile._log_file_dir = self.folder
        params = {"monitor_type": "qmp", "monitor_filename": self.address}
        self.monitor = self.module.QMPMonitor(_Owner(), "bench", params)
        self.execute = self.monitor.cmd

    def close(self) -> None:
        """Disconnect."""
        from virttest import utils_logfile

        self.monitor.close()
        utils_logfile.close_log_file(str(self.monitor.log_file))
        shutil.rmtree(self.folder)


class _Owner:
    """What such a monitor asks of the machine that it belongs to."""

    name = "bench"

    def check_capability(self, flag: object) -> bool:
        """It has none."""
        return False

    def get_pid(self) -> int | None:
        """Nor a process."""
        return None


def avocado_monitor() -> Any:
    """Its module.

    :raises ImportError: it is not installed
    """
    if "avocado" not in _loaded:
        from compat.autotest.peer import load

        _loaded["avocado"] = load()
        logging.getLogger("avocado").setLevel(logging.WARNING)
    return _loaded["avocado"]
