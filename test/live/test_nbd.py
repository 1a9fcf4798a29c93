"""NBD: real servers and real QEMUs, and those who only look like a server. What QEMU is not told cannot hang it."""

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from blocks import KIB, MIB, SIZE, Lab, disk, lab
from drover.errors import CommandError, NbdError, NbdRefused, NbdTimeout, NbdUnreachable, NotSupported

pytestmark = pytest.mark.live

KINDS = [("7.2", "blocking"), ("7.2", "asyncio"), ("10.0", "blocking"), ("10.0", "asyncio")]
PATIENCE = 20.0


@pytest.fixture(params=KINDS, ids="-".join)
def qemu(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Lab]:
    with lab(*request.param, tmp_path) as found:
        yield found


@pytest.fixture(params=[KINDS[0], KINDS[3]], ids="-".join)
def one(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Lab]:
    """The same, on two of the pairs."""
    with lab(*request.param, tmp_path) as found:
        yield found


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def listens(where: Path) -> bool:
    """Whether somebody listens there by now: the file is there a moment before."""
    accepts = "00010000"  # __SO_ACCEPTCON, among the flags of /proc/net/unix
    lines = (line.split() for line in Path("/proc/net/unix").read_text().splitlines())
    return any(line[3] == accepts and line[-1] == str(where) for line in lines)


@contextmanager
def qemu_nbd(where: Path, *options: str | Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Debian's NBD server on a unix socket."""
    with subprocess.Popen(["qemu-nbd", "-k", where, "-f", "raw", *options]) as process:
        try:
            until(lambda: listens(where))
            yield process
        finally:
            process.kill()


@contextmanager
def listening(answer: bytes | None) -> Iterator[str]:
    """Somebody on TCP who takes calls and says `answer`; None: nobody takes them, but the kernel does."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        stop = threading.Event()

        def serve() -> None:
            with ExitStack() as stack:
                while not stop.is_set():
                    try:
                        client = stack.enter_context(server.accept()[0])
                        client.sendall(answer or b"")
                    except TimeoutError:
                        continue

        server.settimeout(0.05)
        thread = threading.Thread(target=serve)
        if answer is not None:
            thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        stop.set()
        if answer is not None:
            thread.join()


def raw(path: Path, *pieces: tuple[int, int, int]) -> Path:
    path.write_bytes(disk(*pieces))
    return path


def serves(qemu: Lab) -> bool:
    """Whether QEMU's main loop is alive."""
    return bool(qemu.vm.execute("query-status", timeout=PATIENCE))


# -- a server that will do -------------------------------------------------------------------------------------------


def test_a_disk_on_a_server(qemu: Lab) -> None:
    image, where = raw(qemu.folder / "image", (0xAB, MIB, MIB)), qemu.folder / "nbd"
    with qemu_nbd(where, "-t", "-x", "disk", "-D", "for tests", image):
        found = qemu.vm.check_nbd_server(str(where), "disk")
        assert (found.size, found.read_only, found.description) == (SIZE, False, "for tests")
        node = qemu.vm.blockdev_add_nbd("n", f"unix:{where}", "disk", cache="writeback")
        assert (node.node, node.size, node.export) == ("n", SIZE, found)
        qemu.io("n", f"read -P 0xab {MIB} {MIB}")
        qemu.write("n", 0xCD, 0, 64 * KIB)
        assert [each.name for each in qemu.vm.query_yank() if each.type == "block-node"] == ["n"]
        qemu.vm.blockdev_del("n")
        assert image.read_bytes() == disk((0xCD, 0, 64 * KIB), (0xAB, MIB, MIB))


def test_a_server_for_one_client_is_left_for_qemu(one: Lab) -> None:
    """A qemu-nbd without --persistent ends after its first client: whoever only shakes hands is none."""
    where = one.folder / "nbd"
    with qemu_nbd(where, "-e", "1", raw(one.folder / "image")) as server:
        for _ in range(5):
            assert one.vm.check_nbd_server(str(where)).size == SIZE
        one.vm.blockdev_add_nbd("n", str(where))
        assert server.poll() is None
        one.vm.blockdev_del("n")
        server.wait(PATIENCE)


def test_a_read_only_export(one: Lab) -> None:
    where = one.folder / "nbd"
    with qemu_nbd(where, "-t", "-r", raw(one.folder / "image", (1, 0, KIB))):
        with pytest.raises(NbdRefused) as caught:
            one.vm.blockdev_add_nbd("n", str(where))
        assert caught.value.code == "read-only"
        assert one.vm.blockdev_add_nbd("n", str(where), read_only=True).export.read_only
        one.io("n", f"read -P 1 0 {KIB}")


def test_an_export_that_is_not_there(one: Lab) -> None:
    where = one.folder / "nbd"
    with qemu_nbd(where, "-t", "-x", "disk", raw(one.folder / "image")):
        for export in ("", "disc"):
            with pytest.raises(NbdRefused) as caught:
                one.vm.blockdev_add_nbd("n", str(where), export)
            assert caught.value.code == "unknown-export"
            assert f"'{export}'" in caught.value.text
        assert one.names() == set()


def test_tls(one: Lab) -> None:
    keys = one.folder / "keys.psk"
    keys.write_text(f"qemu:{os.urandom(32).hex()}\n")
    where, creds = one.folder / "nbd", f"tls-creds-psk,id=tls0,dir={one.folder},endpoint=server"
    image = raw(one.folder / "image", (0xAB, 0, MIB))
    client = {"qom-type": "tls-creds-psk", "id": "tls0", "dir": str(one.folder), "endpoint": "client"}
    one.vm.execute("object-add", client)
    with qemu_nbd(where, "-t", "-x", "disk", "--object", creds, "--tls-creds", "tls0", image):
        with pytest.raises(NbdRefused) as caught:
            one.vm.blockdev_add_nbd("n", str(where), "disk")
        assert caught.value.code == "tls-required"
        assert one.vm.check_nbd_server(str(where), "disk", tls=True).tls
        assert one.vm.blockdev_add_nbd("n", str(where), "disk", tls_creds="tls0").size == SIZE
        one.io("n", f"read -P 0xab 0 {MIB}")
        one.vm.blockdev_del("n")
    plain = one.folder / "plain"
    with qemu_nbd(plain, "-t", "-x", "disk", image):
        with pytest.raises(NbdRefused) as caught:
            one.vm.blockdev_add_nbd("n", str(plain), "disk", tls_creds="tls0")
        assert caught.value.code == "no-tls"
    assert serves(one)


# -- one that will not -----------------------------------------------------------------------------------------------


def test_a_stopped_server_does_not_hang_qemu(qemu: Lab) -> None:
    """The kernel takes the call for it; told of it, QEMU would wait for ever."""
    where = qemu.folder / "nbd"
    with qemu_nbd(where, "-t", raw(qemu.folder / "image")) as server:
        server.send_signal(signal.SIGSTOP)
        try:
            started = time.monotonic()
            with pytest.raises(NbdTimeout) as caught:
                qemu.vm.blockdev_add_nbd("n", str(where), timeout=0.5)
            assert 0.4 < time.monotonic() - started < 10
            assert isinstance(caught.value, TimeoutError)
            inner = {"driver": "nbd", "server": {"type": "unix", "path": str(where)}}
            node = {"driver": "raw", "node-name": "n", "file": inner}
            with pytest.raises(NbdTimeout):
                qemu.vm.check_nbd_server(str(where), timeout=0.2)
            assert serves(qemu)
        finally:
            server.send_signal(signal.SIGCONT)
        qemu.vm.blockdev_add(node)
        assert "n" in qemu.names()


def test_one_who_takes_calls_and_says_nothing(qemu: Lab) -> None:
    with listening(b"") as address:
        with pytest.raises(NbdTimeout):
            qemu.vm.blockdev_add_nbd("n", address, timeout=0.3)
    with listening(b"NBDMAGICIHAVE") as address:
        with pytest.raises(NbdTimeout):
            qemu.vm.blockdev_add_nbd("n", address, timeout=0.3)
    with listening(None) as address:
        with pytest.raises(NbdTimeout):
            qemu.vm.blockdev_add_nbd("n", address, timeout=0.3)
    assert serves(qemu)


def test_one_who_is_no_nbd_server(one: Lab) -> None:
    with listening(b"SSH-2.0-OpenSSH_9.2p1\r\n") as address:
        with pytest.raises(NbdError, match="does not speak NBD") as caught:
            one.vm.blockdev_add_nbd("n", address)
        assert type(caught.value) is NbdError
    assert serves(one)


def test_nobody_there(one: Lab) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        address = f"127.0.0.1:{gone.getsockname()[1]}"
    for place in (address, str(one.folder / "none")):
        with pytest.raises(NbdUnreachable):
            one.vm.blockdev_add_nbd("n", place)


def test_a_unix_socket_whose_queue_is_full(one: Lab) -> None:
    """To dial it blocks, and so would QEMU's main loop."""
    with socket.socket(socket.AF_UNIX) as server, ExitStack() as stack:
        server.bind(str(one.folder / "full"))
        server.listen(0)
        for _ in range(2):
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            client.connect_ex(str(one.folder / "full"))
        with pytest.raises(NbdTimeout):
            one.vm.blockdev_add_nbd("n", str(one.folder / "full"), timeout=0.3)
    assert serves(one)


def test_qemus_own_server(one: Lab) -> None:
    """QEMU would wait for itself, on both versions beyond the reach of yank."""
    one.node("a")
    one.vm.nbd_server_start(str(one.folder / "nbd"))
    one.vm.block_export_add("e", "a")
    with pytest.raises(NbdError, match="own server"):
        one.vm.blockdev_add_nbd("n", str(one.folder / "nbd"), "a", read_only=True)
    assert one.vm.check_nbd_server(str(one.folder / "nbd"), "a").read_only, "to ask it is no harm"
    assert serves(one)


# -- exports ---------------------------------------------------------------------------------------------------------


def qemu_io(where: str, export: str, *commands: str, read_only: bool = False) -> str:
    """What Debian's qemu-io says, as a client of the server at `where`."""
    options = f"driver=nbd,export={export},{where}"
    flags = ["-r"] if read_only else []
    arguments = [argument for command in commands for argument in ("-c", command)]
    command = ["qemu-io", *flags, "--image-opts", options, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    return done.stdout + done.stderr


def test_data_go_through_an_export(qemu: Lab) -> None:
    qemu.node("a", "qcow2")
    qemu.write("a", 0xAB, 0, MIB)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    qemu.vm.nbd_server_start(f"127.0.0.1:{port}", max_connections=5)
    made = qemu.vm.block_export_add("e", "a", name="disk one", description="of ours", writable=True)
    assert qemu.vm.query_block_exports() == [made]
    assert qemu.vm.check_nbd_server(f"127.0.0.1:{port}", "disk one").description == "of ours"
    where = f"server.type=inet,server.host=127.0.0.1,server.port={port}"
    said = qemu_io(where, "disk one", f"read -P 0xab 0 {MIB}", f"write -P 0xcd {MIB} {MIB}", "flush")
    assert "Pattern verification failed" not in said
    assert f"wrote {MIB}/{MIB}" in said
    assert qemu.content("a") == disk((0xAB, 0, MIB), (0xCD, MIB, MIB))
    assert qemu.vm.block_export_del("e")
    assert qemu.vm.query_block_exports() == []
    assert "export 'disk one' not present" in qemu_io(where, "disk one", "read 0 512")
    qemu.vm.blockdev_del("a")
    qemu.vm.nbd_server_stop()
    with pytest.raises(CommandError):
        qemu.vm.nbd_server_stop()


def test_a_read_only_export_of_ours_and_its_bitmap(one: Lab) -> None:
    path = one.folder / "nbd"
    one.node("a", "qcow2")
    one.vm.execute("block-dirty-bitmap-add", {"node": "a", "name": "marks"})
    one.write("a", 1, MIB, 64 * KIB)
    one.vm.execute("block-dirty-bitmap-disable", {"node": "a", "name": "marks"})
    one.vm.nbd_server_start(str(path))
    one.vm.block_export_add("e", "a", bitmaps=["marks"], allocation_depth=True)
    where = f"server.type=unix,server.path={path}"
    assert "Permission denied" in qemu_io(where, "a", "write 0 512")
    assert f"read {KIB}/{KIB}" in qemu_io(where, "a", f"read -P 1 {MIB} {KIB}", read_only=True)
    options = f"driver=nbd,export=a,{where},x-dirty-bitmap=qemu:dirty-bitmap:marks"
    found = subprocess.run(
        ["qemu-img", "map", "--output=json", "--image-opts", options], capture_output=True, text=True, check=True
    ).stdout
    # qemu-img tells a dirty part as one that holds no data
    assert f'"start": {MIB}, "length": {64 * KIB}' in found
    one.vm.block_export_del("e")
    one.vm.block_export_add("e", "a", bitmaps=[("a", "marks")])
    with pytest.raises(CommandError):
        one.vm.block_export_add("e2", "a", name="b", bitmaps=["none"])


def test_an_export_in_use(one: Lab) -> None:
    path = one.folder / "nbd"
    one.node("a")
    one.vm.nbd_server_start(str(path), max_connections=1)
    one.vm.block_export_add("e", "a", writable=True)
    options = f"driver=nbd,export=a,server.type=unix,server.path={path}"
    command = ["qemu-io", "--image-opts", options]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdin.write(b"read 0 512\n")
        client.stdin.flush()
        assert b"read 512/512" in client.stdout.readline() + client.stdout.readline()
        with pytest.raises(CommandError):
            one.vm.block_export_del("e")
        assert [each.id for each in one.vm.query_block_exports()] == ["e"]
        assert one.vm.block_export_del("e", mode="hard", timeout=PATIENCE)
        assert not one.vm.block_export_del("e", mode="hard")
        client.kill()


def test_an_export_that_wants_whole_blocks(one: Lab) -> None:
    """As that of a file without the host's cache; a client that does not ask for the sizes is refused it."""
    path, where = one.image("a"), str(one.folder / "nbd")
    file = {"driver": "file", "node-name": "a", "filename": str(path), "cache": {"direct": True}}
    one.vm.execute("blockdev-add", file)
    one.vm.nbd_server_start(where)
    one.vm.block_export_add("e", "a")
    assert one.vm.check_nbd_server(where, "a").min_block > 1


def test_the_end_of_the_server_is_the_end_of_its_exports(one: Lab) -> None:
    one.node("a")
    one.vm.nbd_server_start(str(one.folder / "nbd"))
    one.vm.block_export_add("e", "a")
    mark = one.vm.event_mark()
    one.vm.nbd_server_stop()
    assert one.vm.query_block_exports() == []
    event = one.vm.wait_event("BLOCK_EXPORT_DELETED", since=mark, timeout=PATIENCE)
    assert event.typed.id == "e"
    one.vm.blockdev_del("a")


def test_a_mirror_to_another_qemus_export(tmp_path: Path) -> None:
    """The way a disk moves between hosts: 7.2 to 10.0."""
    folders = [tmp_path / "s", tmp_path / "t"]
    for folder in folders:
        folder.mkdir()
    with lab("7.2", "blocking", folders[0]) as source, lab("10.0", "asyncio", folders[1]) as target:
        path = str(target.folder / "nbd")
        target.node("b")
        target.vm.nbd_server_start(path, max_connections=1)
        target.vm.block_export_add("e", "b", name="disk", writable=True)
        source.node("a")
        source.write("a", 0xAB, MIB, MIB)
        assert source.vm.blockdev_add_nbd("remote", path, "disk").size == SIZE
        source.vm.blockdev_mirror("a", "remote", timeout=60)
        source.vm.finish_mirror("mirror-a", pivot=False, timeout=60)
        source.vm.blockdev_del("remote")
        target.vm.nbd_server_stop()
        assert target.content("b") == disk((0xAB, MIB, MIB))


def test_a_client_that_only_dials_is_sent_away(one: Lab) -> None:
    path = str(one.folder / "nbd")
    if one.vm.version < (10, 0):
        with pytest.raises(NotSupported, match=r"QEMU 10\.0"):
            one.vm.nbd_server_start(path, handshake_seconds=1)
        return
    one.vm.nbd_server_start(path, handshake_seconds=1)
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE)
        client.connect(path)
        said: Any = b""
        while data := client.recv(100):
            said += data
        assert said.startswith(b"NBDMAGIC"), "greeted, and hung up on"


def test_an_inactive_export(one: Lab) -> None:
    one.node("a")
    one.vm.nbd_server_start(str(one.folder / "nbd"))
    if one.vm.version < (10, 0):
        with pytest.raises(NotSupported, match=r"QEMU 10\.0"):
            one.vm.block_export_add("e", "a", allow_inactive=True)
        return
    one.vm.execute("blockdev-set-active", {"node-name": "a", "active": False})
    one.vm.block_export_add("e", "a", allow_inactive=True)
    assert one.vm.query_block_tree().nodes["a"].active is False
    one.vm.block_export_del("e")
    one.vm.block_export_add("e", "a")
    assert one.vm.query_block_tree().nodes["a"].active, "otherwise it is taken over"
