"""From a specification to a running machine.

The order: write down that a start begins; prepare what the command line needs (sockets, images, taps); make the
process, which waits; write down its pid; let it become QEMU; speak to it; let the guest run; write down that it runs.
So there is never a QEMU that the document does not name, and one that is found in the run state ``prelaunch`` under an
unfinished start has never run its guest.
"""

import os
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import Final

from msgspec import structs

from ..errors import DroverError, MemorySaved, MonitorError, NotSupported, SpawnFailed, StartFailed
from ..monitor.connection import QmpConnection
from ..ops.chain import open_chain
from . import argv, logs, net
from .argv import DiskNeed
from .argv.board import MONITORS
from .argv.devices import CONSOLE_LOG
from .argv.disks import disk_needs
from .binary import Binary
from .cgroup import Cgroup, Limits
from .ending import conclude, end_process, log_tail
from .ends import Stop
from .firmware import find_firmware
from .host import Host
from .kinds import tap_of
from .ledger import Ledger
from .parcel import Parcel
from .pins import pin_vcpus
from .process import Process, spawn
from .record import RESTORE, Device, Runtime, check_settled, replace
from .root import own_root
from .seed import seed_image
from .servers import check_servers
from .sockets import Listeners
from .spec import BootSpec, LimitSpec, Spec
from .state import State
from .tpm import start_tpm
from .view import view

# Descriptors of taps, by the ids of the NICs that stand on them.
Taps = Mapping[str, Sequence[int]]

_VSOCK: Final = "/dev/vhost-vsock"
# Seconds for QEMU to take in its command line and greet: memory that is allocated ahead takes its time.
GREETING_TIMEOUT: Final = 60.0


def start(
    host: Host,
    ledger: Ledger,
    *,
    paused: bool = False,
    fds: Taps = MappingProxyType({}),
    again: bool = False,
    arrives: Callable[[QmpConnection], None] | None = None,
    parcel: Parcel | None = None,
) -> list[str]:
    """Start an instance that does not run. All happens, or nothing of it stays.

    :param paused: do not let the guest run yet
    :param fds: for each NIC of mode ``fd``, by its id, descriptors of its tap; they stay yours to close
    :param again: because of its restart policy
    :param arrives: its machine comes from elsewhere: called to have QEMU take it in, instead of letting it run
    :param parcel: the machine that comes by that, where it was saved
    :returns: notices, in words: what the host lacks and the machine does without
    :raises StartFailed: QEMU did not come up
    :raises WrongState: it may run on another node
    :raises MemorySaved: it is saved, and another start would make that useless
    :raises DroverError: what it needs is not there
    :raises OSError: an image cannot be opened, or a file not be made
    """
    host.tree.expect()
    document = ledger.document
    if document.saved is not None and parcel is None:
        raise MemorySaved(ledger.name)
    if arrives is None or parcel is not None:
        check_settled(document, State.STOPPED)
        document.passage = None  # it may have ended on its way
    spec = structs.replace(parcel.spec, name=ledger.name) if parcel else document.spec
    host.check(spec)
    binary = host.binary(spec.emulator)
    runtime = _plan(host, ledger, binary, spec, parcel)
    document.generation, document.runtime, runtime.paused = runtime.generation, runtime, paused
    begun = document.restart if again else None
    document.restart = begun and structs.replace(begun, due=False, at=time.time())
    ledger.begin(RESTORE if parcel else "start", paused=paused or arrives is not None)
    try:
        notices = _make(host, ledger, binary, runtime, fds, parcel)
        with _greeted(ledger) as vm:
            finish(vm, runtime, paused=paused or arrives is not None)
            if arrives is not None:
                arrives(vm)
    except BaseException as error:
        _undo(host, ledger, error)
        raise
    document.machine = runtime.machine
    ledger.commit()
    return notices


def start_beside(host: Host, ledger: Ledger, parcel: Parcel, mark: str) -> tuple[QmpConnection, list[str]]:
    """Start a second QEMU of an instance that runs: it waits for its machine. What fails is the caller's to undo.

    :param ledger: of the second one
    :param parcel: the machine
    :param mark: of the run: see :class:`.record.Runtime`
    :returns: a connection to it, and notices, in words
    """
    binary = host.binary(parcel.spec.emulator)
    runtime = _plan(host, ledger, binary, parcel.spec, parcel)
    runtime.mark, ledger.document.runtime = mark, runtime
    ledger.save()
    notices = _make(host, ledger, binary, runtime, {}, parcel, held=True)
    vm = _greeted(ledger)
    try:
        finish(vm, runtime, paused=True)
    except BaseException:
        vm.close()
        raise
    return vm, notices


def finish(vm: QmpConnection, runtime: Runtime, *, paused: bool) -> None:
    """What is left to do when QEMU answers and the guest has not run yet. May be repeated."""
    spec = runtime.spec
    pin_vcpus(vm, spec)
    for protocol, screen in (("vnc", spec.vnc), ("spice", spec.spice)):
        if screen is not None and screen.password is not None:
            vm.set_password(protocol, screen.password.secret)
    for disk in spec.disks:
        if disk.throttle is not None:
            vm.set_disk_throttle(disk.id, disk.throttle.limits)
    if spec.disks:
        vm.remove_fdsets([disk.id for disk in spec.disks])
    for nic in spec.nics:
        if nic.link_state == "down":
            vm.set_link(nic.id, up=False)
    if not paused:
        vm.cont()


def _plan(host: Host, ledger: Ledger, binary: Binary, spec: Spec, parcel: Parcel | None) -> Runtime:
    document = ledger.document
    verdict = host.acceleration(binary, spec.acceleration)
    wants = spec.acceleration == "auto"
    if parcel is not None and verdict.accelerator != parcel.accelerator:
        by = f"{verdict.accelerator}, by which it would run now"
        raise NotSupported(f"the memory of a machine that ran by {parcel.accelerator}", by=by)
    return Runtime(
        generation=document.generation + 1,
        boot_id=host.boot_id,
        spec=spec,
        emulator=binary.path,
        version=binary.version,
        machine=binary.resolve_machine(parcel.machine if parcel else document.machine or spec.machine.type),
        accelerator=verdict.accelerator,
        notice=f"it runs without KVM, many times slower: {verdict.reason}" if wants and verdict.reason else "",
    )


def _make(
    host: Host, ledger: Ledger, binary: Binary, runtime: Runtime, taps: Taps, parcel: Parcel | None, held: bool = False
) -> list[str]:
    """Prepare what the command line needs, and make the process. Our copies of descriptors are closed at the end."""
    paths, spec = ledger.paths, runtime.spec
    check_servers(ledger.name, spec)
    identity = host.identity(spec.uuid, runtime.accelerator)
    host.make_folders(paths, identity)
    with ExitStack() as lent:
        boot, boot_fds = _open_boot(lent, spec.boot)
        plan = argv.build(structs.replace(spec, boot=boot), _given(ledger, runtime, parcel), binary)
        fds = dict(_listen(lent, ledger, plan.fds))
        for need in plan.disks:
            fds |= _open_disk(lent, need)
        if CONSOLE_LOG in plan.fds:
            fds[CONSOLE_LOG] = logs.opened(lent, paths.console_log)
        runtime.devices = {device.id: _device(device) for device in plan.devices}
        found, notices = _plug_nics(lent, runtime, taps, arrives=held or ledger.document.passage is not None)
        log = logs.opened(lent, paths.log)
        logs.begin(log, runtime.generation)
        group, lacks = host.group(f"{paths.name}{runtime.mark and f'-{runtime.mark}'}", spec.uuid)
        runtime.uid = None if identity is None else identity.uid
        runtime.cgroup = "" if group is None else group.place  # a scope's is known later
        if spec.vsock_cid:
            fds["vsock"] = _open_vsock(lent)
        if spec.tpm is not None:
            fds["tpm"] = start_tpm(lent, host.paths, ledger, identity, group, log)
        runtime.argv = [binary.path, *plan.resolve(fds | found)]

        def record(process: Process) -> None:
            runtime.pid, runtime.start_time = process.pid, process.start_time
            lacks.extend(_limit(group, spec.limits))
            runtime.cgroup = "" if group is None else group.place
            ledger.step("run")

        spawn(
            runtime.argv, status_path=paths.exit_status, log_fd=log,
            fds=[*boot_fds, *((fds | found)[name] for name in plan.fds)],
            identity=identity, cgroup=group, before=record, root=_own_root(lent, ledger, runtime),
        ).close()  # fmt: skip
    return [*([runtime.notice] if runtime.notice else []), *lacks, *notices]


def _own_root(lent: ExitStack, ledger: Ledger, runtime: Runtime) -> int | None:
    """A root directory of its own, where it is wanted: the namespace with it."""
    if not runtime.spec.chroot:
        return None
    paths = ledger.paths
    shown = view(runtime.spec, runtime.emulator, paths.private, runtime.accelerator)
    try:
        return lent.enter_context(own_root(paths.run, shown))
    except OSError as error:
        why = f"{error.strerror}: {error.filename}" if error.filename else str(error)
        raise SpawnFailed(runtime.emulator, f"no chroot could be made: {why}") from error


def _limit(group: Cgroup | None, wanted: LimitSpec) -> list[str]:
    """Set the limits, before anything in the group executes; what it lacks, in words."""
    if group is None or not group.place:
        unlimited = [] if wanted == LimitSpec() else ["limits: they need a control group"]
        return unlimited if group is None else [*group.notices, *unlimited]
    group.limit(Limits(memory=wanted.memory, cpus=wanted.cpus, threads=wanted.threads))
    return group.notices


def _given(ledger: Ledger, runtime: Runtime, parcel: Parcel | None) -> argv.Given:
    paths, spec, passage = ledger.paths, runtime.spec, ledger.document.passage
    code = variables = ""
    if spec.firmware.type == "uefi":
        found = find_firmware(spec.firmware, runtime.machine)
        _make_variables(found.vars_template, paths.nvram)
        code, variables = found.code, str(paths.nvram)
    if spec.cloud_init is not None:
        replace(paths.seed, seed_image(spec))
    names = [name for need in disk_needs(spec) for name, layer in zip(need.fds, need.layers, strict=True)
             if stat.S_ISBLK(os.stat(layer.path).st_mode)]  # fmt: skip
    return argv.Given(
        machine=runtime.machine, accelerator=runtime.accelerator, private=paths.private,
        block_devices=frozenset(names), firmware_code=code, firmware_vars=variables,
        places=parcel.places if parcel else ledger.document.places,
        seed=str(paths.seed) if spec.cloud_init else "", incoming=passage is not None or parcel is not None,
        board=parcel.board if parcel else passage.board if passage else None,
    )  # fmt: skip


def _open_boot(lent: ExitStack, boot: BootSpec) -> tuple[BootSpec, list[int]]:
    """Kernel and initramfs by descriptors of ours: QEMU's own user may not be let into the folder where they lie."""
    said, fds = {}, []
    for field in ("kernel", "initrd"):
        if path := getattr(boot, field):
            fds.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
            lent.callback(os.close, fds[-1])
            said[field] = f"/proc/self/fd/{fds[-1]}"
    return structs.replace(boot, **said), fds


def _open_vsock(lent: ExitStack) -> int:
    """The kernel's side of a guest's vsock.

    :raises NotSupported: the host has none
    """
    try:
        fd = os.open(_VSOCK, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise NotSupported("vsock_cid", f"{_VSOCK} ({error.strerror}): modprobe vhost_vsock", by="this host") from error
    lent.callback(os.close, fd)
    return fd


def _make_variables(template: str, store: Path) -> None:
    """An instance's own variables are made once: the guest's boot entries are in them."""
    if not store.exists():
        replace(store, Path(template).read_bytes())


def _plug_nics(
    lent: ExitStack, runtime: Runtime, taps: Taps, *, arrives: bool
) -> tuple[dict[str, int], list[str]]:
    """Make the host's side of all cards. What is made is known by its name, and released by it.

    :param arrives: the guest may run elsewhere yet: no packet for it is to come in here
    """
    spec, fds, notices = runtime.spec, dict[str, int](), list[str]()
    for index, nic in enumerate(spec.nics):
        if nic.mode == "user":
            continue
        given = taps.get(nic.id, ())
        name = tap_of(runtime, nic.id)
        plugged = lent.enter_context(
            net.plug(nic, spec.name, uuid=spec.uuid, index=index, name=name, given=given, held=arrives)
        )
        runtime.devices[nic.id].tap = plugged.name
        for kind, numbers in (("nic", plugged.tap_fds), ("vhost", plugged.vhost_fds)):
            fds |= {f"{kind}.{nic.id}.{pair}": fd for pair, fd in enumerate(numbers)}
        notices += plugged.notices
    return fds, notices


def _device(built: argv.Built) -> Device:
    return Device(kind=built.kind, bus=built.bus, addr=built.addr, size=built.size)


def _listen(lent: ExitStack, ledger: Ledger, wanted: tuple[str, ...]) -> Mapping[str, int]:
    listeners = lent.enter_context(Listeners())
    for name in (*MONITORS, "serial", "agent"):
        if name in wanted:
            listeners.bind(name, ledger.paths.socket(name))
    return listeners.fds


def _open_disk(lent: ExitStack, need: DiskNeed) -> Mapping[str, int]:
    chain = lent.enter_context(open_chain(need.layers, read_only=need.read_only, cache=need.cache))
    return dict(zip(need.fds, chain.fds, strict=True))


def _greeted(ledger: Ledger) -> QmpConnection:
    """A connection to a QEMU that has just been started.

    :raises StartFailed: it ended instead
    """
    runtime = ledger.document.runtime
    pid = runtime.pid if runtime is not None else None
    vm = QmpConnection(ledger.paths.socket("control"), timeout=GREETING_TIMEOUT, pid=pid)
    try:
        vm.connect()
    except MonitorError as error:
        raise StartFailed(ledger.name, f"QEMU did not come up ({error})", log_tail(ledger)) from error
    return vm


def _undo(host: Host, ledger: Ledger, error: BaseException) -> None:
    """After a failure: nothing of the start stays, but the reason.

    Where even that fails, the intent stays, and whoever comes next takes it from there.
    """
    try:
        end_process(host, ledger)
        conclude(host, ledger, Stop(reason="start-failed", at=0, detail=str(error), log=log_tail(ledger)))
    except (DroverError, OSError) as failure:
        error.add_note(f"undo of the start failed: {failure}")
