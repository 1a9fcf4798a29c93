"""How long a command may take before we say that its outcome is unknown.

Most commands answer within a millisecond. Some wait for storage, for a thread
of the machine or for the guest's memory; to give up on those early only makes
the outcome unknown. A caller's own `timeout` always wins.
"""

from collections.abc import Mapping
from typing import Final

DEFAULT_TIMEOUT: Final = 10.0

# Seconds; why: what the command waits for inside of QEMU.
_STORAGE: Final = 60.0  # opens, flushes or drains images, which may lie on a slow network
_MACHINE: Final = 30.0  # stops or starts vCPUs, which drains all block I/O, or builds a device
_MEMORY: Final = 3600.0  # writes or reads all of the guest's memory

COMMAND_TIMEOUTS: Final[Mapping[str, float]] = {
    "block-commit": _STORAGE,
    "block-dirty-bitmap-remove": _STORAGE,
    "block-stream": _STORAGE,
    "block_resize": _STORAGE,
    "blockdev-add": _STORAGE,
    "blockdev-backup": _STORAGE,
    "blockdev-create": _STORAGE,
    "blockdev-del": _STORAGE,
    "blockdev-insert-medium": _STORAGE,
    "blockdev-mirror": _STORAGE,
    "blockdev-reopen": _STORAGE,
    "blockdev-snapshot": _STORAGE,
    "blockdev-snapshot-delete-internal-sync": _STORAGE,
    "blockdev-snapshot-internal-sync": _STORAGE,
    "blockdev-snapshot-sync": _STORAGE,
    "cont": _MACHINE,
    "device_add": _MACHINE,
    "device_del": _MACHINE,
    "dump-guest-memory": _MEMORY,
    "human-monitor-command": _STORAGE,
    "job-finalize": _STORAGE,
    "migrate": _MACHINE,
    "migrate-continue": _MACHINE,
    "netdev_add": _MACHINE,
    "object-add": _STORAGE,  # a memory backend with prealloc touches every page
    "pmemsave": _STORAGE,
    "screendump": _MACHINE,
    "snapshot-delete": _STORAGE,
    "snapshot-load": _MEMORY,
    "snapshot-save": _MEMORY,
    "stop": _STORAGE,
    "system_reset": _MACHINE,
    "transaction": _STORAGE,
}


def command_timeout(command: str, default: float | None = DEFAULT_TIMEOUT) -> float | None:
    """Seconds that `command` gets when the caller does not say; None waits for ever.

    :param default: the connection's own default, for commands that are not slow by nature
    """
    if default is None:
        return None
    slow = COMMAND_TIMEOUTS.get(command)
    return default if slow is None else max(default, slow)
