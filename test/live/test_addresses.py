"""Real QEMUs over every kind of address, dialled and dialling, plain and secured."""

import asyncio
import os
import shutil
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from drover import AsyncMonitorListener, MonitorListener, QmpConnection
from drover.errors import ConnectError
from faces import FACES, Face
from ports import free_port

pytestmark = pytest.mark.live

BASE = ["qemu-system-x86_64", "-machine", "none", "-nodefaults", "-display", "none", "-S"]
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(params=["blocking", "asyncio"])
def face(request: pytest.FixtureRequest) -> Iterator[Face]:
    """Each face."""
    face = FACES[request.param]()
    yield face
    face.close()


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts QEMUs without a machine, and ends them."""
    processes: list[subprocess.Popen[str]] = []

    def run(*arguments: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen([*BASE, *arguments], stderr=subprocess.PIPE, text=True)
        processes.append(process)
        return process

    yield run
    for process in processes:
        process.kill()
        process.communicate()


def chardev(text: str) -> list[str]:
    """Options for a monitor on a chardev."""
    return ["-chardev", f"socket,id=c,{text}", "-mon", "chardev=c,mode=control"]


def dialled(kind: str, folder: Path) -> tuple[Any, list[str]]:
    """An address for us, and QEMU's options to listen on it."""
    if kind == "unix":
        path = folder / "a:b"
        return str(path), ["-qmp", f"unix:{path},server=on,wait=off"]
    if kind == "abstract":
        name = f"drover-live-{os.getpid()}"
        return f"@{name}", chardev(f"path={name},abstract=on,server=on,wait=off")
    host = "127.0.0.1" if kind == "v4" else "::1"
    port = free_port(host)
    return (host, port), chardev(f"host={host},port={port},server=on,wait=off")


@pytest.mark.parametrize("kind", ["unix", "abstract", "v4", "v6"])
def test_we_dial(face: Face, start: Start, kind: str, tmp_path: Path) -> None:
    address, options = dialled(kind, tmp_path)
    start(*options)
    with face.open(address, timeout=20) as vm:
        assert vm.query_status().status == "prelaunch"
        assert len(vm.execute("query-qmp-schema")) > 1000
        vm.quit(timeout=10)


def test_a_name_with_several_addresses(face: Face, start: Start) -> None:
    port = free_port("127.0.0.1")
    start(*chardev(f"host=127.0.0.1,port={port},server=on,wait=off"))
    with face.open(f"localhost:{port}", timeout=20) as vm:
        assert vm.query_status().status == "prelaunch"


def places(folder: Path) -> dict[str, str]:
    """Where we listen."""
    return {
        "unix": str(folder / "a:b"),
        "abstract": f"@drover-dial-{os.getpid()}",
        "v4": "127.0.0.1:0",
        "v6": "[::1]:0",
    }


def dials(kind: str, address: Any) -> list[str]:
    """QEMU's options to dial us."""
    if kind == "unix":
        return ["-qmp", f"unix:{address},server=off"]
    return chardev(
        f"path={address.name},abstract=on" if kind == "abstract" else f"host={address.host},port={address.port}"
    )


@pytest.mark.parametrize("kind", ["unix", "abstract", "v4", "v6"])
def test_qemu_dials(start: Start, kind: str, tmp_path: Path) -> None:
    with MonitorListener(places(tmp_path)[kind], timeout=20) as listener:
        for _ in range(2):
            start(*dials(kind, listener.address))
            with listener.accept() as vm:
                assert vm.query_status().status == "prelaunch"
                late = start(*dials(kind, listener.address))
                assert "refused" in late.communicate(timeout=20)[1], "it is told at once"
                vm.quit(timeout=10)
            listener.listen()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["unix", "abstract", "v4", "v6"])
def test_qemu_dials_on_asyncio(start: Start, kind: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with AsyncMonitorListener(places(tmp_path)[kind], timeout=20) as listener:
            start(*dials(kind, listener.address))
            async with await listener.accept() as vm:
                assert (await vm.query_status()).status == "prelaunch"
                await vm.quit(timeout=10)

    asyncio.run(main())


# -- TLS ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `tls-creds-x509` reads it: an authority, and a certificate of each side signed by it."""
    if not shutil.which("openssl"):
        pytest.fail("the openssl command is missing: it makes the certificates")
    folder = tmp_path_factory.mktemp("pki")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    usage = ["-addext", "keyUsage=critical,keyCertSign"]
    openssl(
        "req", "-x509", "-days", "2", "-subj", "/CN=ca", *usage, *key, "-keyout", "ca-key.pem", "-out", "ca-cert.pem"
    )
    for side in ("server", "client"):
        extensions = folder / f"{side}.ext"
        extensions.write_text(
            f"extendedKeyUsage={side}Auth\nkeyUsage=digitalSignature\n"
            "basicConstraints=CA:FALSE\nsubjectAltName=DNS:localhost,IP:127.0.0.1\n"
        )
        openssl("req", "-subj", f"/CN={side}", *key, "-keyout", f"{side}-key.pem", "-out", f"{side}.csr")
        signed = [
            "-CA",
            "ca-cert.pem",
            "-CAkey",
            "ca-key.pem",
            "-CAcreateserial",
            "-days",
            "2",
            "-extfile",
            extensions.name,
        ]
        openssl("x509", "-req", "-in", f"{side}.csr", "-out", f"{side}-cert.pem", *signed)
    return folder


def context_of(folder: Path, side: str) -> ssl.SSLContext:
    """Our own side of TLS, with a certificate."""
    purpose = ssl.Purpose.SERVER_AUTH if side == "client" else ssl.Purpose.CLIENT_AUTH
    context = ssl.create_default_context(purpose, cafile=folder / "ca-cert.pem")
    context.load_cert_chain(folder / f"{side}-cert.pem", folder / f"{side}-key.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def creds(folder: Path, endpoint: str) -> list[str]:
    """QEMU's options for its own side of TLS."""
    return ["-object", f"tls-creds-x509,id=tls,dir={folder},endpoint={endpoint},verify-peer=on"]


def test_we_dial_with_tls(face: Face, start: Start, credentials: Path) -> None:
    port = free_port("127.0.0.1")
    monitor = chardev(f"host=127.0.0.1,port={port},server=on,wait=off,tls-creds=tls")
    start(*creds(credentials, "server"), *monitor)
    context = context_of(credentials, "client")
    for _ in range(2):
        with face.open(f"127.0.0.1:{port}", timeout=20, tls=context) as vm:
            assert vm.query_status().status == "prelaunch"
            for _ in range(50):
                assert len(vm.execute("query-commands")) > 100
            assert len(vm.execute("query-qmp-schema")) > 1000
    anonymous = ssl.create_default_context(cafile=credentials / "ca-cert.pem")
    with pytest.raises(ConnectError, match="closed"):
        face.make(f"127.0.0.1:{port}", timeout=20, tls=anonymous).connect()
    with pytest.raises(ConnectError, match="certificate was not accepted"):
        face.make(f"127.0.0.1:{port}", timeout=20, tls=context, server_hostname="other.example").connect()
    with face.open(f"localhost:{port}", timeout=20, tls=context) as vm:
        vm.quit(timeout=10)


def test_qemu_dials_with_tls(start: Start, credentials: Path) -> None:
    with MonitorListener("127.0.0.1:0", timeout=20, tls=context_of(credentials, "server")) as listener:
        monitor = chardev(f"host=127.0.0.1,port={listener.address.port},tls-creds=tls")  # type: ignore[union-attr]
        start(*creds(credentials, "client"), *monitor)
        with listener.accept() as vm:
            assert isinstance(vm, QmpConnection)
            assert vm.query_status().status == "prelaunch"
            vm.quit(timeout=10)
