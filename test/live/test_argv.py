"""Every command line of test/data/argv starts a QEMU: up to its greeting, with all its devices, and to the end.

What it needs is made here: images, sockets, taps, a TPM's emulator, certificates, a server for network disks.
They are all started at once, as many at a time as there are processors, and each test waits for its own.
"""

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from argv_cases import CASES, VERSIONS, Case
from drover.errors import ArgumentError
from drover.kvm.argv import build
from drover.kvm.binary import probe_binary
from drover.kvm.spec import Spec
from drover.testing.image import guest_image
from launched import launched, make_image
from machines import qemu_of
from ports import free_port

pytestmark = pytest.mark.live

# Seconds. One takes 0.2; twice as many as processors are under way, on a host that has other work as well.
PATIENCE = 20.0
FIRMWARE = Path("/usr/share/OVMF")
STARTED = [(case, version) for case in CASES if not case.not_started for version in VERSIONS]
# What is compared only, and why: a case that can be started here and is not is a mistake.
NOT_STARTED = {
    "disk-block-device": "no block device is free",
    "disk-nbd-ipv6": "nobody serves at this address",
    "disk-rbd": "there is no Ceph cluster",
    "kvm": "KVM does not work everywhere",
    "memory-hugepages-1g": "no huge pages are set aside",
    "memory-hugepages-2m": "no huge pages are set aside",
    "nic-vhost": "this kernel has no vhost-net",
    "usb-host-place": "there is no such device here",
    "vfio": "there is no such device here",
    "vsock": "this kernel has no vhost-vsock",
}


def test_what_is_not_started():
    assert {case.name: case.not_started for case in CASES if case.not_started} == NOT_STARTED


@pytest.mark.parametrize(("case", "version"), STARTED, ids=[f"{case.name}-{version}" for case, version in STARTED])
def test_starts(case: Case, version: str, answers: dict[tuple[str, str], "Future[str]"]):
    assert answers[case.name, version].result() == ""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[tuple[str, str], "Future[str]"]]:
    """What each of them has to complain about; nothing where all is well."""
    folder = tmp_path_factory.mktemp("argv")
    with ExitStack() as stack:
        shared = Shared(folder, stack)
        pool = stack.enter_context(ThreadPoolExecutor(2 * (os.cpu_count() or 1)))
        stack.callback(pool.shutdown, cancel_futures=True)
        yield {
            (case.name, version): pool.submit(start, case, version, shared, folder / f"{case.name}-{version}")
            for case, version in STARTED
        }


def start(case: Case, version: str, shared: "Shared", folder: Path) -> str:
    """Start one and end it again; what went wrong, in words."""
    folder.mkdir()
    binary = shared.binaries[version]
    firmware = {}
    if case.spec.firmware.type == "uefi":
        firmware = {"firmware_code": str(FIRMWARE / "OVMF_CODE_4M.fd"), "firmware_vars": str(folder / "nvram")}
        if case.spec.firmware.secure_boot:
            firmware["firmware_code"] = str(FIRMWARE / "OVMF_CODE_4M.ms.fd")
        shutil.copyfile(FIRMWARE / "OVMF_VARS_4M.fd", folder / "nvram")
    spec = shared.at_home(case.spec)
    launch = build(spec, case.given(version, private=folder, seed=str(folder / "seed"), **firmware), binary)
    with launched(launch, binary.path, folder) as process:
        try:
            problem = talk(folder / "control")
        except OSError as error:
            problem = repr(error)
        if problem:
            process.kill()
        _, log = process.communicate(timeout=PATIENCE)
    return "\n".join(line for line in (problem, log.strip()) if line)


def talk(address: Path) -> str:
    """Greet, see that it waits to be let run, and say goodbye."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(PATIENCE)
        sock.connect(str(address))
        stream = sock.makefile("rwb")

        def ask(command: str) -> Any:
            stream.write(json.dumps({"execute": command}).encode())
            stream.flush()
            while "event" in (answer := json.loads(stream.readline() or b'{"return": "it has ended"}')):
                pass
            return answer.get("return", answer)

        if not stream.readline():
            return "no greeting"
        ask("qmp_capabilities")
        status = ask("query-status")
        ask("quit")
    return "" if isinstance(status, dict) and status.get("status") == "prelaunch" else f"status: {status}"


# -- what they need -----------------------------------------------------------------------------------


class Shared:
    """What all of them can use together.

    :ivar binaries: the QEMUs, probed once
    """

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        for path in (FIRMWARE / "OVMF_CODE_4M.ms.fd", FIRMWARE / "OVMF_VARS_4M.fd"):
            if not path.exists():
                pytest.fail(f"{path} is missing: run ./bootstrap, which installs it")
        self.binaries = {version: probe_binary(str(qemu_of(version)), folder / "cache") for version in VERSIONS}
        self._guest = guest_image()
        self._stack = stack
        self._certificates = certificates(folder / "pki")
        self._nbd = folder / "nbd"
        serve(stack, make_image(folder / "served", "raw"), "-k", str(self._nbd))
        self._folder = folder

    def at_home(self, spec: Spec) -> Spec:
        """The specification with what is on this host and in no file: other paths and ports, and nothing else."""
        disks = [replace(disk, source=self._source(disk.source)) for disk in spec.disks]
        nics = [replace(nic, forwards=tuple(map(_forward, nic.forwards))) for nic in spec.nics]
        boot, vnc, spice = spec.boot, spec.vnc, spec.spice
        if boot.kernel:
            initrd = str(self._guest.initrd) if boot.initrd else ""
            boot = replace(boot, kernel=str(self._guest.kernel), initrd=initrd)
        if vnc:
            vnc = replace(vnc, listen=_listen(vnc.listen, 5900), tls_dir=vnc.tls_dir and str(self._certificates))
        if spice:
            spice = replace(spice, listen=_listen(spice.listen, 0), tls_dir=spice.tls_dir and str(self._certificates))
        return replace(spec, disks=tuple(disks), nics=tuple(nics), boot=boot, vnc=vnc, spice=spice)

    def _source(self, source: str) -> str:
        if source.startswith("nbd+unix"):
            return f"nbd+unix:///web1?socket={self._nbd}"
        if source.startswith("nbd:"):
            port = free_port()
            served = make_image(self._folder / f"served{port}", "raw")
            serve(self._stack, served, "-b", "127.0.0.1", "-p", str(port))
            return f"nbd://127.0.0.1:{port}/web1"
        return source


def _forward(text: str) -> str:
    kind, _, rest = text.partition(":")
    return f"{kind}:127.0.0.1:{free_port()}-{rest.partition('-')[2]}"


def _listen(text: str, first: int) -> str:
    if not text:
        return ""
    port = free_port()
    while port < first:
        port = free_port()
    return f"{text.rpartition(':')[0]}:{port}"


def serve(stack: ExitStack, path: Path, *where: str) -> None:
    """An NBD server that answers from here on."""
    ready = path.with_name(f"{path.name}.pid")
    command = ["qemu-nbd", "-t", "-e", "8", "-f", "raw", "-x", "web1", *where, f"--pid-file={ready}", path]
    process = stack.enter_context(subprocess.Popen(command))
    stack.callback(process.kill)
    while not ready.exists():
        if process.poll() is not None:
            raise ArgumentError("where", where, "a place where an NBD server can listen")


def certificates(folder: Path) -> Path:
    """A certificate authority and a server that it knows."""
    if not shutil.which("openssl"):
        pytest.fail("openssl is missing, which makes the certificates: run ./bootstrap, which installs it")
    folder.mkdir()
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    for name, more in (("ca", ["-keyout", "ca-key.pem"]), ("server", ["-CA", "ca-cert.pem", "-CAkey", "ca-key.pem"])):
        keyout = more if name == "ca" else [*more, "-keyout", "server-key.pem"]
        command = ["openssl", "req", "-x509", "-subj", f"/CN={name}", *key, *keyout, "-out", f"{name}-cert.pem"]
        usage = ["-addext", "basicConstraints=critical,CA:FALSE"] if name == "server" else []
        subprocess.run([*command, *usage], cwd=folder, check=True, capture_output=True)
    return folder
