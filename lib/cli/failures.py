"""What a command says and exits with when it failed: what is wrong, and what to do about it."""

import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from drover.errors import CallFailed, DeviceNotFound, DroverError, InstanceError, WrongState

DONE: Final = 0
FAILED: Final = 1
USAGE: Final = 2
NOT_FOUND: Final = 3
CONFLICT: Final = 4
IN_DOUBT: Final = 5
INTERRUPTED: Final = 130  # as a shell has it: 128 and the number of SIGINT

# For `drover --help` and the man page.
EXIT_STATUS: Final[Mapping[int, str]] = {
    DONE: "It was done.",
    FAILED: "It failed; or what was compared differs (verify).",
    USAGE: "The command line was not understood, or has to be confirmed by --yes. Nothing was done.",
    NOT_FOUND: "There is no such instance, device or job. Nothing was done.",
    CONFLICT: "It cannot be done as things are: the instance runs, or does not, or is busy. Nothing was done.",
    IN_DOUBT: "There was no answer in time: it may be done, or not.",
    INTERRUPTED: "Ctrl-C ended it.",
}


class Advice(NamedTuple):
    """What a kind of error means to who typed a command.

    :ivar status: to exit with
    :ivar then: what to do now, with ``{name}`` for the instance; empty: the error says it all
    """

    status: int
    then: str = ""


_LOOK: Final = "drover show {name} says how it is now"
# By the code of an error, which the node daemon tells, too.
_ADVICE: Final[Mapping[str, Advice]] = {
    "instance-not-found": Advice(NOT_FOUND, "drover list shows what there is"),
    "device-not-found": Advice(NOT_FOUND, "drover show {name} lists its devices"),
    "job-not-found": Advice(NOT_FOUND, "drover jobs shows what there is"),
    "instance-exists": Advice(CONFLICT, "drover show {name} shows it; a new one takes another name"),
    "instance-busy": Advice(CONFLICT, "try again when that is done"),
    "wrong-state": Advice(CONFLICT),
    "memory-saved": Advice(CONFLICT, "drover start {name} restores it; drover discard {name} forgets what was saved"),
    "memory-unusable": Advice(
        CONFLICT, "drover restore {name} --from FILE, where it was moved; drover start {name} --fresh boots without it"
    ),
    "migration-blocked": Advice(CONFLICT),
    "watcher-runs": Advice(FAILED, "there is one watcher at a time, drover watch or drover-kvmd"),
    "job-lost": Advice(IN_DOUBT, _LOOK),
    "job-stale": Advice(CONFLICT, "ask again"),
    "operation-cancelled": Advice(FAILED, _LOOK),
    "job-wrong-state": Advice(CONFLICT, "drover jobs shows how far each has come"),
    "too-many-jobs": Advice(CONFLICT, "try again later; drover jobs shows what is under way"),
    "idempotency-conflict": Advice(CONFLICT),
    "store-busy": Advice(CONFLICT, "try again"),
    "instance-timeout": Advice(IN_DOUBT, _LOOK),
    "monitor-timeout": Advice(IN_DOUBT, _LOOK),
    "connect-timeout": Advice(IN_DOUBT, _LOOK),
    "no-daemon": Advice(FAILED, "drover daemon start starts one; where systemd does: systemctl start drover-noded"),
    "no-answer": Advice(IN_DOUBT, "drover list says whether it is there again"),
    "unplug-pending": Advice(FAILED, "drover reset {name} makes the guest let go of it"),
    "tray-locked": Advice(FAILED, "--force opens it all the same"),
    "unreachable": Advice(FAILED, "drover context list shows where it should be"),
    "token-refused": Advice(FAILED, "drover node token, on the node that has the authority, prints another one"),
    "revoked": Advice(FAILED, "with another token: drover context remove, then add"),
    "not-allowed": Advice(FAILED, "who may do what: doc/node-daemon.md, Who may"),
}
_NEEDED: Final = {
    "saved": "drover save {name} saves one that runs",
    "running": "drover start {name} starts it",
    "stopped": "drover stop {name} stops it",
}
_WORD: Final = re.compile(r"(?<=[a-z])(?=[A-Z])")


def advice(error: DroverError) -> Advice:
    """What an error means to who typed the command."""
    code, facts = _known(error)
    found = _ADVICE.get(code, Advice(FAILED))
    then = _NEEDED.get(str(facts.get("needed", "")), "") if code == "wrong-state" else found.then
    name = facts.get("instance", "")
    if "{name}" in then and not name:
        then = then.replace("{name}", "NAME")
    return Advice(found.status, then.format(name=name))


def _known(error: DroverError) -> tuple[str, Mapping[str, Any]]:
    """An error's code and data, whether it was raised here or in a daemon."""
    if isinstance(error, CallFailed):
        return error.code, error.facts
    facts: dict[str, Any] = {"instance": error.name} if isinstance(error, InstanceError | DeviceNotFound) else {}
    if isinstance(error, WrongState):
        facts["needed"] = error.needed
    return _WORD.sub("-", type(error).__name__).lower(), facts
