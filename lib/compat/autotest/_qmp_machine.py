"""QMP's commands for the machine and its migration, by avocado-vt's names."""

from typing import Any

from .errors import MonitorError, MonitorNotSupportedMigCapError, QMPCmdError
from .monitor import LOG, Monitor, plain_size
from .places import pick_supported_x_feature, x_non_x_feature


class _Machine(Monitor):
    """Each method runs one command, returns what QEMU returned, and raises what `cmd` raises."""

    cmd: Any
    query: Any
    send_args_cmd: Any
    clear_event: Any
    verify_supported_hmp_cmd: Any
    _await_event: Any
    _known: Any

    # -- power -----------------------------------------------------------

    def exit_preconfig(self) -> Any:
        """Leave the preconfig state."""
        known = self._supported_cmds
        return self.cmd(cmd=pick_supported_x_feature("exit-preconfig", known, False, error_on_missing=True))

    def _until(self, cmd: str, event: str) -> Any:
        """Run a command, and wait for the event that says that it was done."""
        self.verify_supported_cmd(cmd)
        self.clear_event(event)
        value = self.cmd(cmd=cmd)
        self._await_event(cmd, event)
        return value

    def system_reset(self) -> Any:
        """Reset the machine, and wait until that has happened.

        :raises QMPEventError: it did not
        """
        return self._until("system_reset", "RESET")

    def system_powerdown(self) -> None:
        """Press the power button, and wait until that has happened.

        :raises QMPEventError: it did not
        """
        self._until("system_powerdown", "POWERDOWN")

    def system_wakeup(self) -> None:
        """Wake the machine from its sleep, and wait until that has happened.

        :raises QMPEventError: it did not
        """
        self._until("system_wakeup", "WAKEUP")

    def nmi(self) -> Any:
        """Give all CPUs an NMI."""
        return self.cmd("inject-nmi")

    # -- devices ---------------------------------------------------------

    def screendump(self, filename: str, debug: bool = True) -> Any:
        """Write a picture of the screen into a file."""
        if self._has_command("screendump"):
            return self.cmd(cmd="screendump", args={"filename": filename}, debug=debug)
        self.verify_supported_hmp_cmd("screendump")
        return self.human_monitor_cmd(f"screendump {filename}", debug=debug)

    def set_link(self, name: str, up: Any) -> Any:
        """Switch a link on or off."""
        return self.cmd("set_link", {"name": name, "up": up})

    def sendkey(self, keystr: str, hold_time: int = 1) -> Any:
        """Press keys, for `hold_time` milliseconds."""
        return self.human_monitor_cmd(f"sendkey {keystr} {hold_time}")

    def press_release_key(self, key: str, down: bool = True) -> Any:
        """Press a key, or let it go."""
        data = {"down": down, "key": {"type": "qcode", "data": key}}
        return self._known("input-send-event", {"events": [{"type": "key", "data": data}]})

    def input_send_event(self, events: Any, device: Any = None, head: Any = None) -> Any:
        """Give the guest input."""
        more = self._build_args(device=device or None, head=int(head) if head else None)
        return self._known("input-send-event", {**more, "events": events})

    def query_mice(self) -> Any:
        """All mice."""
        return self.cmd("query-mice")

    def getfd(self, fd: Any, name: str) -> Any:
        """Give QEMU a descriptor, under a name."""
        return self.cmd("getfd", {"fdname": name}, fd=fd)

    def closefd(self, name: str) -> Any:
        """Close a descriptor that QEMU was given."""
        return self.cmd("closefd", {"fdname": name})

    def balloon(self, size: Any) -> None:
        """Let the guest have only `size` bytes, and wait until that has begun.

        :raises QMPEventError: it did not
        """
        self.verify_supported_cmd("balloon")
        self.clear_event("BALLOON_CHANGE")
        self.send_args_cmd(f"balloon value={size}")
        self._await_event("balloon", "BALLOON_CHANGE")

    def netdev_add(self, backend: str, name: str, **kwargs: Any) -> Any:
        """Add a network backend."""
        return self.cmd("netdev_add", {"type": backend, "id": name, **self._build_args(**kwargs)})

    def netdev_del(self, name: str) -> Any:
        """Remove a network backend."""
        return self.cmd("netdev_del", {"id": name})

    def qom_set(self, path: str, qproperty: str, qvalue: Any) -> Any:
        """Set a property of an object."""
        return self._known("qom-set", {"path": path, "property": qproperty, "value": qvalue})

    def qom_get(self, path: str, qproperty: str) -> Any:
        """Read a property of an object."""
        return self._known("qom-get", {"path": path, "property": qproperty})

    def set_numa_node(self, option_type: str, **kwargs: Any) -> Any:
        """Set up NUMA, in the preconfig state."""
        return self._known("set-numa-node", {"type": option_type, **self._build_args(**kwargs)})

    def query_cpu_model_expansion(self, cpu_model: str) -> Any:
        """All properties of a CPU model."""
        args = {"type": "full", "model": {"name": cpu_model}}
        return self._known("query-cpu-model-expansion", args)["model"]["props"]

    def query_sgx(self) -> Any:
        """What the machine has of SGX."""
        return self._known("query-sgx")

    def query_sgx_capabilities(self) -> Any:
        """What the host has of SGX."""
        return self._known("query-sgx-capabilities")

    def query_sev(self) -> Any:
        """What the machine has of SEV."""
        return self._known("query-sev")

    def query_sev_capabilities(self) -> Any:
        """What the host has of SEV."""
        return self._known("query-sev-capabilities")

    def query_sev_launch_measure(self) -> Any:
        """The measurement of what SEV launched."""
        return self._known("query-sev-launch-measure")

    def query_sev_attestation_report(self, mnonce: str) -> Any:
        """SEV's attestation report."""
        return self._known("query-sev-attestation-report", {"mnonce": mnonce})

    # -- migration -------------------------------------------------------

    def migrate(self, uri: str, full_copy: Any = None, incremental_copy: Any = None, wait: Any = False) -> Any:
        """Begin to send the machine; `wait` is not looked at."""
        args = {"uri": uri.replace('"', ""), **self._build_args(blk=full_copy, inc=incremental_copy)}
        try:
            return self.cmd("migrate", args)
        except QMPCmdError as error:
            if error.data["class"] != "SockConnectInprogress":
                raise
            return None

    def migrate_continue(self, state: str) -> Any:
        """Go on where the migration is paused in `state`."""
        return self.cmd("migrate-continue", {"state": state})

    def migrate_set_speed(self, value: Any) -> Any:
        """Set the speed, as ``"32M"``; a number without a unit is MiB per second (QEMU before 6.0)."""
        return self.cmd("migrate_set_speed", {"value": plain_size(value, "M")})

    def migrate_incoming(self, uri: str) -> Any:
        """Begin to receive the machine, where that was deferred."""
        return self.cmd("migrate-incoming", {"uri": uri})

    def migrate_set_downtime(self, value: Any) -> Any:
        """Set how many seconds the guest may stand still (QEMU before 6.0)."""
        return self.cmd("migrate_set_downtime", {"value": value})

    def migrate_start_postcopy(self) -> Any:
        """Let the target run now."""
        return self.cmd("migrate-start-postcopy")

    def _get_migrate_capability(self, capability: str, disable_auto_x_evaluation: bool = True) -> str:
        if self._supported_migrate_capabilities is None:
            known = self.query("migrate-capabilities")
            self._supported_migrate_capabilities = {item["capability"] for item in known}
        return super()._get_migrate_capability(capability, disable_auto_x_evaluation)

    def set_migrate_capability(self, state: Any, capability: str, disable_auto_x_evaluation: bool = True) -> Any:
        """Switch a capability; not `disable_auto_x_evaluation` tries its name with ``x-`` and without.

        :raises MonitorNotSupportedMigCapError: QEMU takes neither
        """
        name = self._get_migrate_capability(capability, disable_auto_x_evaluation)
        try:
            return self._switch(name, state)
        except QMPCmdError as error:
            if disable_auto_x_evaluation:
                raise
            return self._switch_other(x_non_x_feature(name), state, name, error)

    def _switch(self, capability: str, state: Any) -> Any:
        args = {"capabilities": [{"state": state, "capability": capability}]}
        return self._known("migrate-set-capabilities", args)

    def _switch_other(self, other: str, state: Any, name: str, first: QMPCmdError) -> Any:
        try:
            return self._switch(other, state)
        except QMPCmdError as second:
            LOG.debug("cannot set %s (%s), nor %s (%s)", name, first, other, second)
            if first.data["class"] != "GenericError":
                raise first from None
            if second.data["class"] != "GenericError":
                raise
            text = f"set capability failed for {name} ({first}) as well as {other} ({second})"
            raise MonitorNotSupportedMigCapError(text) from second

    def get_migrate_capability(self, capability: str, disable_auto_x_evaluation: bool = True) -> Any:
        """Whether a capability is on.

        :raises MonitorNotSupportedMigCapError: QEMU has none of that name
        """
        capability = self._get_migrate_capability(capability, disable_auto_x_evaluation)
        for item in self.query("migrate-capabilities"):
            if item["capability"] == capability:
                return item["state"]
        raise MonitorNotSupportedMigCapError(f"Unknown capability {capability}")

    def set_migrate_cache_size(self, value: Any) -> Any:
        """Set the size of the cache, in bytes (QEMU before 6.0)."""
        return self._known("migrate-set-cache-size", {"value": value})

    def get_migrate_cache_size(self) -> Any:
        """The size of the cache, in bytes (QEMU before 6.0)."""
        return self.query("migrate-cache-size")

    def _get_migrate_parameter(
        self, parameter: str, error_on_missing: bool = False, disable_auto_x_evaluation: bool = True
    ) -> str:
        if self._supported_migrate_parameters is None:
            self._supported_migrate_parameters = self.query("migrate-parameters").keys()
        return super()._get_migrate_parameter(parameter, error_on_missing, disable_auto_x_evaluation)

    def set_migrate_parameter(
        self, parameter: str, value: Any, error_on_missing: bool = False, disable_auto_x_evaluation: bool = True
    ) -> Any:
        """Set a parameter; not `disable_auto_x_evaluation` finds its name with ``x-`` or without."""
        self.verify_supported_cmd("migrate-set-parameters")
        parameter = self._get_migrate_parameter(parameter, error_on_missing, disable_auto_x_evaluation)
        return self.cmd("migrate-set-parameters", {parameter: value})

    def get_migrate_parameter(self, parameter: str, disable_auto_x_evaluation: bool = True) -> Any:
        """A parameter's value; False where there is none."""
        parameters = self.query("migrate-parameters")
        name = self._get_migrate_parameter(parameter, disable_auto_x_evaluation=disable_auto_x_evaluation)
        return parameters.get(name, False)

    def get_migrate_progress(self) -> float:
        """Per cent of the guest's memory that have been sent.

        :raises MonitorError: there is no migration that would know
        """
        info = self.query("migrate")
        status, ram = info.get("status"), info.get("ram", {})
        if ram.get("total"):
            return float(100.0 - 100.0 * ram["remaining"] / ram["total"])
        known = {"completed": 100, "setup": 0}
        if status not in known:
            raise MonitorError(f"Unable to parse migration progress:\n{status}")
        return known[status]
