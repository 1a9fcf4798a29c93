"""Guest code that proves an accelerator, on real QEMUs: where it runs, and in every way in which it may not."""

import os
import shlex
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from drover import QmpConnection
from drover.errors import ArgumentError
from drover.kvm import acceleration as module
from drover.kvm import proof
from drover.kvm.acceleration import Verdict, acceleration, run_proof
from drover.kvm.binary import Binary, probe_binary
from drover.kvm.process import current_boot
from machines import qemu_of

pytestmark = [pytest.mark.live, pytest.mark.alone]

# To run under TCG what is started for KVM.
AS_TCG = 'for word; do shift; case $word in kvm) word=tcg;; host) word=max;; esac; set -- "$@" "$word"; done'


@pytest.fixture(params=["7.2", "10.0"])
def binary(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Binary:
    """A binary of each version."""
    return probe_binary(os.fspath(qemu_of(request.param)), tmp_path_factory.getbasetemp() / "binaries")


@pytest.fixture
def posing(binary: Binary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Binary]:
    """Make a QEMU that does something else before it runs, on a host that has KVM as far as can be seen."""
    monkeypatch.setattr(module, "_device_problem", lambda: "")

    def make(lines: str) -> Binary:
        path = tmp_path / "qemu"
        real = shlex.quote(binary.path)
        path.write_text(f'#!/bin/sh\ncase "$*" in *kvm*) {lines};; esac\n{AS_TCG}\nexec {real} "$@"\n')
        path.chmod(0o755)
        return probe_binary(os.fspath(path), tmp_path / "binaries")

    return make


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """No descriptor remains of any proof, and no child."""
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def doctor(monkeypatch: pytest.MonkeyPatch, source: str, code: str) -> None:
    """Change the program: other bytes, as many, for a line of its source."""
    (line,) = (line for line in proof.LISTING.splitlines() if line.endswith(f"| {source}"))
    assert len(line.partition("|")[0].split()[0]) == len(code)
    monkeypatch.setattr(proof, "LISTING", proof.LISTING.replace(line, f"{code} | {source}", 1))


@pytest.mark.parametrize("cpu", ["max", "qemu64"])
def test_runs_under_tcg(binary: Binary, cpu: str) -> None:
    assert run_proof(binary, "tcg", cpu) == ""


def test_verdict_on_this_host(binary: Binary, tmp_path: Path) -> None:
    before = time.monotonic()
    verdict = acceleration(binary, "auto", tmp_path, current_boot())
    assert time.monotonic() - before < module.PROOF_TIMEOUT + 2
    again = time.monotonic()
    assert acceleration(binary, "auto", tmp_path, current_boot()) == verdict
    assert time.monotonic() - again < 0.05
    if verdict.accelerator == "kvm":
        assert verdict == Verdict("kvm", "", True)
        assert acceleration(binary, "kvm", tmp_path, current_boot()) == verdict
    else:
        assert verdict.reason
        with pytest.raises(ArgumentError, match="KVM does not work here"):
            acceleration(binary, "kvm", tmp_path, current_boot())


def test_no_cpu_under_kvm_hangs_us(binary: Binary) -> None:
    if module._device_problem():
        pytest.fail(f"no KVM to try: {module._device_problem()}")
    for cpu in ("host", "max", "qemu64"):  # the last one lets a BIOS run where Linux hangs
        before = time.monotonic()
        run_proof(binary, "kvm", cpu)
        assert time.monotonic() - before < module.PROOF_TIMEOUT + 2


def test_kvm_that_works(posing: Callable[[str], Binary], tmp_path: Path) -> None:
    assert acceleration(posing("true"), "kvm", tmp_path, current_boot()) == Verdict("kvm", "", True)


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ("echo no such CPU >&2; exit 1", "not get as far as the guest: it ended with exit status 1 (no such CPU)"),
        ("echo MSR >&2; kill -ABRT $$", "not get as far as the guest: it was killed by SIGABRT (MSR)"),
        ("sleep 100", "QEMU does not answer within 1 s"),
        ("kill -STOP $$", "QEMU does not answer within 1 s"),
    ],
)
def test_qemu_that_does_not_come_up(posing: Callable[[str], Binary], lines: str, reason: str) -> None:
    assert reason in run_proof(posing(lines), "kvm", "host", 1)


@pytest.mark.parametrize(
    ("meddle", "reason"),
    [
        (lambda qmp, pid: qmp.stop(), f"KVM gives guest code up (paused), in {proof.STAGES['s']}"),
        (lambda qmp, pid: os.kill(pid, signal.SIGSTOP), "QEMU does not answer within 4 s"),
        (lambda qmp, pid: os.kill(pid, signal.SIGSEGV), "QEMU ended with the guest: killed by SIGSEGV"),
    ],
    ids=["stopped as KVM does it", "hangs", "crashes"],
)
def test_qemu_that_fails_under_the_guest(
    posing: Callable[[str], Binary],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    meddle: Callable[[QmpConnection, int], None],
    reason: str,
) -> None:
    doctor(monkeypatch, "mov ecx, 20000000", "b9ffffffff")
    socket, pid = tmp_path / "qmp", tmp_path / "pid"
    broken = posing(f'echo $$ >{pid}; set -- "$@" -qmp unix:{socket},server=on,wait=off')

    def interfere() -> None:
        with QmpConnection(socket, timeout=5) as qmp:
            while not qmp.query_status().running:
                time.sleep(0.01)
            time.sleep(0.2)  # till it is in the loop
            meddle(qmp, int(pid.read_text()))

    with ThreadPoolExecutor(1) as other:
        done = other.submit(interfere)
        assert run_proof(broken, "kvm", "host", 4) == reason
        done.result()


@pytest.mark.parametrize(
    ("source", "code", "reason"),
    [
        ("mov ecx, 20000000", "b9ffffffff", "does not get through within 2 s, stuck in a loop of 20 million rounds"),
        ("jb ticks", "ebfa", "stuck in the first timer interrupt"),
        ("paddq xmm0, xmm0", "90909090", "guest code computes something wrong"),
        ("add rsp, 8", "90909090", "guest code gets an exception that it should not"),
        ("lidt [idtr]", "cc90909090909090", "guest code makes its CPU reset"),
    ],
)
def test_guest_that_fails(binary: Binary, monkeypatch: pytest.MonkeyPatch, source: str, code: str, reason: str) -> None:
    doctor(monkeypatch, source, code)
    assert reason in run_proof(binary, "tcg", "max", 3)
