"""The block nodes and background jobs of a model: jobs move on each time they are looked at."""

import os
from collections import deque
from collections.abc import Callable, Iterable
from errno import ECANCELED
from typing import Any, Final, Protocol

Arguments = dict[str, Any]

_FDSET: Final = "/dev/fdset/"
SIZE: Final = 1 << 20  # of every disk, in bytes

# What a job goes through by itself, one status for each look; a mirror stays ready.
SCRIPTS: Final = {
    "create": ("running", "concluded"),
    "mirror": ("running", "ready"),
    "backup": ("running", "concluded"),
}


class Refusal(Protocol):
    """How the machine refuses."""

    def __call__(self, desc: str, error_class: str = "GenericError") -> Exception: ...


class Trays(Protocol):
    """The CD drives of the machine, by id."""

    open_trays: set[str]
    locked: set[str]


class Machine(Protocol):
    """What block nodes and jobs need of the machine."""

    devices: dict[str, Arguments]
    fds: set[str]
    fdsets: dict[int, str]
    nodes: dict[str, Arguments]
    cds: "Trays"

    @property
    def bitmaps(self) -> "Bitmaps":
        """Those of its nodes."""

    @property
    def exports(self) -> "Exports":
        """What it gives out."""

    emit: Callable[[str, Arguments], None]


class Bitmaps(Protocol):
    """The bitmaps of the machine."""

    bitmaps: dict[str, dict[str, Arguments]]

    def apply(self, action: Arguments) -> None:
        """One action of a transaction."""


class Exports(Protocol):
    """What the machine gives out, by id."""

    exports: dict[str, Arguments]


class BlockModel:
    """The nodes of a machine, what stands on what, and its jobs.

    :ivar nodes: name to the options that it was opened with
    :ivar sizes: name to size in bytes
    :ivar jobs: id to what ``query-jobs`` says
    :ivar progress: how far a job is, and where it is through, if it is not told to be at its end
    :ivar started: id to the arguments that a mirror began with
    """

    def __init__(self, qemu: Machine, refused: Refusal) -> None:
        self.nodes: dict[str, Arguments] = {}
        self.sizes: dict[str, int] = {}
        self.jobs: dict[str, Arguments] = {}
        self.progress: dict[str, tuple[int, int]] = {}
        self.started: dict[str, Arguments] = {}
        self._scripts: dict[str, deque[str]] = {}
        self._qemu = qemu
        self._refused = refused

    # -- nodes -----------------------------------------------------------

    def _do_blockdev_add(self, given: Arguments) -> Arguments:
        if given["node-name"] in self.nodes:
            raise self._refused(f"Duplicate nodes with node-name='{given['node-name']}'")
        file = given["file"] if given["driver"] not in ("file", "host_device", "nbd") else given
        if given["driver"] == "nbd":
            pass  # the server was asked before
        elif isinstance(file, str):
            self._node(file)
        else:
            number = int(file["filename"].removeprefix(_FDSET))
            if number not in self._qemu.fdsets:
                raise self._refused(f"Could not open '{file['filename']}': No such file or directory")
        self.nodes[given["node-name"]] = given
        self.sizes[given["node-name"]] = SIZE
        return {}

    def _node(self, name: str) -> Arguments:
        if name not in self.nodes:
            raise self._refused(f"Failed to find node with node-name='{name}'")
        return self.nodes[name]

    def _do_blockdev_del(self, given: Arguments) -> Arguments:
        name = given["node-name"]
        self._node(name)
        used = [device.get("drive") for device in self._qemu.devices.values()]
        used += [node.get(role) for node in self.nodes.values() for role in ("file", "backing")]
        used += [export["node-name"] for export in self._qemu.exports.exports.values()]
        used += [name for job in self.jobs.values() if job["status"] != "concluded" for name in job["nodes"]]
        if name in used:
            raise self._refused(f"Node {name} is in use")
        del self.nodes[name]
        return {}

    def _do_block_resize(self, given: Arguments) -> Arguments:
        if given["node-name"] not in self.nodes:
            raise self._refused(f"Cannot find device='' nor node-name='{given['node-name']}'")
        self.sizes[given["node-name"]] = given["size"]
        return {}

    def _do_query_named_block_nodes(self, _: Arguments) -> list[Arguments]:
        return [
            {
                "node-name": name,
                "drv": node.get("driver", "raw"),
                "file": f"/images/{name}",
                "ro": node.get("read-only", False),
                "cache": {"writeback": True, "direct": False, "no-flush": False, **node.get("cache", {})},
                "image": {"virtual-size": self.sizes[name]},
                "dirty-bitmaps": list(self._qemu.bitmaps.bitmaps.get(name, {}).values()),
                **({"backing_file": f"/images/{node['backing']}"} if node.get("backing") else {}),
            }
            for name, node in self.nodes.items()
        ]

    def _do_query_block(self, _: Arguments) -> list[Arguments]:
        return [self._block(name, device) for name, device in self._qemu.devices.items() if "drive" in device]

    def _block(self, name: str, device: Arguments) -> Arguments:
        cds, removable = self._qemu.cds, device["driver"].endswith("-cd")
        entry = {"device": "", "qdev": name, "removable": removable, "locked": name in cds.locked}
        if removable:
            entry["tray_open"] = name in cds.open_trays
        if device["drive"]:
            entry["inserted"] = self._inserted(device["drive"])
        return entry

    def _inserted(self, node: str) -> Arguments:
        return {"node-name": node, "image": {"virtual-size": self.sizes[node]}}

    def _do_x_debug_query_block_graph(self, _: Arguments) -> Arguments:
        ids = {name: number for number, name in enumerate(self.nodes)}
        edges = [
            {"parent": ids[name], "child": ids[node[role]], "name": role}
            for name, node in self.nodes.items()
            for role in ("file", "backing")
            if isinstance(node.get(role), str)
        ]
        return {"nodes": [{"id": ids[name], "type": "block-driver", "name": name} for name in ids], "edges": edges}

    def _do_transaction(self, given: Arguments) -> Arguments:
        pairs = []
        for action in given["actions"]:
            if action["type"] != "blockdev-snapshot":
                self._qemu.bitmaps.apply(action)
                continue
            node, overlay = action["data"]["node"], action["data"]["overlay"]
            self._node(node)
            if self._node(overlay)["backing"] is not None:
                raise self._refused("The overlay already has a backing image")
            pairs.append((node, overlay))
        for node, overlay in pairs:
            self.nodes[overlay] = self.nodes[overlay] | {"backing": node}
            for device in self._qemu.devices.values():
                if device.get("drive") == node:
                    device["drive"] = overlay
        return {}

    # -- jobs ------------------------------------------------------------

    def _begin(self, id: str, type: str, nodes: Iterable[str]) -> Arguments:
        if id in self.jobs:
            raise self._refused(f"Job ID '{id}' already in use")
        for node in nodes:
            self._node(node)
        self.jobs[id] = {"id": id, "type": type, "status": "created", "nodes": tuple(nodes)}
        self._scripts[id] = deque(SCRIPTS[type])
        self.move(id, "created")
        return {}

    def play(self, id: str, script: "deque[str]") -> None:
        """Let a job go through these statuses, one for each look."""
        self._scripts[id] = script

    def move(self, id: str, status: str) -> None:
        """Let a job enter `status`, as QEMU does by itself."""
        job = self.jobs[id]
        job["status"] = status
        self._qemu.emit("JOB_STATUS_CHANGE", {"id": id, "status": status})
        if status == "concluded" and job["type"] != "create":
            cancelled = job.get("error") == os.strerror(ECANCELED)
            name = "BLOCK_JOB_CANCELLED" if cancelled else "BLOCK_JOB_COMPLETED"
            data = {"device": id, "type": job["type"], "len": SIZE, "offset": SIZE, "speed": 0}
            data |= {"error": job["error"]} if job.get("error") and not cancelled else {}
            self._qemu.emit(name, data)

    def _do_blockdev_create(self, given: Arguments) -> Arguments:
        return self._begin(given["job-id"], "create", [given["options"]["file"]])

    def _do_blockdev_mirror(self, given: Arguments) -> Arguments:
        self._begin(given["job-id"], "mirror", [given["device"], given["target"]])
        self.started[given["job-id"]] = given
        return {}

    def _do_blockdev_backup(self, given: Arguments) -> Arguments:
        return self._begin(given["job-id"], "backup", [given["device"], given["target"]])

    def _do_query_jobs(self, _: Arguments) -> list[Arguments]:
        for job_id, script in self._scripts.items():
            if script:
                self.move(job_id, script.popleft())
        return [self._shown(job) for job in self.jobs.values()]

    def _shown(self, job: Arguments) -> Arguments:
        current, total = self.progress.get(job["id"], (SIZE, SIZE))
        shown = {name: job[name] for name in ("id", "type", "status", "error") if name in job}
        return shown | {"current-progress": current, "total-progress": total}

    def _job(self, id: str) -> Arguments:
        if id not in self.jobs:
            raise self._refused("Job not found")
        return self.jobs[id]

    def _do_job_cancel(self, given: Arguments) -> Arguments:
        job = self._job(given["id"])
        if job["status"] == "concluded":
            raise self._refused(f"Job '{given['id']}' in state 'concluded' cannot accept command verb 'cancel'")
        job["error"] = os.strerror(ECANCELED)
        self._scripts[given["id"]] = deque(["concluded"])
        return {}

    def _do_job_dismiss(self, given: Arguments) -> Arguments:
        if self._job(given["id"])["status"] != "concluded":
            raise self._refused(f"Job '{given['id']}' cannot accept command verb 'dismiss'")
        del self.jobs[given["id"]]
        self._scripts.pop(given["id"], None)
        self._qemu.emit("JOB_STATUS_CHANGE", {"id": given["id"], "status": "null"})
        return {}
