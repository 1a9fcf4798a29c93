"""A QEMU started and spoken to by hand: the least that a start and a plug can take."""

import json
import os
import re
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from frame import BenchError

START_TIMEOUT = 20.0  # seconds


class BareMachine:
    """One QEMU, by the words of an instance's: its listening sockets by their paths, its descriptors as they are.

    :param argv: of an instance that ran
    """

    def __init__(self, argv: Sequence[str]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="drover-bench-")
        self._path = f"{self._folder.name}/control"
        self._log = os.open(f"{self._folder.name}/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        sockets = [re.sub(r"(socket,id=([^,]+)),fd=\d+", rf"\1,path={self._folder.name}/\2", word) for word in argv]
        self._argv = [re.sub(r"^fd=\d+(,set=)", rf"fd={self._log}\1", word) for word in sockets]
        self._process: subprocess.Popen[bytes] | None = None
        self._socket = socket.socket(socket.AF_UNIX)

    def start(self) -> None:
        """Start it, and be greeted."""
        self._process = subprocess.Popen(self._argv, pass_fds=[self._log], stderr=self._log)
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            try:
                self._socket.connect(self._path)
                break
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise BenchError(f"{self._argv[0]} did not come up") from None
                time.sleep(0.0005)
        self._stream = self._socket.makefile("rb")
        self._stream.readline()
        self("qmp_capabilities")

    def __call__(self, command: str, fd: int | None = None, **arguments: Any) -> Any:
        """Run a command."""
        said = {name.replace("_", "-"): value for name, value in arguments.items()}
        message = json.dumps({"execute": command, "arguments": said}).encode() + b"\n"
        if fd is None:
            self._socket.sendall(message)
        else:
            socket.send_fds(self._socket, [message], [fd])
        while True:
            answer = json.loads(self._stream.readline())
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                raise BenchError(f"{command}: {answer['error']['desc']}")

    def plug(self, image: str, bus: str) -> None:
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

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._socket.close()
        os.close(self._log)
        self._folder.cleanup()
