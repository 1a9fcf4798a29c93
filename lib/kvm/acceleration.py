"""KVM where it is proven to work, else TCG.

That /dev/kvm can be opened proves nothing, nor that a BIOS runs: there are hosts where it is an
emulator of instructions under which every kernel hangs, and such where QEMU aborts as soon as it is
told to use the host's CPU. So a machine with ``-cpu host`` runs a program of ours (:mod:`.proof`).
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

from msgspec import DecodeError, Struct, json

from ..errors import ArgumentError, BinaryError, BinarySlow, ConnectionClosed, MonitorTimeout, NotSupported
from ..qmp.ready import ready
from .binary import Binary
from .cache import alone, cache_file, replace
from .proof import EXIT_PORT, FAILURES, PROVEN, TRACE_PORT, firmware, stage
from .trial import Trial

WANTED: Final = ("auto", "kvm", "tcg")
PROOF_TIMEOUT: Final = 10.0  # s; it takes 0.1 s
_LAST_WORDS: Final = 1.0  # s of them, to ask what went wrong
# s: a busy host or one short of memory is no reason to go without KVM for months; hanging takes PROOF_TIMEOUT each time
DOUBT: Final = 3600.0
FORMAT: Final = 1  # of the cache's documents
_LOCK_TIMEOUT: Final = 2 * PROOF_TIMEOUT  # s; who holds the lock longer does not work on it any more
_DEVICE: Final = Path("/dev/kvm")
_GET_API_VERSION: Final = 0xAE00
_API_VERSION: Final = 12  # the only one, for ever (the kernel's Documentation/virt/kvm/api.rst)
_TARGET: Final = "x86_64"  # what the program is for
_TRACE_SIZE: Final = 64  # bytes, a power of 2
_SAID: Final = 2  # lines that QEMU printed, in a reason
_NEEDED: Final = ("isa-debug-exit", "isa-debugcon")


class Verdict(Struct, frozen=True):
    """What a QEMU is to run with.

    :ivar accelerator: ``kvm`` or ``tcg``
    :ivar reason: why it is not KVM, if that was not asked for
    :ivar probed: whether guest code was run under KVM, now or earlier, to find that out
    """

    accelerator: Literal["kvm", "tcg"]
    reason: str = ""
    probed: bool = False


class _Document(Struct, frozen=True):
    """A verdict that was found by a probe.

    :ivar until: when to doubt it, in seconds since the boot
    """

    format: int
    key: str
    boot_id: str
    until: float | None
    verdict: Verdict


def acceleration(binary: Binary, wanted: str, cache_dir: Path, boot_id: str) -> Verdict:
    """Decide whether a QEMU is to use KVM.

    KVM was proven to work once in this boot for this binary, or is proven now. That it does not
    work is believed for :data:`DOUBT` seconds, unless KVM is asked for.

    :param wanted: ``auto``; ``tcg``: nothing is probed; ``kvm``: it is an error if that does not work. It is trusted
        to work where it cannot be proven, such as for another architecture
    :param cache_dir: as for :func:`.binary.probe_binary`
    :param boot_id: of this boot (:func:`.process.current_boot`)
    :raises ArgumentError: `wanted` is none of these, or does not work; says why
    :raises NotSupported: neither works
    """
    if wanted not in WANTED:
        raise ArgumentError("acceleration", wanted, f"one of {', '.join(WANTED)}")
    if wanted == "tcg":
        verdict = Verdict("tcg")
    else:
        problem = _missing(binary)
        unproven = "" if problem else _unprovable(binary)
        if problem or unproven:
            verdict = Verdict("kvm") if not problem and wanted == "kvm" else Verdict("tcg", problem or unproven)
        else:
            verdict = _proven(binary, cache_dir, boot_id, doubt=wanted == "kvm")
    if wanted == "kvm" and verdict.accelerator != "kvm":
        raise ArgumentError("acceleration", wanted, f"KVM does not work here: {verdict.reason}")
    if verdict.accelerator not in binary.accelerators:
        raise NotSupported(f"TCG, while KVM does not work ({verdict.reason or 'not wanted'}),", by=binary.path)
    return verdict


def _missing(binary: Binary) -> str:
    """Why KVM cannot work; looked for each time, for all of it may change while the host runs."""
    if "kvm" not in binary.accelerators:
        return f"{binary.path} was built without KVM"
    return _device_problem()


def _device_problem() -> str:
    try:
        fd = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return f"{_DEVICE}: {error.strerror}"
    try:
        version = fcntl.ioctl(fd, _GET_API_VERSION)
    except OSError as error:
        return f"{_DEVICE} is not KVM's: {error.strerror}"
    finally:
        os.close(fd)
    return "" if version == _API_VERSION else f"{_DEVICE} speaks version {version} of its API"


def _unprovable(binary: Binary) -> str:
    if binary.target != _TARGET:
        return f"whether KVM works for {binary.target} cannot be told in advance"
    lacking = [device for device in _NEEDED if not binary.has_device(device)]
    return f"without {' and '.join(lacking)} whether KVM works cannot be told in advance" if lacking else ""


# -- the cache -----------------------------------------------------------------------------------


def _proven(binary: Binary, cache_dir: Path, boot_id: str, *, doubt: bool) -> Verdict:
    """The verdict of a probe.

    :param doubt: believe no earlier one that KVM does not work
    """
    file = cache_file(cache_dir, binary.path, ".kvm.json")
    asked = time.clock_gettime(time.CLOCK_BOOTTIME)
    if (known := _read(file, binary, boot_id, asked if doubt else None)) is not None:
        return known
    with alone(file, _LOCK_TIMEOUT):
        if (known := _read(file, binary, boot_id, asked if doubt else None)) is not None:
            return known
        verdict = _probe(binary)
        until = None if verdict.accelerator == "kvm" else time.clock_gettime(time.CLOCK_BOOTTIME) + DOUBT
        replace(file, json.encode(_Document(FORMAT, binary.key, boot_id, until, verdict)))
    return verdict


def _read(file: Path, binary: Binary, boot_id: str, newer: float | None) -> Verdict | None:
    """The verdict that is known.

    :param newer: only one that was found since then, if it is that KVM does not work; in seconds since the boot
    """
    try:
        known = json.decode(file.read_bytes(), type=_Document)
    except (OSError, DecodeError, UnicodeDecodeError):
        return None
    if (known.format, known.key, known.boot_id) != (FORMAT, binary.key, boot_id):
        return None
    if known.until is not None:
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        if not now < known.until <= now + DOUBT or (newer is not None and known.until - DOUBT < newer):
            return None
    return known.verdict


# -- the probe -----------------------------------------------------------------------------------


def _probe(binary: Binary) -> Verdict:
    problem = run_proof(binary, "kvm", "host")
    return Verdict("tcg", problem, True) if problem else Verdict("kvm", probed=True)


def run_proof(binary: Binary, accelerator: str, cpu: str, timeout: float = PROOF_TIMEOUT) -> str:
    """Run guest code of ours in a machine. Nothing of it is left.

    :param binary: one for x86_64
    :param cpu: its model
    :param timeout: for all of it, in seconds
    :returns: what went wrong; empty: all of it ran
    """
    machine = "q35" if any(kind.alias == "q35" for kind in binary.machines.values()) else "pc"
    with _memory(firmware()) as fd:
        words = [
            "-accel", accelerator, "-cpu", cpu, "-machine", machine, "-m", "16M", "-no-reboot",
            "-bios", f"/proc/self/fd/{fd}",
            "-chardev", f"ringbuf,id=trace,size={_TRACE_SIZE}",
            "-device", f"isa-debugcon,iobase={TRACE_PORT},chardev=trace",
            "-device", f"isa-debug-exit,iobase={EXIT_PORT},iosize=1",
        ]  # fmt: skip
        try:
            with Trial(Path(binary.path), words, fds=[fd], timeout=timeout) as trial:
                trial.ask("query-cpus-fast")  # its CPUs are made by now
                return _watch(trial, timeout - _LAST_WORDS)
        except BinarySlow:
            return f"QEMU does not answer within {timeout:g} s"
        except BinaryError as error:
            said = "; ".join(error.log.splitlines()[:_SAID])
            return f"QEMU does not get as far as the guest: {error.reason}" + (f" ({said})" if said else "")


def _watch(trial: Trial, timeout: float) -> str:
    """Let the guest run, and say what went wrong. It stops by itself where KVM gives it up."""
    mark = trial.qmp.event_mark()
    try:
        trial.qmp.execute("cont", timeout=timeout)
        trial.qmp.wait_event("STOP", since=mark, timeout=timeout)
    except ConnectionClosed:
        status = trial.wait()
        return "" if status.code == PROVEN else FAILURES.get(status.code, f"QEMU ended with the guest: {status}")
    except MonitorTimeout:
        return f"guest code does not get through within {timeout:g} s, stuck in {_where(trial)}"
    state = trial.ask("query-status")["status"]
    return f"KVM gives guest code up ({state}), in {_where(trial)}"


def _where(trial: Trial) -> str:
    return stage(trial.ask("ringbuf-read", {"device": "trace", "size": _TRACE_SIZE}))


@contextlib.contextmanager
def _memory(data: bytes) -> Iterator[int]:
    fd = os.memfd_create("drover-proof")
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(data)
        yield fd
    finally:
        os.close(fd)


ready(_Document)
