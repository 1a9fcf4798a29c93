"""What a model knows of mirrors between QEMUs: how their jobs are steered, connections that can be cut, and bitmaps."""

import os
from collections import deque
from errno import ECANCELED, EIO
from typing import Any

from drover.testing.block_model import SIZE, BlockModel, Refusal

Arguments = dict[str, Any]


class MirrorModel:
    """The jobs of a :class:`BlockModel`, as those commands see them that know block jobs alone.

    :ivar speeds: of jobs that were given one
    :ivar blocking: ids of jobs whose copy mode is ``write-blocking``
    """

    def __init__(self, block: BlockModel, refused: Refusal, version: str) -> None:
        self.speeds: dict[str, int] = {}
        self.blocking: set[str] = set()
        self._block = block
        self._refused = refused
        self._tells = version != "7.2"

    def _do_query_block_jobs(self, _: Arguments) -> list[Arguments]:
        return [self._told(name, job) for name, job in self._block.jobs.items() if job["type"] != "create"]

    def _told(self, id: str, job: Arguments) -> Arguments:
        ready = job["status"] == "ready"
        told = {
            "device": id, "type": job["type"], "status": job["status"], "len": SIZE, "offset": SIZE, "busy": False,
            "paused": False, "ready": ready, "io-status": "ok", "auto-finalize": True, "auto-dismiss": False,
            "speed": self.speeds.get(id, 0),
        }  # fmt: skip
        return told | ({"actively-synced": ready and id in self.blocking} if self._tells else {})

    def _do_block_job_set_speed(self, given: Arguments) -> Arguments:
        self._running(given["device"])
        self.speeds[given["device"]] = given["speed"]
        return {}

    def _do_block_job_change(self, given: Arguments) -> Arguments:
        self._running(given["id"])
        self.blocking.add(given["id"])
        return {}

    def _do_block_job_cancel(self, given: Arguments) -> Arguments:
        job = self._running(given["device"])
        if job["status"] != "ready" or given.get("force"):
            job["error"] = os.strerror(ECANCELED)
        self._block.play(given["device"], deque(["concluded"]))
        return {}

    def _running(self, id: str) -> Arguments:
        job = self._block.jobs.get(id)
        if job is None or job["status"] == "concluded":
            raise self._refused(f"Block job '{id}' not found", "DeviceNotActive")
        return job

    # -- connections -----------------------------------------------------

    def _do_query_yank(self, _: Arguments) -> list[Arguments]:
        return [{"type": "block-node", "node-name": node} for node in self._clients()]

    def _clients(self) -> list[str]:
        return [name for name, node in self._block.nodes.items() if node.get("driver") == "nbd"]

    def _do_yank(self, given: Arguments) -> Arguments:
        for instance in given["instances"]:
            if instance["node-name"] not in self._clients():
                raise self._refused(f"Instance of node '{instance['node-name']}' not found", "DeviceNotFound")
            for name, job in self._block.jobs.items():
                if instance["node-name"] in job["nodes"] and job["status"] != "concluded":
                    job["error"] = os.strerror(EIO)
                    self._block.play(name, deque(["concluded"]))
        return {}


class BitmapModel:
    """The bitmaps of nodes.

    :ivar bitmaps: node, then name, to what ``query-named-block-nodes`` says
    :ivar forgotten: node and name of those that are persistent, and are not stored
    """

    def __init__(self, refused: Refusal) -> None:
        self.bitmaps: dict[str, dict[str, Arguments]] = {}
        self.forgotten: set[tuple[str, str]] = set()
        self._refused = refused

    def apply(self, action: Arguments) -> None:
        """One action of a transaction, that is known to go well."""
        data = action["data"]
        bitmaps = self.bitmaps.setdefault(data["node"], {})
        match action["type"]:
            case "block-dirty-bitmap-add":
                if data["name"] in bitmaps:
                    raise self._refused(f"Bitmap already exists: {data['name']}")
                bitmaps[data["name"]] = {
                    "name": data["name"], "count": 0, "granularity": data["granularity"], "busy": False,
                    "recording": not data.get("disabled", False), "persistent": data.get("persistent", False),
                }  # fmt: skip
            case "block-dirty-bitmap-merge":
                bitmaps[data["target"]]["count"] += sum(bitmaps[name]["count"] for name in data["bitmaps"])
            case "block-dirty-bitmap-remove":
                del bitmaps[data["name"]]
                self.forgotten.discard((data["node"], data["name"]))
            case other:
                raise AssertionError(f"the model does not know the action '{other}'")
