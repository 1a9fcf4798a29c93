"""QEMU dials us: whose the socket's file is, who is let in, and that nothing waits longer than it may."""

import asyncio
import os
import select
import socket
import ssl
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from drover import AsyncMonitorListener, MonitorListener
from drover.errors import ArgumentError, ConnectError, ConnectionClosed, ConnectTimeout
from drover.testing.fake import FakeQemu
from faces import AsyncFace, Face


class Blocked:
    """An asyncio listener whose coroutines are run to their end where they are called."""

    def __init__(self, face: AsyncFace, listener: AsyncMonitorListener) -> None:
        self.face, self.listener = face, listener

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.listener, name)
        return (lambda *args: self.face.run(value(*args))) if asyncio.iscoroutinefunction(value) else value

    def execute(self, vm: Any, command: str) -> Any:
        return self.face.run(vm.execute(command))

    def end(self, vm: Any) -> None:
        self.face.run(vm.close())


class Direct:
    """A blocking listener with the same few names."""

    def __init__(self, listener: MonitorListener) -> None:
        self.listener = listener

    def __getattr__(self, name: str) -> Any:
        return getattr(self.listener, name)

    def execute(self, vm: Any, command: str) -> Any:
        return vm.execute(command)

    def end(self, vm: Any) -> None:
        vm.close()


@contextmanager
def listening(face: Face, address: Any, **options: Any) -> Iterator[Any]:
    """A listener of this face, listening."""
    options = {"timeout": 10, **options}
    if isinstance(face, AsyncFace):
        listener: Any = Blocked(face, AsyncMonitorListener(address, **options))
    else:
        listener = Direct(MonitorListener(address, **options))
    listener.listen()
    try:
        yield listener
    finally:
        listener.close()


class Dialler:
    """A FakeQemu that dials, by a thread that passes bytes on."""

    def __init__(self, fake: FakeQemu, family: int, place: Any, context: ssl.SSLContext | None = None) -> None:
        self.outside: socket.socket = socket.socket(family)
        self.outside.connect(place)
        self.context = context
        self.inside = socket.socket(socket.AF_UNIX)
        self.inside.connect(str(fake.path))
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        # one thread for both ways: two may not use one SSLSocket at once
        try:
            if self.context is not None:
                self.outside = self.context.wrap_socket(self.outside, server_hostname="localhost")
            while self.pass_on():
                pass
        except OSError:
            pass
        for sock in (self.inside, self.outside):
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def pass_on(self) -> bool:
        inside, outside = self.inside, self.outside
        waiting = isinstance(outside, ssl.SSLSocket) and outside.pending()
        ready = [outside] if waiting else select.select([inside, outside], [], [])[0]
        for source, sink in ((inside, outside), (outside, inside)):
            if source not in ready:
                continue
            source.settimeout(0)  # a session's ticket is readable, and no data
            try:
                data = source.recv(65536)
            except (ssl.SSLWantReadError, BlockingIOError):
                continue
            finally:
                source.settimeout(None)
            if not data:
                return False
            sink.sendall(data)
        return True

    def __enter__(self) -> "Dialler":
        return self

    def __exit__(self, *_: object) -> None:
        self.inside.shutdown(socket.SHUT_RDWR)
        self.thread.join(10)
        self.inside.close()
        self.outside.close()


def refused(family: int, place: Any) -> bool:
    """Whether a client is refused, or sent away without a word."""
    with socket.socket(family) as late:
        late.settimeout(5)
        try:
            late.connect(place)
            return late.recv(1) == b""
        except (ConnectionRefusedError, ConnectionResetError):
            return True


PLACES: dict[str, Callable[[Path], str]] = {
    "unix": lambda folder: str(folder / "a:b"),
    "abstract": lambda _: f"@drover-listener-{os.getpid()}",
    "v4": lambda _: "127.0.0.1:0",
    "v6": lambda _: "[::1]:0",
}


def dial(address: Any) -> tuple[int, Any]:
    """Family and address of a listener, as the socket module has them."""
    if hasattr(address, "path"):
        return socket.AF_UNIX, address.path
    if hasattr(address, "name"):
        return socket.AF_UNIX, b"\0" + address.name.encode()
    return (socket.AF_INET6 if ":" in address.host else socket.AF_INET), (address.host, address.port)


@pytest.mark.parametrize("place", PLACES)
def test_one_client_after_another(face: Face, place: str, tmp_path: Path) -> None:
    with FakeQemu() as fake, listening(face, PLACES[place](tmp_path)) as listener:
        first = str(listener.address)
        for _ in range(3):
            family, address = dial(listener.address)
            with Dialler(fake, family, address):
                with socket.socket(family) as early:
                    early.connect(address)  # came second, before anybody was accepted
                    vm = listener.accept()
                    early.settimeout(5)
                    try:
                        assert early.recv(1) == b""
                    except ConnectionResetError:
                        pass
                assert listener.execute(vm, "query-status")["running"]
                assert refused(family, address)
                with pytest.raises(ConnectError, match="one at a time"):
                    listener.accept(1)
                with pytest.raises(ConnectError, match="one at a time"):
                    listener.listen()
                assert listener.execute(vm, "query-status")["running"]
                listener.end(vm)
                assert refused(family, address)
            listener.listen()
        assert str(listener.address) == first
    assert not list(tmp_path.iterdir())


def test_nobody_dials(face: Face, tmp_path: Path) -> None:
    with listening(face, tmp_path / "s") as listener:
        with pytest.raises(ConnectTimeout, match=r"nobody dialled within 0\.2 s"):
            listener.accept(0.2)


def test_who_only_looks_or_speaks_another_language_does_not_end_the_wait(face: Face, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with FakeQemu() as fake, listening(face, path) as listener:
        with socket.socket(socket.AF_UNIX) as looks, socket.socket(socket.AF_UNIX) as talks:
            looks.connect(path)
            looks.close()
            talks.connect(path)
            talks.sendall(b"GET / HTTP/1.0\r\n\r\n")
            with Dialler(fake, socket.AF_UNIX, path):
                vm = listener.accept()
                assert listener.execute(vm, "query-status")["running"]
                listener.end(vm)
        listener.listen()
        with socket.socket(socket.AF_UNIX) as looks:
            looks.connect(path)
        with pytest.raises(ConnectTimeout, match=r"nobody dialled within 0\.3 s but: .*closed"):
            listener.accept(0.3)
        with socket.socket(socket.AF_UNIX) as silent:
            silent.connect(path)
            with pytest.raises(ConnectTimeout, match=r"did not greet within 0\.3 s"):
                listener.accept(0.3)


def test_tls(face: Face, tmp_path: Path) -> None:
    both = tmp_path / "both.pem"
    names = ["-addext", "subjectAltName=DNS:localhost"]
    line = ["openssl", "req", "-x509", "-days", "2", "-subj", "/CN=localhost", *names, "-newkey", "ec", "-nodes"]
    line += ["-pkeyopt", "ec_paramgen_curve:prime256v1", "-keyout", str(both)]
    text = subprocess.run(line, check=True, capture_output=True).stdout
    both.write_bytes(both.read_bytes() + text)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(both)
    with FakeQemu() as fake, listening(face, "127.0.0.1:0", tls=server) as listener:
        place = (listener.address.host, listener.address.port)
        with socket.create_connection(place) as wrong:
            wrong.sendall(b"hello\r\n")
            with Dialler(fake, socket.AF_INET, place, ssl.create_default_context(cafile=both)):
                vm = listener.accept()
                assert listener.execute(vm, "query-status")["running"]
                listener.end(vm)


# -- the file ----------------------------------------------------------------


def test_the_file_is_ours_alone_from_the_first_moment(
    face: Face, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes = []

    class Watched(socket.socket):
        def bind(self, address: Any) -> None:
            super().bind(address)
            modes.append(stat.S_IMODE(os.stat(address).st_mode))

    previous = os.umask(0)
    try:
        monkeypatch.setattr("drover.monitor.listener.socket.socket", Watched)
        with listening(face, tmp_path / "s"):
            assert modes == [0o600]
    finally:
        os.umask(previous)
    assert not list(tmp_path.iterdir())


def test_a_dead_socket_is_replaced_and_a_live_one_is_not(face: Face, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as theirs:
        theirs.bind(path)
        before = os.lstat(path).st_ino
        for listens in (False, True):  # bound is live, too: it is about to listen
            if listens:
                theirs.listen()
            with pytest.raises(ConnectError, match="another process has that socket"):
                with listening(face, path):
                    pass
            assert os.lstat(path).st_ino == before
    with listening(face, path):
        assert os.listdir(tmp_path) == ["s"]
    assert os.listdir(tmp_path) == []


def test_two_of_ours(face: Face, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with FakeQemu() as fake, listening(face, path) as first:
        with Dialler(fake, socket.AF_UNIX, str(path)):
            vm = first.accept()
            with pytest.raises(ConnectError, match="another process"):  # though it refuses whoever comes
                with listening(face, path):
                    pass
            first.close()
            with listening(face, path):  # a connection is no listener
                assert first.execute(vm, "query-status")["running"]
            first.end(vm)


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_is_no_socket_stays(face: Face, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "s"
    if kind == "file":
        path.write_text("precious")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConnectError, match="no socket"):
        with listening(face, path):
            pass
    assert os.path.lexists(path)


def test_a_file_that_is_not_ours_any_more_stays(face: Face, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as theirs:
        with listening(face, path):
            path.unlink()
            theirs.bind(str(path))
        assert path.is_socket()
    path.unlink()
    with listening(face, path):
        path.unlink()


def test_one_that_comes_while_we_look_is_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as theirs:
        with MonitorListener(path):
            real = os.rename

            def rename(source: str, target: str) -> None:
                os.unlink(source)
                theirs.bind(source)
                real(source, target)

            monkeypatch.setattr(os, "rename", rename)
        assert path.is_socket()
        theirs.listen()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
    assert os.listdir(tmp_path) == ["s"]


# -- its life ----------------------------------------------------------------


def test_where_we_cannot_listen(face: Face, tmp_path: Path) -> None:
    for address in (3, socket.socket):
        with pytest.raises(ArgumentError):
            MonitorListener(address)  # type: ignore[arg-type]
    for address in (str(tmp_path / "none" / "s"), "/" + "x" * 200, "192.0.2.1:1", "vsock:4000000:1"):
        with pytest.raises(ConnectError, match="cannot listen there"):
            with listening(face, address):
                pass


def test_unlistened(face: Face, tmp_path: Path) -> None:
    with listening(face, tmp_path / "s") as listener:
        listener.listen()
        listener.close()
        listener.close()
        with pytest.raises(ConnectionClosed):
            listener.accept()
        listener.listen()
        assert (tmp_path / "s").is_socket()


@pytest.mark.parametrize("place", PLACES)
def test_close_ends_another_threads_accept(place: str, tmp_path: Path) -> None:
    with MonitorListener(PLACES[place](tmp_path), timeout=30) as listener:
        timer = threading.Timer(0.1, listener.close)
        timer.start()
        started = time.monotonic()
        with pytest.raises(ConnectionClosed):
            listener.accept()
        assert time.monotonic() - started < 10
        timer.join()
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", PLACES)
def test_close_and_cancel_end_another_tasks_accept(face: Face, place: str, tmp_path: Path) -> None:
    if not isinstance(face, AsyncFace):
        return

    async def main() -> None:
        async with AsyncMonitorListener(PLACES[place](tmp_path), timeout=30) as listener:
            task = asyncio.create_task(listener.accept())
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            task = asyncio.create_task(listener.accept())
            await asyncio.sleep(0.05)
            await listener.close()
            with pytest.raises(ConnectionClosed):
                await asyncio.wait_for(task, 10)

    face.run(main())
    assert not list(tmp_path.iterdir())


def test_contexts(tmp_path: Path) -> None:
    async def main() -> None:
        async with AsyncMonitorListener(tmp_path / "s") as listener:
            with FakeQemu() as fake, Dialler(fake, socket.AF_UNIX, str(listener.address)):
                async with await listener.accept() as vm:
                    assert (await vm.query_status()).running

    asyncio.run(main())
    with MonitorListener(tmp_path / "s", log_size=7) as listener:
        with FakeQemu() as fake, Dialler(fake, socket.AF_UNIX, str(listener.address)):
            with listener.accept() as vm:
                assert vm.query_status().running
