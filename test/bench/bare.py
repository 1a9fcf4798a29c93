"""A QEMU started and spoken to by hand: the least that a start and a plug can take."""

import json
import os
import re
import socket
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from frame import BenchError

START_TIMEOUT = 20.0  # seconds


class BareMachine:
    """One QEMU, by the words of an instance's: its listening sockets by their paths, its descriptors as they are.

    :param argv: of an instance that ran
    :param files: what follows these options, in place of descriptors
    :param more: words after all the others
    """

    def __init__(self, argv: Sequence[str], files: Mapping[str, str] = MappingProxyType({}), more: Sequence[str] = ()):
        self._folder = tempfile.TemporaryDirectory(prefix="drover-bench-")
        self._log = os.open(f"{self._folder.name}/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        sockets = [re.sub(r"(socket,id=([^,]+)),fd=\d+", rf"\1,path={self._folder.name}/\2", word) for word in argv]
        logged = [re.sub(r"^fd=\d+(,set=)", rf"fd={self._log}\1", word) for word in sockets]
        before = ["", *logged]
        self._argv = [files.get(option, word) for option, word in zip(before, logged, strict=False)] + list(more)
        self._process: subprocess.Popen[bytes] | None = None
        self._monitor = socket.socket(socket.AF_UNIX)
        self._events: deque[dict[str, Any]] = deque()

    def socket(self, name: str) -> Path:
        """Where one of its sockets listens: ``control``, ``people``, ``serial``."""
        return Path(self._folder.name) / name

    def start(self) -> None:
        """Start it, and be greeted."""
        self._process = subprocess.Popen(self._argv, pass_fds=[self._log], stderr=self._log)
        deadline = time.monotonic() + START_TIMEOUT
        path = str(self.socket("control"))
        while True:
            try:
                self._monitor.connect(path)
                break
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise BenchError(f"{self._argv[0]} did not come up") from None
                time.sleep(0.0005)
        self._stream = self._monitor.makefile("rb")
        self._stream.readline()
        self("qmp_capabilities")

    def __call__(self, command: str, passed: int | None = None, **arguments: Any) -> Any:
        """Run a command, with a descriptor if it takes one."""
        said = {name.replace("_", "-"): value for name, value in arguments.items()}
        message = json.dumps({"execute": command, "arguments": said}).encode() + b"\n"
        if passed is None:
            self._monitor.sendall(message)
        else:
            socket.send_fds(self._monitor, [message], [passed])
        while True:
            answer = json.loads(self._stream.readline())
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                raise BenchError(f"{command}: {answer['error']['desc']}")
            self._events.append(answer)

    def wait_event(self, name: str, **data: Any) -> None:
        """Wait for an event, and forget those before it."""
        while True:
            while self._events:
                event = self._events.popleft()
                if event["event"] == name and data.items() <= event["data"].items():
                    return
            self._events.append(json.loads(self._stream.readline()))

    def plug_disk(self, image: str, bus: str) -> None:
        """Plug a disk in."""
        fd = os.open(image, os.O_RDWR)
        try:
            fdset = self("add-fd", fd)["fdset-id"]
        finally:
            os.close(fd)
        self("blockdev-add", driver="file", node_name="x-file", filename=f"/dev/fdset/{fdset}", discard="unmap")
        self("remove-fd", fdset_id=fdset)
        self("blockdev-add", driver="raw", node_name="x", file="x-file", discard="unmap")
        self("device_add", driver="virtio-blk-pci", id="x", drive="x", bus=bus)

    def drop_disk(self) -> None:
        """Forget what it stood on."""
        self("blockdev-del", node_name="x")
        self("blockdev-del", node_name="x-file")

    def plug_nic(self, tap: int, mac: str, bus: str) -> None:
        """Plug a card in."""
        self("getfd", tap, fdname="x")
        self("netdev_add", type="tap", id="x", fd="x")
        self("device_add", driver="virtio-net-pci", id="x", netdev="x", mac=mac, bus=bus)

    def wait_end(self) -> None:
        """Wait until the process has ended."""
        assert self._process is not None
        self._process.wait()

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._monitor.close()
        os.close(self._log)
        self._folder.cleanup()
