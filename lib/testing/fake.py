"""A QMP server on a real socket that misbehaves on demand, over the model of a QEMU.

For what a real QEMU will not do when asked: bytes cut anywhere, replies that come
late or never, ids that are not echoed, floods of events, death at any step.
"""

import array
import json
import os
import queue
import select
import socket
import tempfile
import threading
from collections.abc import Callable, Iterable
from enum import Enum
from pathlib import Path
from typing import Any, Self

from drover.testing.model import VERSIONS, QemuModel, Refused

Arguments = dict[str, Any]
STOP_TIMEOUT = 10.0


class Do(Enum):
    """What the fake does with a command, instead of letting the model answer it."""

    HOLD = "answer nothing until release()"
    REFUSE = "answer with an error"
    IGNORE = "never answer, and do nothing"
    HANG_UP = "close the connection"


Script = Callable[[str, Arguments], Do | None]
Cut = Callable[[bytes], Iterable[bytes]]


class FakeQemu:
    """A QMP server in a thread of this process; a context manager.

    :param model: answers what is not scripted
    :param script: asked for each command what to do with it; None lets the model answer
    :param cut: cuts what is sent into pieces, each sent by itself
    :param echo_ids: put the command's id into its reply, as QEMU does
    :param capabilities: what the greeting offers
    :param pretty: answer as ``-qmp-pretty`` does, over many lines
    :param before: bytes that are sent before the greeting
    :param silent: never greet
    :ivar commands: names of the commands that came, in order
    :ivar fds: how many descriptors came with each command that had any
    """

    def __init__(
        self,
        model: QemuModel | None = None,
        *,
        script: Script | None = None,
        cut: Cut | None = None,
        echo_ids: bool = True,
        capabilities: Iterable[str] = ("oob",),
        pretty: bool = False,
        before: bytes = b"",
        silent: bool = False,
    ) -> None:
        self.model = QemuModel() if model is None else model
        self.script = script
        self.cut = cut
        self.echo_ids = echo_ids
        self.capabilities = list(capabilities)
        self.pretty = pretty
        self.before = before
        self.silent = silent
        self.commands: list[str] = []
        self.fds: list[tuple[str, int]] = []
        self.failure: BaseException | None = None
        self._directory = tempfile.TemporaryDirectory(prefix="fake-qemu-")
        self.path = Path(self._directory.name) / "qmp"
        self._held: list[tuple[Arguments, bool]] = []
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._wake_read, self._wake_write = os.pipe()
        self._listener = socket.socket(socket.AF_UNIX)
        self._client: socket.socket | None = None
        self._buffer = ""
        self._rights: list[int] = []
        self._thread = threading.Thread(target=self._serve, name="fake-qemu", daemon=True)

    # -- for the test's thread -------------------------------------------

    def __enter__(self) -> Self:
        self._listener.bind(str(self.path))
        self._listener.listen()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._do(None)
        self._thread.join(STOP_TIMEOUT)
        self._listener.close()
        os.close(self._wake_read)
        os.close(self._wake_write)
        self._directory.cleanup()
        if self.failure is not None:
            raise self.failure

    def event(self, name: str, data: Arguments | None = None) -> None:
        """Send an event."""
        self._do(lambda: self._emit(name, data or {}))

    def raw(self, data: bytes) -> None:
        """Send bytes as they are."""
        self._do(lambda: self._write(data))

    def release(self) -> None:
        """Let the model answer the commands that were held, in order."""
        self._do(self._release)

    def hang_up(self) -> None:
        """Close the connection; at the return it is closed."""
        done = threading.Event()

        def drop() -> None:
            self._drop()
            done.set()

        self._do(drop)
        done.wait(STOP_TIMEOUT)

    def _do(self, task: Callable[[], None] | None) -> None:
        self._tasks.put(task)
        os.write(self._wake_write, b"x")

    # -- in the fake's own thread ----------------------------------------

    def _serve(self) -> None:
        self.model.emit = self._emit
        try:
            while self._turn():
                pass
        except BaseException as error:
            self.failure = error
        finally:
            self._drop()

    def _turn(self) -> bool:
        poll = select.poll()
        poll.register(self._wake_read, select.POLLIN)
        poll.register(self._listener if self._client is None else self._client, select.POLLIN)
        for fd, _ in poll.poll():
            if fd == self._wake_read:
                os.read(fd, 1)
                task = self._tasks.get()
                if task is None:
                    return False
                task()
            elif self._client is None:
                self._greet()
            elif fd == self._client.fileno():
                self._read()
        return True

    def _greet(self) -> None:
        self._client, _ = self._listener.accept()
        self._buffer = ""
        if self.before:
            self._write(self.before)
        if not self.silent:
            major, minor, micro = VERSIONS[self.model.version]
            qemu = {"major": major, "minor": minor, "micro": micro}
            self._send({"QMP": {"version": {"qemu": qemu, "package": "fake"}, "capabilities": self.capabilities}})

    def _read(self) -> None:
        assert self._client is not None
        try:
            data, ancillary, _, _ = self._client.recvmsg(65536, socket.CMSG_SPACE(64))
        except ConnectionResetError:
            data, ancillary = b"", []
        for _, _, rights in ancillary:
            fds = array.array("i")
            fds.frombytes(rights[: len(rights) - len(rights) % fds.itemsize])
            self._rights += fds
        if not data:
            self._drop()
            return
        self._buffer += data.decode()
        decoder = json.JSONDecoder()
        while self._buffer.strip() and self._client is not None:
            self._buffer = self._buffer.lstrip()
            try:
                message, end = decoder.raw_decode(self._buffer)
            except json.JSONDecodeError:
                return
            self._buffer = self._buffer[end:]
            self._on_command(message)

    def _on_command(self, message: Arguments) -> None:
        command = message.get("execute") or message["exec-oob"]
        fds: list[int] = []
        if command in ("getfd", "add-fd"):  # as in QEMU, who asks for a descriptor gets the one that came last
            fds, self._rights = self._rights, []
        for fd in fds:
            os.close(fd)
        if fds:
            self.fds.append((command, len(fds)))
        self.commands.append(command)
        if command == "qmp_capabilities":
            self._reply(message, {"return": {}})
            return
        action = self.script(command, message.get("arguments", {})) if self.script else None
        if action is Do.HANG_UP:
            self._drop()
        elif action is Do.REFUSE:
            self._reply(message, {"error": {"class": "GenericError", "desc": "scripted refusal"}})
        elif action is Do.HOLD or (action is None and self._held and "execute" in message):
            self._held.append((message, bool(fds)))  # in-band commands behind a held one wait, as in QEMU
        elif action is None:
            self._answer(message, bool(fds))

    def _release(self) -> None:
        held, self._held = self._held, []
        for message, has_fd in held:
            self._answer(message, has_fd)

    def _answer(self, message: Arguments, has_fd: bool) -> None:
        command = message.get("execute") or message["exec-oob"]
        try:
            self._reply(message, {"return": self.model.execute(command, message.get("arguments"), has_fd)})
        except Refused as refusal:
            self._reply(message, {"error": {"class": refusal.error_class, "desc": refusal.desc}})
        if command == "quit":
            self._drop()

    def _reply(self, message: Arguments, reply: Arguments) -> None:
        self._send(reply | ({"id": message["id"]} if self.echo_ids and "id" in message else {}))

    def _emit(self, name: str, data: Arguments) -> None:
        body = {"event": name, "timestamp": {"seconds": 1, "microseconds": 2}}
        self._send(body | ({"data": data} if data else {}))

    def _send(self, message: Arguments) -> None:
        text = json.dumps(message, indent=4 if self.pretty else None)
        self._write(text.encode() + b"\r\n")

    def _write(self, data: bytes) -> None:
        for piece in self.cut(data) if self.cut else (data,):
            try:
                if self._client is not None:
                    self._client.sendall(piece)
            except (BrokenPipeError, ConnectionResetError):
                self._drop()

    def _drop(self) -> None:
        for fd in self._rights:
            os.close(fd)
        self._rights = []
        self._held = []
        if self._client is not None:
            self._client.close()
            self._client = None
