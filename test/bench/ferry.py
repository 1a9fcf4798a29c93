"""Two libvirtds on one host, and a machine that goes from one to the other: runs in the root directory with libvirt.

The second one has folders, a name and a number of the host of its own, else libvirt would refuse. It reads JSON lines
and answers each: ``{"run": XML}`` starts the machine, ``{"move": NAME}`` has it go to where it is not, and tells for
how many seconds that was, and for how many of them the guest stood still, by the stamps of QEMU's own events.
"""

import json
import os
import subprocess
import sys
import threading
import time
from typing import Any

import libvirt  # type: ignore[import-not-found,unused-ignore]
import libvirt_qemu  # type: ignore[import-not-found,unused-ignore]

OTHER = "/shared/other"  # where the second one's socket is
FOLDERS = "/run /var/lib/libvirt /var/log/libvirt /var/cache/libvirt /etc/libvirt/qemu"
CONF = f"""
host_uuid = "3b0e0d4c-6a8e-4f0a-9a52-6b6f0c1d7e11"
unix_sock_dir = "{OTHER}"
auth_unix_rw = "none"
"""
SCRIPT = f"""
hostname other
for folder in {FOLDERS}; do mkdir -p $folder; mount -t tmpfs -o mode=755 none $folder; done
exec libvirtd --config {OTHER}.conf
"""
URIS = ("qemu:///system", f"qemu+unix:///system?socket={OTHER}/libvirt-sock")
PATIENCE = 60.0  # seconds


class Ferry:
    """Both, with a connection to each."""

    def __init__(self) -> None:
        libvirt.registerErrorHandler(lambda *_: None, None)
        libvirt.virEventRegisterDefaultImpl()
        threading.Thread(target=self._hear, daemon=True).start()
        os.mkdir(OTHER)
        with open(f"{OTHER}.conf", "w", encoding="ascii") as file:
            file.write(CONF)
        log = open(f"{OTHER}.log", "wb")  # noqa: SIM115 - the daemon's
        subprocess.Popen(["libvirtd"], stdout=log, stderr=log)
        apart = ["unshare", "--mount", "--propagation", "unchanged", "--uts"]
        subprocess.Popen([*apart, "sh", "-ec", SCRIPT], stdout=log, stderr=log)
        self._both: list[Any] = [self._open(uri) for uri in URIS]
        self._at: dict[str, float] = {}
        self._changed = threading.Condition()
        for one in self._both:
            for event in ("STOP", "RESUME"):
                libvirt_qemu.qemuMonitorEventRegister(one, None, event, self._take, None, 0)

    def run(self, text: str) -> dict[str, Any]:
        """Start one."""
        self._both[0].createXML(text)
        return {}

    def move(self, name: str) -> dict[str, Any]:
        """Have it go to the other one, which is the first from then on."""
        here, there = self._both
        domain = here.lookupByName(name)
        self._at.clear()
        begun = time.perf_counter()
        domain.migrate3(there, {libvirt.VIR_MIGRATE_PARAM_URI: "tcp://127.0.0.1"}, libvirt.VIR_MIGRATE_LIVE)
        took = time.perf_counter() - begun
        self._both.reverse()
        with self._changed:
            if not self._changed.wait_for(lambda: len(self._at) == 2, PATIENCE):
                raise OSError("no word of when the guest stood still")
        return {"seconds": took, "stood": self._at["RESUME"] - self._at["STOP"]}

    @staticmethod
    def _open(uri: str) -> Any:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return libvirt.open(uri)
            except libvirt.libvirtError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    @staticmethod
    def _hear() -> None:
        while True:
            libvirt.virEventRunDefaultImpl()

    def _take(self, _: Any, __: Any, event: str, seconds: int, micros: int, *___: Any) -> None:
        with self._changed:
            self._at[event] = seconds + micros / 1e6
            self._changed.notify_all()


def main() -> None:
    ferry = Ferry()
    print("{}", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            answer = ferry.run(asked["run"]) if "run" in asked else ferry.move(asked["move"])
        except (libvirt.libvirtError, OSError) as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
