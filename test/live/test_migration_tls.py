"""A migration by TLS of QEMU's own: that it is, who is refused, and what hangs without a word of the other side."""

import os
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Self

import pytest

from drover import QmpConnection
from drover.errors import CommandError, MigrationError, MigrationFailed, MonitorTimeout
from drover.kvm.keys import Keys, place
from drover.kvm.process import Process, current_boot
from drover.kvm.sever import sever
from drover.migration.credentials import issue
from drover.ops.migration_tls import AUTHORIZED, CREDENTIALS
from drover.testing.machine import Machine
from machines import qemu_of
from waiting import wait_for

pytestmark = [pytest.mark.live, pytest.mark.timeout(120)]

UUID = "8a5e7d1c-0b6e-4d44-9a64-1d1fd0bd3b10"
HOUR = 3600.0
PAIRS = [("7.2", "7.2"), ("7.2", "10.0"), ("10.0", "7.2"), ("10.0", "10.0")]
IN_MEMORY = b"SeaBIOS"  # of each machine; what goes over in the clear has it


class Sides:
    """Two QEMUs, the second of which waits; and their folders."""

    def __init__(self, one: QmpConnection, two: QmpConnection, folder: Path, pid: int) -> None:
        self.one, self.two, self.folder, self.pid = one, two, folder, pid

    def place(self, side: str, keys: Keys) -> Path:
        (self.folder / side).mkdir(exist_ok=True)
        return place(self.folder / side, keys, None)

    def listen(self) -> int:
        (where,) = self.two.migrate_incoming("tcp:127.0.0.1:0").socket_address
        return int(where["port"])

    def send(self, port: int) -> None:
        self.one.migrate(f"tcp:127.0.0.1:{port}")
        self.one.wait_migration(timeout=60)

    def arm(self, *, multifd: bool = False) -> None:
        halves = issue(UUID, 7, HOUR)
        self.two.arm_tls_server(self.place("two", halves.target), halves.target.peer, multifd=multifd)
        self.one.arm_tls_client(self.place("one", halves.source), halves.source.peer, multifd=multifd)


def attached(pid: int, folder: Path) -> Process:
    start_time = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    return Process.attach(pid, start_time, current_boot(), folder / "status")


def hangs(vm: QmpConnection) -> bool:
    """Whether it answers no more."""
    try:
        vm.execute("query-status", timeout=1)
    except MonitorTimeout:
        return True
    return False


@contextmanager
def sides(versions: tuple[str, str], folder: Path) -> Iterator[Sides]:
    with ExitStack() as stack:
        here, there = (
            stack.enter_context(Machine(qemu=qemu_of(version), machine="pc-q35-7.2", memory=128, name=name,
                                        incoming=name == "two"))
            for version, name in zip(versions, ("one", "two"), strict=True)
        )  # fmt: skip
        one, two = (stack.enter_context(QmpConnection(each.qmp)) for each in (here, there))
        for vm in (one, two):
            vm.set_migration_capabilities({"events": True, "return-path": True})
        yield Sides(one, two, folder, here.pid)


class Relay:
    """Passes on what comes, and keeps the source's half of it; of so many connections at most, and is silent then."""

    def __init__(self, port: int, most: int = 100) -> None:
        self.sent = bytearray()
        self._most = most
        self._to = port
        self._open = ExitStack()
        self._listener = self._open.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.port = self._listener.getsockname()[1]
        self._threads: list[threading.Thread] = []
        self._begin(self._run)

    def _begin(self, run: Callable[..., None], *args: object) -> None:
        self._threads.append(threading.Thread(target=run, args=args))
        self._threads[-1].start()

    def _run(self) -> None:
        for _ in range(self._most):
            try:
                client = self._open.enter_context(self._listener.accept()[0])
            except OSError:
                return
            server = self._open.enter_context(socket.create_connection(("127.0.0.1", self._to)))
            self._begin(self._pass_on, client, server, self.sent)
            self._begin(self._pass_on, server, client, bytearray())

    @staticmethod
    def _pass_on(come: socket.socket, go: socket.socket, kept: bytearray) -> None:
        with suppress(OSError):
            while data := come.recv(1 << 16):
                kept += data
                go.sendall(data)
            go.shutdown(socket.SHUT_WR)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Both sides have ended, or are to."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        for thread in self._threads[1:]:
            thread.join(10)
        self._open.close()


@pytest.mark.parametrize("multifd", [False, True], ids=["one", "multifd"])
@pytest.mark.parametrize("versions", PAIRS, ids="-".join)
def test_nothing_of_it_is_in_the_clear(versions: tuple[str, str], multifd: bool, tmp_path: Path) -> None:
    with ExitStack() as stack, sides(versions, tmp_path) as it:
        if multifd:
            for vm in (it.one, it.two):
                vm.set_migration_capabilities({"multifd": True})
        it.arm(multifd=multifd)
        it.arm(multifd=multifd)  # once more, with new keys
        relay = stack.enter_context(Relay(it.listen()))
        it.one.check_tls_target(f"127.0.0.1:{relay.port}")
        relay.sent.clear()
        it.one.migrate(f"tcp:127.0.0.1:{relay.port}")
        it.one.wait_migration(timeout=60)
        it.two.wait_incoming(timeout=60)
        assert relay.sent[:3] in (b"\x16\x03\x01", b"\x16\x03\x03")
        assert len(relay.sent) > 100_000
        assert IN_MEMORY not in relay.sent
        for vm in (it.one, it.two):
            vm.disarm_tls()
            vm.disarm_tls()
            left = {each.name for each in vm.qom_list("/objects")}
            assert not {name for name in left if "migration" in name}
            assert not [name for name, value in vm.get_migration_parameters().items() if "tls" in name and value]


def test_without_it_all_is(tmp_path: Path) -> None:
    """That the test above would see it."""
    with ExitStack() as stack, sides(("10.0", "10.0"), tmp_path) as it:
        relay = stack.enter_context(Relay(it.listen()))
        it.one.migrate(f"tcp:127.0.0.1:{relay.port}")
        it.one.wait_migration(timeout=60)
        assert IN_MEMORY in relay.sent


def knock(port: int, keys: Keys | None, folder: Path) -> None:
    """Connect as a source would that shows these."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if keys is not None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name, text in keys.files.items():
            (folder / name).write_text(text.secret)
        context.load_cert_chain(folder / "client-cert.pem", folder / "client-key.pem")
    with socket.create_connection(("127.0.0.1", port), timeout=10) as raw:
        # the server refuses at the end of the handshake, when ours has ended: so it says so with the first answer
        with suppress(ssl.SSLError, ConnectionError), context.wrap_socket(raw) as talk:
            talk.sendall(bytes(64))
            assert talk.recv(1) == b"", "it has let us in"


@pytest.mark.parametrize("version", ["7.2", "10.0"])
def test_who_is_not_the_source_is_refused(version: str, tmp_path: Path) -> None:
    """And it waits on for the one who is."""
    with sides((version, version), tmp_path) as it:
        it.arm()
        port = it.listen()
        with socket.create_connection(("127.0.0.1", port)) as plain:  # with no TLS at all
            plain.sendall(b"QEVM\0\0\0\3" + bytes(64))
        other = issue(UUID, 7, HOUR).source
        for keys in (None, other):
            knock(port, keys, tmp_path / "knock")
        it.one.migrate(f"tcp:127.0.0.1:{port}")
        assert it.one.wait_migration(timeout=60).status == "completed"


@pytest.mark.parametrize("version", ["7.2", "10.0"])
def test_of_the_same_authority_one_alone_is_let_in(version: str, tmp_path: Path) -> None:
    with sides((version, version), tmp_path) as it:
        halves = issue(UUID, 7, HOUR)
        placed = it.place("two", halves.target)
        it.two.arm_tls_server(placed, f"CN={UUID}/8/source")
        it.one.arm_tls_client(it.place("one", halves.source), halves.source.peer)
        uri = f"tcp:127.0.0.1:{it.listen()}"
        it.one.migrate(uri)
        with pytest.raises(MigrationFailed):
            it.one.wait_migration(timeout=60)
        assert it.one.query_status().status == "running"
        it.two.arm_tls_server(placed, halves.target.peer)
        it.one.migrate(uri)
        assert it.one.wait_migration(timeout=60).status == "completed"


@pytest.mark.parametrize("version", ["7.2", "10.0"])
def test_of_keys_that_are_no_good_nothing_stays(version: str, tmp_path: Path) -> None:
    with sides((version, version), tmp_path) as it:
        it.arm()
        for vm, arm in ((it.one, it.one.arm_tls_client), (it.two, it.two.arm_tls_server)):
            with pytest.raises(CommandError):
                arm(tmp_path / "absent", "somebody")
            assert not [each.name for each in vm.qom_list("/objects") if each.name in (AUTHORIZED, CREDENTIALS)]
            assert not [name for name, value in vm.get_migration_parameters().items() if "tls" in name and value]


@pytest.mark.parametrize("version", ["7.2", "10.0"])
def test_where_keys_are_named_that_are_gone_nothing_goes(version: str, tmp_path: Path) -> None:
    """As in the middle of their being forgotten: not in the clear, above all."""
    with sides((version, version), tmp_path) as it, socket.create_server(("127.0.0.1", 0)) as listener:
        it.arm()
        it.one.execute("object-del", {"id": CREDENTIALS})
        with pytest.raises((CommandError, MigrationFailed)):
            it.send(listener.getsockname()[1])
        assert it.one.query_status().status == "running"
        listener.settimeout(0.5)
        with suppress(TimeoutError):
            came, _ = listener.accept()
            with came:
                came.settimeout(0.5)
                assert came.recv(1) == b""


@pytest.mark.parametrize("version", ["7.2", "10.0"])
def test_whom_the_target_is_not_is_seen(version: str, tmp_path: Path) -> None:
    """By its source, which runs on."""
    with sides((version, version), tmp_path) as it:
        halves = issue(UUID, 7, HOUR)
        it.two.arm_tls_server(it.place("two", halves.target), halves.target.peer)
        it.one.arm_tls_client(it.place("one", halves.source), "8.drover")
        it.one.migrate(f"tcp:127.0.0.1:{it.listen()}")
        with pytest.raises(MigrationFailed):
            it.one.wait_migration(timeout=60)
        assert it.one.query_status().status == "running"


@pytest.mark.parametrize("version", ["7.2", "10.0"])
def test_a_silent_target(version: str, tmp_path: Path) -> None:
    """It is found out before; and where it falls silent only then, QEMU is freed."""
    with sides((version, version), tmp_path) as it, socket.create_server(("127.0.0.1", 0)) as silent:
        it.arm()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(MigrationError, match="does not answer within 1 s"):
            it.one.check_tls_target(address, timeout=1)
        with attached(it.pid, tmp_path) as process:
            assert sever(process) == []
            it.one.migrate(f"tcp:{address}")
            wait_for(lambda: hangs(it.one))
            wait_for(lambda: sever(process) == [address])
        with pytest.raises(MigrationFailed):
            it.one.wait_migration(timeout=30)
        assert it.one.query_status().status == "running"


@pytest.mark.parametrize("version", ["7.2", "10.0"])
def test_a_target_that_is_silent_on_its_other_connections(version: str, tmp_path: Path) -> None:
    """The guest runs; it can be cancelled, and sent again."""
    with ExitStack() as stack, sides((version, version), tmp_path) as it:
        for vm in (it.one, it.two):
            vm.set_migration_capabilities({"multifd": True})
        it.arm(multifd=True)
        relay = stack.enter_context(Relay(it.listen(), most=1))
        it.one.migrate(f"tcp:127.0.0.1:{relay.port}")
        wait_for(lambda: relay.sent.startswith(b"\x16"))
        time.sleep(1)
        it.one.execute("migrate_cancel")
        with attached(it.pid, tmp_path) as process:
            wait_for(lambda: bool(sever(process, others=True)))
        wait_for(lambda: it.one.query_migrate().status == "cancelled")
        assert it.one.query_status().status == "running"


def test_nobody_there(tmp_path: Path) -> None:
    with sides(("10.0", "10.0"), tmp_path) as it, socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(MigrationError, match="is not to be reached"):
            it.one.check_tls_target(address)
        with socket.create_server(("127.0.0.1", 0)) as other:

            def answer() -> None:
                with other.accept()[0] as client:
                    client.send(b"hello\n")

            thread = threading.Thread(target=answer)
            thread.start()
            with pytest.raises(MigrationError, match="does not speak TLS"):
                it.one.check_tls_target(f"127.0.0.1:{other.getsockname()[1]}")
            thread.join()


def test_keys_lie_where_qemu_alone_reads_them(tmp_path: Path) -> None:
    """And nothing that QEMU has put in their place is followed."""
    private, elsewhere = tmp_path / "private", tmp_path / "elsewhere"
    for folder in (private, elsewhere):
        folder.mkdir()
    (elsewhere / "ca-cert.pem").write_text("mine")
    (private / "migration-keys").symlink_to(elsewhere)
    keys = issue(UUID, 1, HOUR).source
    assert "PRIVATE" not in repr(keys)
    placed = place(private, keys, 70001)
    assert not placed.is_symlink()
    assert (elsewhere / "ca-cert.pem").read_text() == "mine"
    for path in (placed, *placed.iterdir()):
        found = path.stat()
        assert (found.st_mode & 0o077, found.st_uid, found.st_gid) == (0, 70001, 70001)
    assert sorted(os.listdir(placed)) == ["ca-cert.pem", "client-cert.pem", "client-key.pem"]
