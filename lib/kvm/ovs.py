"""Ports of Open vSwitch, by its own program ``ovs-vsctl``, which makes each change in one transaction."""

import os
import shutil
from typing import Final

from ..errors import NetworkError, ScriptFailed
from . import scripts
from .spec import Nic

_PROGRAM: Final = "ovs-vsctl"
_PATIENCE: Final = 10  # s for the switch to take a change over, where it is up; that takes 15 ms
_TIMEOUT: Final = _PATIENCE + 5.0  # s, for the program itself to give up first, and say why
_PASSED_ON: Final = ("PATH", "OVS_RUNDIR", "OVS_DBDIR")  # where it finds the switch, if that is not the usual place


def bridges() -> list[str]:
    """The bridges that it has.

    :raises ScriptFailed: it is not there, or does not answer
    """
    return _vsctl("list-br").split()


def bridge_of(port: str) -> str:
    """The bridge that it is a port of.

    :raises ScriptFailed: it is of none, or the switch does not answer
    """
    return _vsctl("port-to-br", port).strip()


def port_ids(nic: Nic, uuid: str) -> dict[str, str]:
    """What controllers find a NIC's port by.

    :param uuid: of its instance
    """
    return {"attached-mac": nic.mac, "iface-id": scripts.nic_uuid(uuid, nic.id), "vm-id": uuid}


def add_port(bridge: str, port: str, vlan: int | None, ids: dict[str, str]) -> None:
    """Make an interface a port of a bridge, and see the switch use it. What there was under its name is replaced.

    :param vlan: that it is in; None for all, with their tags
    :param ids: the interface's ``external_ids``, for controllers and people
    :raises ScriptFailed: it could not. The port may be there all the same
    :raises NetworkError: the switch has the port, and cannot use the interface
    """
    tag = [f"tag={vlan}"] if vlan else []
    marks = [f'external_ids:{key}="{value}"' for key, value in ids.items()]
    add = ["--", "add-port", bridge, port, *tag, "--", "set", "Interface", port, *marks]
    _vsctl("--if-exists", "del-port", port, *add)
    problem = _vsctl("get", "Interface", port, "error")
    if problem != "[]":
        raise NetworkError(port, f"Open vSwitch cannot use it: {problem}")


def delete_port(port: str) -> None:
    """Delete a port from whatever bridge it is on; nothing where there is none.

    The switch itself is not waited for: it may be down, and then learns of it when it is up.

    :raises ScriptFailed: it could not
    """
    _vsctl("--no-wait", "--if-exists", "del-port", port)


def _vsctl(*words: str) -> str:
    env = scripts.PLAIN_ENVIRONMENT | {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    if shutil.which(_PROGRAM, path=env["PATH"]) is None:
        raise ScriptFailed(_PROGRAM, "is not installed: it is Open vSwitch's, in Debian's package openvswitch-switch")
    return scripts.run([_PROGRAM, f"--timeout={_PATIENCE}", *words], env, timeout=_TIMEOUT)
