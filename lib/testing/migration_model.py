"""The migration of a model: settings, and statuses that move on each time they are looked at."""

from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from .recorded import recorded_schema

Arguments = dict[str, Any]


class Machine(Protocol):
    """What a migration changes of the machine."""

    version: str
    status: str
    fds: set[str]
    emit: Callable[[str, Arguments], None]


class MigrationModel:
    """One side of a migration.

    :ivar script: the statuses that come, one each time the state is asked for
    """

    def __init__(self, qemu: Machine) -> None:
        self.script: deque[str] = deque()
        self.state = "none"
        self.error = ""
        self.parameters: Arguments = {"max-bandwidth": 134217728, "downtime-limit": 300, "tls-creds": ""}
        names = _enum(qemu.version, "migrate-set-capabilities", "capabilities", "capability")
        self.capabilities = dict.fromkeys(names, False)
        self._qemu = qemu

    def move(self, status: str) -> None:
        """Enter `status`, as QEMU does by itself."""
        self.state = status
        if status == "completed" and self._qemu.status != "inmigrate":
            self._qemu.status = "finish-migrate"
        elif status == "completed":
            self._qemu.status = "paused"
        if self.capabilities.get("events"):
            self._qemu.emit("MIGRATION", {"status": status})

    def _do_query_migrate(self, _: Arguments) -> Arguments:
        if self.script:
            self.move(self.script.popleft())
        if self.state == "none":
            return {}
        ram = {"transferred": 1, "remaining": 2, "total": 3}
        return {"status": self.state, "ram": ram} | ({"error-desc": self.error} if self.error else {})

    def _do_query_migrate_capabilities(self, _: Arguments) -> list[Arguments]:
        return [{"capability": name, "state": state} for name, state in self.capabilities.items()]

    def _do_migrate_set_capabilities(self, given: Arguments) -> Arguments:
        self.capabilities |= {entry["capability"]: entry["state"] for entry in given["capabilities"]}
        return {}

    def _do_query_migrate_parameters(self, _: Arguments) -> Arguments:
        return dict(self.parameters)

    def _do_migrate_set_parameters(self, given: Arguments) -> Arguments:
        self.parameters |= given
        return {}

    def _do_migrate(self, given: Arguments) -> Arguments:
        return self._begin(given)

    def _do_migrate_incoming(self, given: Arguments) -> Arguments:
        return self._begin(given)

    def _begin(self, given: Arguments) -> Arguments:
        if given["uri"].startswith("fd:"):
            self._qemu.fds.discard(given["uri"][3:])
        self.state = "setup"
        return {}

    def _do_migrate_continue(self, _: Arguments) -> Arguments:
        self.script.append("completed")
        return {}

    def _do_migrate_start_postcopy(self, _: Arguments) -> Arguments:
        self.script.append("postcopy-active")
        return {}

    def _do_migrate_cancel(self, _: Arguments) -> Arguments:
        self.script.clear()
        self.script.extend(["cancelling", "cancelled"])
        return {}


def _enum(version: str, command: str, *path: str) -> list[str]:
    types = {entity["name"]: entity for entity in recorded_schema(version)}
    found = types[types[command]["arg-type"]]
    for step in path:
        found = types[next(member["type"] for member in found["members"] if member["name"] == step)]
        if found["meta-type"] == "array":
            found = types[found["element-type"]]
    return list(found["values"]) if "values" in found else [member["name"] for member in found["members"]]
