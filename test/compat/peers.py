"""The peers as `tools/peers` has unpacked them: nothing of them is part of this project, or stays in it."""

import importlib.util
import json
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

PEERS = Path(__file__).resolve().parents[2] / "build" / "peers"
QEMU_QMP = PEERS / "qemu.qmp-0.0.6"
GANETI = PEERS / "ganeti-3.0"
ABSENT = "not unpacked here: run ./bootstrap"


def load_ganeti_monitor() -> Any:
    """Ganeti 3.0's `hypervisor/hv_kvm/monitor.py` itself, on its own errors and constants.

    What it takes from `ganeti.utils` and `ganeti.serializer` is made here: the whole of both needs
    packages that nothing else of Ganeti's monitor needs.
    """
    ganeti = ModuleType("ganeti")
    ganeti.__path__ = [str(GANETI / "ganeti")]
    utils, serializer = ModuleType("ganeti.utils"), ModuleType("ganeti.serializer")
    vars(utils).update(ErrnoOrStr=str, GetFreeSlot=_free_slot, SendFds=_send_fds)
    vars(serializer).update(DumpJson=lambda data: json.dumps(data).encode() + b"\n", LoadJson=json.loads)
    vars(ganeti).update(utils=utils, serializer=serializer)
    with _as_ganeti({"ganeti": ganeti, "ganeti.utils": utils, "ganeti.serializer": serializer}):
        path = GANETI / "ganeti" / "hypervisor" / "hv_kvm" / "monitor.py"
        spec = importlib.util.spec_from_file_location("ganeti_3_0_monitor", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


@contextmanager
def _as_ganeti(modules: dict[str, ModuleType]) -> Iterator[None]:
    """For as long, these are what `import ganeti…` finds; ours must not take them for an installed Ganeti."""
    before = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "ganeti"}
    for name in before:
        del sys.modules[name]
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "ganeti"]:
            del sys.modules[name]
        sys.modules.update(before)


def _send_fds(sock: socket.socket, data: bytes, fds: list[int]) -> None:
    socket.send_fds(sock, [data], fds)


def _free_slot(slots: Any) -> int:
    return int(slots.index(False))
