"""The sub-commands of `drover`, as one table: whoever adds one adds a line here."""

from typing import Final

from drover.cli.lazy import Entry, Group, Table

_INSTANCES: Final = "drover.cli.instances"
_BOOT: Final = "drover.cli.boot"
_ATTACH: Final = "drover.cli.attach"
_DETACH: Final = "drover.cli.detach"
_RESIZE: Final = "drover.cli.resize"
_DAEMON: Final = "drover.cli.daemon"
_JOBS: Final = "drover.cli.jobs"
_SAVING: Final = "drover.cli.saving"
_SETTING: Final = "drover.cli.setting"
_NODE: Final = "drover.cli.node"
_CERT: Final = "drover.cli.cert"
_CONTEXT: Final = "drover.cli.context"

ATTACH: Final = {
    "disk": Entry(_ATTACH, "A disk.", "disk"),
    "memory": Entry(_ATTACH, "Memory.", "memory"),
    "nic": Entry(_ATTACH, "A network card.", "nic"),
    "usb": Entry(_ATTACH, "A USB device.", "usb"),
    "vfio": Entry(_ATTACH, "A PCI device of the host.", "vfio"),
}
DETACH: Final = {
    "disk": Entry(_DETACH, "A disk.", "disk"),
    "memory": Entry(_DETACH, "Memory.", "memory"),
    "nic": Entry(_DETACH, "A network card.", "nic"),
    "usb": Entry(_DETACH, "A USB device.", "usb"),
    "vfio": Entry(_DETACH, "A PCI device of the host.", "vfio"),
}
RESIZE: Final = {
    "disk": Entry(_RESIZE, "Make a disk larger.", "disk"),
    "memory": Entry(_RESIZE, "Give a guest more or less of virtio-mem.", "memory"),
}
SET: Final = {
    "balloon": Entry(_SETTING, "Ask a guest to do with less memory.", "balloon"),
    "link": Entry(_SETTING, "Plug the cable of a network card in or out.", "link"),
    "medium": Entry(_SETTING, "Put a medium into a CD drive, or take it out.", "medium"),
    "nic": Entry(_SETTING, "Connect a network card to something else.", "nic"),
    "throttle": Entry(_SETTING, "Limit a disk.", "throttle"),
    "vcpus": Entry(_SETTING, "Plug vCPUs in or out.", "vcpus"),
}
CERT: Final = {
    "issue": Entry(_CERT, "Make key and certificate for a program.", "issue"),
    "list": Entry(_CERT, "Show who has what until when.", "list_"),
    "renew": Entry(_CERT, "Get the next certificate now.", "renew"),
    "revoke": Entry(_CERT, "Have a certificate hold no longer.", "revoke"),
    "show": Entry(_CERT, "Show a certificate.", "show"),
}
NODE: Final = {
    "init": Entry(_NODE, "Have an authority and this node's certificate.", "init"),
    "join": Entry(_NODE, "Get this node's certificate by a token.", "join"),
    "token": Entry(_NODE, "Let somebody join once: a node, or a person.", "token"),
    "tokens": Entry(_NODE, "Show the tokens that nobody has used yet.", "tokens"),
}
CONTEXT: Final = {
    "add": Entry(_CONTEXT, "Join a node by a token, and call it by a name.", "add"),
    "list": Entry(_CONTEXT, "Show all of them.", "list_"),
    "remove": Entry(_CONTEXT, "Forget one, with its key.", "remove"),
    "show": Entry(_CONTEXT, "Show one.", "show"),
    "use": Entry(_CONTEXT, "Mean one where none is said.", "use"),
}
DAEMON: Final = {
    "start": Entry(_DAEMON, "Start it for this user, if none runs.", "start"),
    "status": Entry(_DAEMON, "Say whether it runs, and with what.", "status"),
    "stop": Entry(_DAEMON, "End it; the machines run on.", "stop"),
}
JOBS: Final = {
    "cancel": Entry(_JOBS, "Have one end, where it can.", "stop"),
    "list": Entry(_JOBS, "Show jobs, the newest first.", "list_"),
    "show": Entry(_JOBS, "Show one.", "show"),
    "wait": Entry(_JOBS, "Wait for the end of one.", "wait"),
}
_STAYS: Final = "The specification follows, so the next start has the same devices."
_NODE_TEXT: Final = (
    "`init` makes an authority, and the node's certificate by it. `token` prints a token by which somebody joins once: "
    "another node by `join`, or a person by `drover context add`. What answers is checked against the token before its "
    "secret is said."
)
_CERT_TEXT: Final = "`list` and `revoke` work where the authority is; `show` and `renew` on any node."
_CONTEXT_TEXT: Final = (
    "Which one is meant is said by --context, else by $DROVER_CONTEXT, else by `drover context use`, else it is this "
    "host, whose name is local. A command that was meant for another node never falls back on this one; those that "
    "work on this host alone refuse."
)
COMMANDS: Final[Table] = {
    "adopt": Entry(_INSTANCES, "After a restart: find what runs, mend what was left unfinished.", "adopt"),
    "attach": Group("Plug a device into an instance that runs.", ATTACH, text=_STAYS),
    "cert": Group("Certificates: who has what until when.", CERT, text=_CERT_TEXT),
    "clone": Entry("drover.cli.clone", "Make an instance like another one.", "clone"),
    "completion": Entry("drover.cli.completion", "Print what a shell needs to complete drover."),
    "console": Entry("drover.cli.console", "Be at an instance's serial console.", "console"),
    "context": Group("The nodes that commands may speak to.", CONTEXT, text=_CONTEXT_TEXT),
    "create": Entry(_INSTANCES, "Make an instance of a specification.", "create"),
    "daemon": Group("The node daemon of this user, or of this host.", DAEMON, "status"),
    "delete": Entry(_INSTANCES, "Forget an instance that does not run.", "delete"),
    "demo": Entry("drover.cli.demo", "Boot a guest, hot-plug, live-migrate it, show each step."),
    "detach": Group("Take a device out of an instance that runs.", DETACH, text=_STAYS),
    "discard": Entry(_SAVING, "Forget what was saved of an instance.", "discard"),
    "events": Entry("drover.cli.events", "Show what happens, and what happened.", "events"),
    "exec": Entry("drover.cli.execute", "Run a program in a guest.", "execute"),
    "hmp": Entry("drover.shell.hmp", "Talk to a machine's human monitor."),
    "jobs": Group("What the node daemon does and has done.", JOBS, "list"),
    "kill": Entry(_INSTANCES, "End an instance at once.", "kill"),
    "list": Entry("drover.cli.list", "Show all instances of a node.", "list_"),
    "logs": Entry("drover.cli.logs", "Print what an instance's guest, or its QEMU, has written.", "logs"),
    "migrate": Entry("drover.cli.migrate", "Move an instance to another node, while it runs.", "migrate"),
    "migrate-all": Entry("drover.cli.migrate_all", "Move all that runs here to another node.", "migrate_all"),
    "node": Group("Certificates of this node, and of those who may call it.", NODE, text=_NODE_TEXT),
    "pause": Entry(_INSTANCES, "Let a guest stand still.", "pause"),
    "qga": Entry("drover.shell.qga", "Talk to the agent in a guest."),
    "qmp": Entry("drover.shell.qmp", "Talk QMP to a machine: a shell, or a script."),
    "qom": Entry("drover.shell.qom", "Look at the objects of a machine, and set their properties."),
    "reboot": Entry(_INSTANCES, "Shut an instance down and start it anew.", "reboot"),
    "rename": Entry(_INSTANCES, "Give an instance another name.", "rename"),
    "reset": Entry(_INSTANCES, "Press an instance's reset button.", "reset"),
    "resize": Group("Make a disk or the memory of an instance that runs larger.", RESIZE),
    "restore": Entry(_SAVING, "Have a saved instance go on where it was.", "restore"),
    "resume": Entry(_INSTANCES, "Let a guest run on.", "resume"),
    "run": Entry("drover.cli.run", "Make, start and watch an instance: drover run demo.", "run"),
    "save": Entry(_SAVING, "Put an instance's memory into a file, and end it.", "save"),
    "set": Group("Change an instance that runs.", SET),
    "show": Entry(_INSTANCES, "Show an instance.", "show"),
    "start": Entry(_INSTANCES, "Start an instance.", "start"),
    "start-all": Entry(_BOOT, "Start the instances that start with the host.", "start_all"),
    "stats": Entry("drover.cli.stats", "Show what the machines that run use.", "stats"),
    "stop": Entry(_INSTANCES, "Shut an instance down.", "stop"),
    "stop-all": Entry(_BOOT, "Shut down all instances.", "stop_all"),
    "top": Entry("drover.cli.top", "Show all instances and what they use, live.", "top"),
    "upgrade": Entry(_SAVING, "Have an instance go over to the QEMU of an update, while it runs.", "upgrade"),
    "verify": Entry("drover.cli.verify", "Put specification, record and QEMU side by side.", "verify"),
    "vnc": Entry("drover.cli.vnc", "Have an instance's VNC at a port of this host.", "vnc"),
    "watch": Entry("drover.cli.watch", "Watch all instances: restart, resume, take note.", "watch"),
}
