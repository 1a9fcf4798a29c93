"""Every verb of a QMP monitor, one line each, for both faces.

A verb is a port-neutral flow. Taken from a blocking face it is a plain function, taken
from an asyncio face a coroutine function, with the flow's own parameters and docstring.
Either connects for the call, and closes after it, where the face is not connected.
"""

from collections.abc import Callable, Coroutine
from importlib import import_module
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any, Concatenate, Generic, NamedTuple, ParamSpec, Self, TypeVar, overload

from ..ops.port import Port
from ..qmp.schema import Schema

if TYPE_CHECKING:
    from ..ops import (
        agent_channel,
        bitmaps,
        blanks,
        blockjobs,
        cdrom,
        counters,
        cpu,
        cpu_model,
        disk,
        display,
        events,
        exports,
        fdset,
        inventory,
        jobs,
        leftovers,
        memory,
        migration,
        migration_settings,
        migration_tls,
        mirrors,
        nbd,
        nic,
        nodes,
        power,
        qom,
        reaction,
        rescue,
        saving,
        snapshots,
        throttle,
        unplug,
        usb,
        vfio,
        virtio,
    )
    from ..ops import balloon as balloon_
    from ..ops import input as input_

P = ParamSpec("P")
T = TypeVar("T")
Flow = Callable[Concatenate[Port, P], Coroutine[Any, Any, T]]


class _Later(NamedTuple):
    """A flow whose module nobody has needed so far."""

    module: str
    name: str

    def flow(self) -> Callable[..., Any]:
        """It, its module imported."""
        flow: Callable[..., Any] = getattr(import_module(self.module, __package__), self.name)
        return flow


class _Flows:
    """The flows of a module, each named and none loaded."""

    def __init__(self, module: str) -> None:
        self._module = module

    def __getattr__(self, name: str) -> _Later:
        return _Later(self._module, name)


if not TYPE_CHECKING:
    # All flows of all verbs are half of what an import of this package took, and nobody uses more than some of them.
    for _name in (
        "agent_channel", "bitmaps", "blanks", "blockjobs", "cdrom", "counters", "cpu", "cpu_model", "disk",
        "display", "events", "exports", "fdset", "inventory", "jobs", "leftovers", "memory", "migration",
        "migration_settings", "migration_tls", "mirrors", "nbd", "nic", "nodes", "power", "qom", "reaction", "rescue",
        "saving", "snapshots", "throttle", "unplug", "usb", "vfio", "virtio",
    ):
        globals()[_name] = _Flows(f"..ops.{_name}")
    balloon_, input_ = _Flows("..ops.balloon"), _Flows("..ops.input")


class BlockingFace:
    """A face whose verbs return their result."""

    def perform(self, flow: Callable[[Port], Coroutine[Any, Any, T]]) -> T:
        """Run a flow that is no verb."""
        return self._run(flow, (), {})

    def _run(self, flow: Callable[..., Coroutine[Any, Any, T]], args: tuple[Any, ...], kwargs: dict[str, Any]) -> T:
        raise NotImplementedError


class AsyncFace:
    """A face whose verbs return a coroutine."""

    async def perform(self, flow: Callable[[Port], Coroutine[Any, Any, T]]) -> T:
        """Run a flow that is no verb."""
        return await self._run_async(flow, (), {})

    def _run_async(
        self, flow: Callable[..., Coroutine[Any, Any, T]], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Coroutine[Any, Any, T]:
        raise NotImplementedError


class verb(Generic[P, T]):
    """Makes a method of both faces from a flow, when it is first asked for."""

    def __init__(self, flow: Flow[P, T]) -> None:
        self._flow: Any = flow

    @property
    def flow(self) -> Flow[P, T]:
        """What it does."""
        if isinstance(self._flow, _Later):
            self._flow = self._flow.flow()
        flow: Flow[P, T] = self._flow
        return flow

    def __set_name__(self, owner: type, name: str) -> None:
        self._owner, self._name = owner, name

    @overload
    def __get__(self, face: BlockingFace, owner: type | None = None) -> Callable[P, T]: ...
    @overload
    def __get__(self, face: AsyncFace, owner: type | None = None) -> Callable[P, Coroutine[Any, Any, T]]: ...
    @overload
    def __get__(self, face: None, owner: type | None = None) -> Self: ...
    def __get__(self, face: BlockingFace | AsyncFace | None, owner: type | None = None) -> Any:
        kind = owner or type(face)
        if not issubclass(kind, BlockingFace | AsyncFace):
            return self
        function = self._bind(kind)
        return function if face is None else MethodType(function, face)

    def _bind(self, kind: type) -> FunctionType:
        """Make an ordinary method, once for a face's class: looked up for each call, it would cost more.

        It is set where the face gets its verbs, so that a class above it may have another method of that name.
        """
        side = BlockingFace if issubclass(kind, BlockingFace) else AsyncFace
        home = [base for base in kind.__mro__ if issubclass(base, self._owner) and issubclass(base, side)][-1]
        function = self._method(side)
        if self._name not in vars(home):
            setattr(home, self._name, function)
        return function

    def _method(self, side: type) -> FunctionType:
        import inspect  # not before a verb is used: it takes a while

        flow = self.flow

        def blocking(face: BlockingFace, *args: Any, **kwargs: Any) -> T:
            return face._run(flow, args, kwargs)

        async def asynchronous(face: AsyncFace, *args: Any, **kwargs: Any) -> T:
            return await face._run_async(flow, args, kwargs)

        function: Any = blocking if side is BlockingFace else asynchronous
        signature = inspect.signature(flow)
        port, *rest = signature.parameters.values()
        function.__name__ = self._name
        function.__qualname__ = f"{self._owner.__qualname__}.{self._name}"
        function.__doc__ = flow.__doc__
        function.__signature__ = signature.replace(parameters=[port.replace(name="self"), *rest])
        made: FunctionType = function
        return made


async def _query_schema(port: Port) -> Schema:
    """Return what this QEMU understands (``query-qmp-schema``), asked once for each build of QEMU."""
    return await port.schema()


class Verbs:
    """All verbs; the faces inherit them."""

    execute = verb(Port.execute)
    execute_many = verb(Port.execute_many)
    wait_event = verb(events.wait_event)
    query_schema = verb(_query_schema)

    query_status = verb(power.query_status)
    stop = verb(power.stop)
    cont = verb(power.cont)
    system_powerdown = verb(power.system_powerdown)
    system_reset = verb(power.system_reset)
    quit = verb(power.quit_machine)
    system_wakeup = verb(power.system_wakeup)
    inject_nmi = verb(power.inject_nmi)
    query_version = verb(power.query_version)
    set_action = verb(reaction.set_action)
    watchdog_set_action = verb(reaction.watchdog_set_action)

    query_pci = verb(inventory.query_pci)
    query_block = verb(inventory.query_block)
    query_block_nodes = verb(inventory.query_block_nodes)
    query_cpus = verb(inventory.query_cpus)
    query_memory = verb(inventory.query_memory)
    query_memory_devices = verb(inventory.query_memory_devices)
    query_devices = verb(inventory.query_devices)
    has_device = verb(inventory.has_device)
    query_name = verb(inventory.query_name)
    query_uuid = verb(inventory.query_uuid)
    query_kvm = verb(inventory.query_kvm)
    query_chardevs = verb(inventory.query_chardevs)
    query_iothreads = verb(inventory.query_iothreads)

    qom_list = verb(qom.qom_list)
    qom_get = verb(qom.qom_get)
    qom_set = verb(qom.qom_set)
    qom_tree = verb(qom.qom_tree)
    find_objects = verb(qom.find_objects)
    qom_list_types = verb(qom.qom_list_types)
    qom_list_properties = verb(qom.qom_list_properties)
    device_list_properties = verb(qom.device_list_properties)
    object_add = verb(qom.object_add)
    object_del = verb(qom.object_del)

    query_vnc = verb(display.query_vnc)
    query_spice = verb(display.query_spice)
    set_password = verb(display.set_password)
    expire_password = verb(display.expire_password)
    reload_vnc_certificates = verb(display.reload_vnc_certificates)
    add_client = verb(display.add_client)
    screendump = verb(display.screendump)
    screenshot = verb(display.screenshot)

    sendkey = verb(input_.sendkey)
    press_key = verb(input_.press_key)
    type_text = verb(input_.type_text)
    query_mice = verb(input_.query_mice)
    input_send_event = verb(input_.input_send_event)
    mouse_move = verb(input_.mouse_move)
    mouse_move_to = verb(input_.mouse_move_to)
    mouse_button = verb(input_.mouse_button)
    mouse_click = verb(input_.mouse_click)
    mouse_scroll = verb(input_.mouse_scroll)

    query_cpu_model = verb(cpu_model.query_cpu_model)
    query_hotpluggable_cpus = verb(cpu.query_hotpluggable_cpus)
    hot_add_cpu = verb(cpu.hot_add_cpu)
    hot_remove_cpu = verb(cpu.hot_remove_cpu)
    list_memory_devices = verb(memory.list_memory_devices)
    hot_add_dimm = verb(memory.hot_add_dimm)
    hot_remove_dimm = verb(memory.hot_remove_dimm)
    hot_add_virtio_mem = verb(memory.hot_add_virtio_mem)
    resize_virtio_mem = verb(memory.resize_virtio_mem)
    hot_remove_virtio_mem = verb(memory.hot_remove_virtio_mem)
    query_usb_buses = verb(usb.query_usb_buses)
    query_usb = verb(usb.query_usb)
    hot_add_usb = verb(usb.hot_add_usb)
    hot_remove_usb = verb(usb.hot_remove_usb)
    query_disk_counters = verb(counters.query_disk_counters)
    query_counters = verb(counters.query_counters)
    query_balloon = verb(balloon_.query_balloon)
    balloon = verb(balloon_.balloon)
    balloon_stats = verb(balloon_.balloon_stats)

    agent_connected = verb(agent_channel.agent_connected)
    wait_agent = verb(agent_channel.wait_agent)

    hot_add_nic = verb(nic.hot_add_nic)
    hot_remove_nic = verb(nic.hot_remove_nic)
    set_link = verb(nic.set_link)
    announce_arrival = verb(nic.announce_arrival)
    hot_add_disk = verb(disk.hot_add_disk)
    hot_remove_disk = verb(disk.hot_remove_disk)
    query_disk_size = verb(disk.query_disk_size)
    resize_disk = verb(disk.resize_disk)
    hot_add_vfio = verb(vfio.hot_add_vfio)
    hot_remove_vfio = verb(vfio.hot_remove_vfio)
    query_cdrom = verb(cdrom.query_cdrom)
    tidy_cdrom = verb(cdrom.tidy_cdrom)
    query_driver = verb(virtio.query_driver)
    query_drivers = verb(virtio.query_drivers)
    wait_driver = verb(virtio.wait_driver)
    change_medium = verb(cdrom.change_medium)
    eject_medium = verb(cdrom.eject_medium)
    unplug = verb(unplug.unplug)
    remove_fdsets = verb(fdset.remove_fdsets)
    remove_leftovers = verb(leftovers.remove_leftovers)

    get_migration_capabilities = verb(migration_settings.get_migration_capabilities)
    set_migration_capabilities = verb(migration_settings.set_migration_capabilities)
    reset_migration_capabilities = verb(migration_settings.reset_migration_capabilities)
    get_migration_parameters = verb(migration_settings.get_migration_parameters)
    set_migration_parameters = verb(migration_settings.set_migration_parameters)
    arm_migration = verb(migration_settings.arm_migration)
    arm_tls_server = verb(migration_tls.arm_tls_server)
    arm_tls_client = verb(migration_tls.arm_tls_client)
    disarm_tls = verb(migration_tls.disarm_tls)
    check_tls_target = verb(migration_tls.check_tls_target)
    migrate = verb(migration.migrate)
    migrate_incoming = verb(migration.migrate_incoming)
    query_migrate = verb(migration.query_migrate)
    wait_migration = verb(migration.wait_migration)
    wait_incoming = verb(migration.wait_incoming)
    migrate_continue = verb(migration.migrate_continue)
    migrate_start_postcopy = verb(migration.migrate_start_postcopy)
    migrate_cancel = verb(migration.migrate_cancel)
    save_memory = verb(saving.save_memory)
    drop_save = verb(saving.drop_save)
    load_memory = verb(saving.load_memory)
    migrate_pause = verb(rescue.migrate_pause)
    migrate_recover = verb(rescue.migrate_recover)
    query_yank = verb(rescue.query_yank)
    yank = verb(rescue.yank)

    query_jobs = verb(jobs.query_jobs)
    query_job = verb(jobs.query_job)
    query_block_jobs = verb(jobs.query_block_jobs)
    wait_job = verb(jobs.wait_job)
    job_pause = verb(jobs.job_pause)
    job_resume = verb(jobs.job_resume)
    job_cancel = verb(jobs.job_cancel)
    job_complete = verb(jobs.job_complete)
    job_finalize = verb(jobs.job_finalize)
    job_dismiss = verb(jobs.job_dismiss)
    job_set_speed = verb(jobs.job_set_speed)
    blockdev_mirror = verb(blockjobs.blockdev_mirror)
    finish_mirror = verb(blockjobs.finish_mirror)
    set_copy_mode = verb(blockjobs.set_copy_mode)
    blockdev_backup = verb(blockjobs.blockdev_backup)
    block_commit = verb(blockjobs.block_commit)
    block_stream = verb(blockjobs.block_stream)
    blockdev_create = verb(blockjobs.blockdev_create)
    transaction = verb(snapshots.transaction)
    snapshot_disks = verb(snapshots.snapshot_disks)
    query_snapshots = verb(snapshots.query_snapshots)
    internal_snapshot = verb(snapshots.internal_snapshot)
    delete_internal_snapshot = verb(snapshots.delete_internal_snapshot)
    snapshot_save = verb(snapshots.snapshot_save)
    snapshot_load = verb(snapshots.snapshot_load)
    snapshot_delete = verb(snapshots.snapshot_delete)
    query_bitmaps = verb(bitmaps.query_bitmaps)
    bitmap_add = verb(bitmaps.bitmap_add)
    bitmap_remove = verb(bitmaps.bitmap_remove)
    bitmap_clear = verb(bitmaps.bitmap_clear)
    bitmap_enable = verb(bitmaps.bitmap_enable)
    bitmap_disable = verb(bitmaps.bitmap_disable)
    bitmap_merge = verb(bitmaps.bitmap_merge)
    renew_bitmaps = verb(bitmaps.renew_bitmaps)
    query_block_tree = verb(nodes.query_block_tree)
    blockdev_add = verb(nodes.blockdev_add)
    blockdev_add_nbd = verb(nbd.blockdev_add_nbd)
    check_nbd_server = verb(nbd.check_nbd_server)
    blockdev_reopen = verb(nodes.blockdev_reopen)
    blockdev_del = verb(nodes.blockdev_del)
    remove_chain = verb(nodes.remove_chain)
    nbd_server_start = verb(exports.nbd_server_start)
    nbd_server_stop = verb(exports.nbd_server_stop)
    start_mirrors = verb(mirrors.start_mirrors)
    look_at_mirrors = verb(mirrors.look_at_mirrors)
    watch_mirrors = verb(mirrors.watch_mirrors)
    set_mirror_speeds = verb(mirrors.set_mirror_speeds)
    finish_mirrors = verb(mirrors.finish_mirrors)
    disconnect_mirrors = verb(mirrors.disconnect_mirrors)
    cancel_mirrors = verb(mirrors.cancel_mirrors)
    cut_mirrors = verb(mirrors.cut_mirrors)
    open_server = verb(blanks.open_server)
    export_disks = verb(blanks.export_disks)
    open_blanks = verb(blanks.open_blanks)
    close_blanks = verb(blanks.close_blanks)
    close_exports = verb(blanks.close_exports)
    block_export_add = verb(exports.block_export_add)
    block_export_del = verb(exports.block_export_del)
    query_block_exports = verb(exports.query_block_exports)
    throttle_group_add = verb(throttle.throttle_group_add)
    throttle_group_set = verb(throttle.throttle_group_set)
    throttle_group_del = verb(throttle.throttle_group_del)
    query_throttle_group = verb(throttle.query_throttle_group)
    set_disk_throttle = verb(throttle.set_disk_throttle)
    query_disk_throttle = verb(throttle.query_disk_throttle)
