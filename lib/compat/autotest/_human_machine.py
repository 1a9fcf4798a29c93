"""The human monitor's commands, by avocado-vt's names."""

import re
from typing import Any

from . import parse
from .errors import MonitorError, MonitorNotSupportedMigCapError
from .monitor import Monitor


class _Machine(Monitor):
    """Each method runs one line, returns what it prints, and raises what `cmd` raises."""

    cmd: Any
    query: Any
    send_args_cmd: Any

    def _known(self, cmd: str, *args: Any, correct: bool = False) -> Any:
        """Run a line, if QEMU has its command; `correct` finds the name by which it has it."""
        if correct:
            cmd = self.get_workable_cmd(cmd)
        self.verify_supported_cmd(cmd)
        return self.cmd(_line(cmd, *args))

    # -- the machine -----------------------------------------------------

    def exit_preconfig(self) -> Any:
        """Leave the preconfig state."""
        return self.cmd(cmd="exit_preconfig")

    def screendump(self, filename: str, debug: bool = True) -> Any:
        """Write a picture of the screen into a file."""
        return self.cmd(cmd=f"screendump {filename}", debug=debug)

    def system_reset(self) -> Any:
        """Reset the machine."""
        return self._known("system_reset")

    def system_powerdown(self) -> Any:
        """Press the power button."""
        return self._known("system_powerdown")

    def system_wakeup(self) -> Any:
        """Wake the machine from its sleep."""
        return self._known("system_wakeup")

    def nmi(self) -> Any:
        """Give all CPUs an NMI."""
        return self.cmd("nmi")

    def set_link(self, name: str, up: Any) -> Any:
        """Switch a link on or off."""
        return self.cmd(f"set_link {name} {'on' if up else 'off'}")

    def sendkey(self, keystr: str, hold_time: int = 1) -> Any:
        """Press keys, for `hold_time` milliseconds."""
        return self.cmd(f"sendkey {keystr} {hold_time}")

    def mouse_move(self, dx: Any, dy: Any) -> Any:
        """Move the mouse."""
        return self.cmd(f"mouse_move {dx} {dy}")

    def mouse_button(self, state: Any) -> Any:
        """Press the mouse's buttons: 1 left, 2 middle, 4 right."""
        return self.cmd(f"mouse_button {state}")

    def getfd(self, fd: Any, name: str) -> Any:
        """Give QEMU a descriptor, under a name."""
        return self.cmd(f"getfd {name}", fd=fd)

    def closefd(self, name: str) -> Any:
        """Close a descriptor that QEMU was given."""
        return self.cmd(f"closefd {name}")

    def balloon(self, size: Any) -> Any:
        """Let the guest have only `size` bytes."""
        self.verify_supported_cmd("balloon")
        return self.cmd(f"balloon {int(float(size) / 1024**2)}")

    def netdev_add(self, backend: str, name: str, **kwargs: Any) -> Any:
        """Add a network backend."""
        options = {key: _switch(value) for key, value in self._build_args(**kwargs).items()}
        more = "".join(f",{key}={value}" for key, value in options.items())
        return self.cmd(f"netdev_add type={backend},id={name}{more}")

    def netdev_del(self, name: str) -> Any:
        """Remove a network backend."""
        return self.cmd(f"netdev_del {name}")

    # -- images ----------------------------------------------------------

    def live_snapshot(self, device: str, snapshot_file: str, **kwargs: Any) -> Any:
        """Write on into a new image; `format` is its format."""
        return self.cmd(_line("snapshot_blkdev", device, snapshot_file, kwargs.get("format")))

    def block_stream(
        self, device: str, speed: Any = None, base: Any = None, cmd: str = "block_stream", correct: bool = True
    ) -> Any:
        """Copy what lies below an image into it; `speed` in bytes per second."""
        return self._known(cmd, device, _speed(speed), base or None, correct=correct)

    def block_commit(
        self,
        device: str,
        speed: Any = None,
        base: Any = None,
        top: Any = None,
        cmd: str = "block_commit",
        correct: bool = True,
    ) -> Any:
        """Write an image's content into one below it; `speed` in bytes per second."""
        return self._known(cmd, device, _speed(speed or None), base or None, top or None, correct=correct)

    def set_block_job_speed(
        self, device: str, speed: Any = 0, cmd: str = "block_job_set_speed", correct: bool = True
    ) -> Any:
        """Set a job's speed, in bytes per second."""
        return self._known(cmd, device, _speed(speed), correct=correct)

    def cancel_block_job(self, device: str, cmd: str = "block_job_cancel", correct: bool = True) -> Any:
        """Cancel a job."""
        return self._known(cmd, device, correct=correct)

    def pause_block_job(self, device: str, cmd: str = "block_job_pause", correct: bool = True) -> Any:
        """Pause a job."""
        return self._known(cmd, device, correct=correct)

    def resume_block_job(self, device: str, cmd: str = "block_job_resume", correct: bool = True) -> Any:
        """Let a paused job go on."""
        return self._known(cmd, device, correct=correct)

    def query_block_job(self, device: str) -> dict[str, Any]:
        """The job on a device: `type`, `device`, `offset`, `len`, `speed`; empty where there is none."""
        return parse.block_job(str(self.info("block-jobs")), device)

    def query_jobs(self) -> Any:
        """What ``info jobs`` prints."""
        return self.query("jobs")

    def get_backingfile(self, device: str) -> str | None:
        """The backing file of a device; None where there is none."""
        return parse.backing_file(self.query("block"), device)

    def block_mirror(
        self, device: str, target: str, sync: str, cmd: str = "drive_mirror", correct: bool = True, **kwargs: Any
    ) -> Any:
        """Copy a device into a new image; `format`, `mode` and `speed` are looked at where QEMU has them."""
        cmd, usage = self._usage_of(cmd, correct)
        existing = kwargs.get("mode", "absolute-paths") == "existing" and "-n" in usage
        full = sync == "full" and "-f" in usage
        speed = kwargs.get("speed") if "speed" in usage else None
        image = kwargs.get("format", "qcow2")
        return self.cmd(_line(cmd, "-f" if full else None, "-n" if existing else None, device, target, image, speed))

    def block_reopen(
        self,
        device: str,
        new_image_file: str,
        image_format: str,
        cmd: str = "block_job_complete",
        correct: bool = True,
    ) -> Any:
        """Let a device use the image that was copied into."""
        cmd, usage = self._usage_of(cmd, correct)
        image = (new_image_file, image_format) if "format" in usage else ()
        return self.cmd(_line(cmd, device, *image))

    def _usage_of(self, cmd: str, correct: bool) -> tuple[str, str]:
        if correct:
            cmd = self.get_workable_cmd(cmd)
        self.verify_supported_cmd(cmd)
        return cmd, str(self.cmd(f"help {cmd}"))

    def block_resize(self, device: str, size: Any) -> Any:
        """Resize a device; `size` in bytes, of which whole MiB count."""
        return self.send_args_cmd(f"block_resize device={device},size={int(size) // 1024**2}")

    def eject_cdrom(self, device: str, force: bool = False) -> Any:
        """Take the medium out; `force` where the guest has locked it."""
        return self._known("eject", "-f" if force else None, device)

    def change_media(self, device: str, target: str) -> Any:
        """Put another medium in."""
        return self._known("change", device, target)

    def job_dismiss(self, identifier: str) -> Any:
        """Not with this monitor."""
        raise NotImplementedError

    def blockdev_create(self, job_id: str, options: Any) -> Any:
        """Not with this monitor."""
        raise NotImplementedError

    def blockdev_backup(self, options: Any) -> Any:
        """Not with this monitor."""
        raise NotImplementedError

    def debug_block_dirty_bitmap_sha256(self, node: str, bitmap: str) -> Any:
        """Not with this monitor."""
        raise NotImplementedError

    def x_debug_block_dirty_bitmap_sha256(self, node: str, bitmap: str) -> Any:
        """Not with this monitor."""
        raise NotImplementedError

    def block_dirty_bitmap_merge(self, node: str, src_bitmaps: Any, dst_bitmap: str) -> Any:
        """Not with this monitor."""
        raise NotImplementedError

    def x_block_dirty_bitmap_merge(self, node: str, src_bitmap: Any, dst_bitmap: str) -> Any:
        """Not with this monitor."""
        raise NotImplementedError

    def query_named_block_nodes(self) -> Any:
        """Not with this monitor."""
        raise NotImplementedError

    # -- migration -------------------------------------------------------

    def migrate(self, uri: str, full_copy: Any = None, incremental_copy: Any = None, wait: Any = False) -> Any:
        """Begin to send the machine; `wait` for the end."""
        flags = (None if wait else "-d", "-b" if full_copy else None, "-i" if incremental_copy else None)
        return self.cmd(_line("migrate", *flags, uri))

    def migrate_continue(self, state: str) -> Any:
        """Go on where the migration is paused in `state`."""
        return self.cmd(f"migrate_continue {state}")

    def migrate_set_speed(self, value: Any) -> Any:
        """Set the speed, in bytes per second (QEMU before 6.0)."""
        return self.cmd(f"migrate_set_speed {value}")

    def migrate_incoming(self, uri: str) -> Any:
        """Begin to receive the machine, where that was deferred."""
        return self.cmd(f"migrate_incoming {uri}")

    def migrate_set_downtime(self, value: Any) -> Any:
        """Set how many seconds the guest may stand still (QEMU before 6.0)."""
        return self.cmd(f"migrate_set_downtime {value}")

    def migrate_start_postcopy(self) -> Any:
        """Let the target run now."""
        return self.cmd("migrate_start_postcopy")

    def _names_in(self, what: str) -> list[str]:
        """What stands before the colons of a query's output."""
        return [line.split(":", 1)[0] for line in self.query(what).splitlines() if ":" in line]

    def _get_migrate_capability(self, capability: str, disable_auto_x_evaluation: bool = True) -> str:
        if self._supported_migrate_capabilities is None:
            self._supported_migrate_capabilities = self._names_in("migrate_capabilities")
        return super()._get_migrate_capability(capability, disable_auto_x_evaluation)

    def set_migrate_capability(self, state: Any, capability: str, disable_auto_x_evaluation: bool = True) -> Any:
        """Switch a capability; not `disable_auto_x_evaluation` finds its name with ``x-`` or without.

        :raises MonitorNotSupportedMigCapError: QEMU does not do that
        """
        self.verify_supported_cmd("migrate_set_capability")
        capability = self._get_migrate_capability(capability, disable_auto_x_evaluation)
        output = self.cmd(f"migrate_set_capability {capability} {'on' if state else 'off'}")
        if output:
            raise MonitorNotSupportedMigCapError(f"Failed to set capability{capability}: {output}")
        return output

    def get_migrate_capability(self, capability: str, disable_auto_x_evaluation: bool = True) -> bool:
        """Whether a capability is on.

        :raises MonitorNotSupportedMigCapError: QEMU has none of that name
        """
        text = self.query("migrate_capabilities")
        capability = self._get_migrate_capability(capability, disable_auto_x_evaluation)
        found = re.search(rf"^{re.escape(capability)}:\s+(on|off)", text, re.MULTILINE)
        if found is None:
            raise MonitorNotSupportedMigCapError(f"Unknown capability {capability}")
        return found[1] == "on"

    def set_migrate_cache_size(self, value: Any) -> Any:
        """Set the size of the cache (QEMU before 6.0)."""
        return self._known("migrate_set_cache_size", value)

    def get_migrate_cache_size(self) -> str:
        """The size of the cache (QEMU before 6.0)."""
        text: str = self.query("migrate_cache_size")
        return text.split(":")[1].split(maxsplit=1)[0].strip()

    def _get_migrate_parameter(
        self, parameter: str, error_on_missing: bool = False, disable_auto_x_evaluation: bool = True
    ) -> str:
        if self._supported_migrate_parameters is None:
            self._supported_migrate_parameters = self._names_in("migrate_parameters")
        return super()._get_migrate_parameter(parameter, error_on_missing, disable_auto_x_evaluation)

    def set_migrate_parameter(
        self, parameter: str, value: Any, error_on_missing: bool = False, disable_auto_x_evaluation: bool = True
    ) -> Any:
        """Set a parameter; not `disable_auto_x_evaluation` finds its name with ``x-`` or without."""
        self.verify_supported_cmd("migrate_set_parameter")
        parameter = self._get_migrate_parameter(parameter, error_on_missing, disable_auto_x_evaluation)
        return self.cmd(f"migrate_set_parameter {parameter} {value}")

    def get_migrate_parameter(self, parameter: str, disable_auto_x_evaluation: bool = True) -> str | None:
        """A parameter's value, as text; None where there is none."""
        parameter = self._get_migrate_parameter(parameter, disable_auto_x_evaluation=disable_auto_x_evaluation)
        for line in self.query("migrate_parameters").splitlines():
            name, colon, value = line.partition(":")
            if colon and name == parameter:
                return str(value).lstrip()
        return None

    def get_migrate_progress(self) -> float:
        """Per cent of the guest's memory that have been sent.

        :raises MonitorError: there is no migration that would know
        """
        status = self.info("migrate", debug=False)
        left = re.search(r"remaining ram: (\d+) kbytes", status)
        total = re.search(r"total ram: (\d+) kbytes", status)
        if left and total and int(total[1]):
            return 100 - 100 * int(left[1]) / int(total[1])
        if "Migration status: completed" in status:
            return 100
        if "Migration status: setup" in status:
            return 0
        raise MonitorError(f"Unable to parse migration progress:\n{status}")


def _line(command: str, *arguments: Any) -> str:
    return " ".join([command, *(str(argument) for argument in arguments if argument is not None)])


def _speed(speed: Any) -> str | None:
    return None if speed is None else f"{speed}B"


def _switch(value: Any) -> Any:
    return ("on" if value else "off") if isinstance(value, bool) else value
