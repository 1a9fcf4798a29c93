"""QMP's commands for images, by avocado-vt's names."""

from typing import Any

from .errors import QMPCmdError
from .monitor import Monitor


class _Block(Monitor):
    """Each method runs one command, returns what QEMU returned, and raises what `cmd` raises."""

    cmd: Any
    query: Any
    send_args_cmd: Any

    def _known(self, cmd: str, args: Any = None, correct: bool = False) -> Any:
        """Run a command, if QEMU has it; `correct` finds the name by which it has it."""
        if correct:
            cmd = self.get_workable_cmd(cmd)
        self.verify_supported_cmd(cmd)
        return self.cmd(cmd, args)

    # -- jobs ------------------------------------------------------------

    def live_snapshot(self, device: str, snapshot_file: str, **kwargs: Any) -> Any:
        """Write on into a new image; `format` is its format, and `mode` says who makes it."""
        chosen = {"format": "qcow2", "mode": "absolute-paths", **kwargs}
        return self.cmd("blockdev-snapshot-sync", {**chosen, "device": device, "snapshot-file": snapshot_file})

    def block_stream(
        self,
        device: str,
        speed: Any = None,
        base: Any = None,
        cmd: str = "block-stream",
        correct: bool = True,
        backing_mask_protocol: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Copy what lies below an image into it; `speed` in bytes per second."""
        more = self._build_args(speed=speed, base=base or None, backing_mask_protocol=backing_mask_protocol)
        return self._known(cmd, {**kwargs, "device": device, **more}, correct)

    def block_commit(
        self,
        device: str,
        speed: Any = None,
        base: Any = None,
        top: Any = None,
        cmd: str = "block-commit",
        correct: bool = True,
        backing_mask_protocol: Any = None,
    ) -> Any:
        """Write an image's content into one below it; `speed` in bytes per second."""
        more = self._build_args(speed=speed or None, base=base or None, top=top or None)
        more |= self._build_args(backing_mask_protocol=backing_mask_protocol)
        return self._known(cmd, {"device": device, **more}, correct)

    def set_block_job_speed(
        self, device: str, speed: Any = 0, cmd: str = "block-job-set-speed", correct: bool = True
    ) -> Any:
        """Set a job's speed, in bytes per second."""
        return self._known(cmd, {"device": device, "speed": speed}, correct)

    def cancel_block_job(self, device: str, cmd: str = "block-job-cancel", correct: bool = True) -> Any:
        """Cancel a job."""
        return self._known(cmd, {"device": device}, correct)

    def pause_block_job(self, device: str, cmd: str = "block-job-pause", correct: bool = True) -> Any:
        """Pause a job."""
        return self._known(cmd, {"device": device}, correct)

    def resume_block_job(self, device: str, cmd: str = "block-job-resume", correct: bool = True) -> Any:
        """Let a paused job go on."""
        return self._known(cmd, {"device": device}, correct)

    def query_block_job(self, device: str) -> Any:
        """The job on a device; empty where there is none."""
        return next((job for job in self.info("block-jobs") if job.get("device") == device), {})

    def query_jobs(self) -> Any:
        """All jobs."""
        return self.query("jobs")

    def job_dismiss(self, identifier: str) -> Any:
        """Forget a job that has ended."""
        return self._known("job-dismiss", {"id": identifier})

    def block_mirror(
        self, device: str, target: str, sync: str, cmd: str = "drive-mirror", correct: bool = True, **kwargs: Any
    ) -> Any:
        """Copy a device into a new image; `kwargs` are more of the command's arguments."""
        if correct:
            cmd = self.get_workable_cmd(cmd)
        mode = "full" if cmd.startswith("__com.redhat") else "sync"
        return self._known(cmd, {**kwargs, "device": device, "target": target, mode: sync})

    def block_reopen(
        self,
        device: str,
        new_image_file: str,
        image_format: str,
        cmd: str = "block-job-complete",
        correct: bool = True,
    ) -> Any:
        """Let a device use the image that was copied into."""
        if correct:
            cmd = self.get_workable_cmd(cmd)
        image = {"new-image-file": new_image_file, "format": image_format} if cmd.startswith("__") else {}
        return self._known(cmd, {"device": device, **image})

    def drive_backup(
        self,
        device: str,
        target: str,
        format: str,
        sync: str,
        speed: Any = 0,
        mode: str = "absolute-paths",
        bitmap: str = "",
    ) -> Any:
        """Copy a device as it is now; `bitmap` is for the incremental ones."""
        args = {"device": device, "target": target, "format": format, "sync": sync, "mode": mode}
        if sync.lower() == "incremental":
            args["bitmap"] = bitmap
        return self._known("drive-backup", {**args, **({"speed": speed} if speed else {})})

    def blockdev_backup(self, options: Any) -> Any:
        """Copy a node as it is now."""
        return self._known("blockdev-backup", options)

    def blockdev_create(self, job_id: str, options: Any) -> Any:
        """Make an image, in a job."""
        return self._known("blockdev-create", {"job-id": job_id, "options": options})

    def transaction(self, job_list: Any) -> Any:
        """Do all of these actions, or none."""
        return self.cmd("transaction", {"actions": job_list})

    # -- nodes and media -------------------------------------------------

    def blockdev_add(self, props: Any) -> Any:
        """Make a node."""
        return self._known("blockdev-add", props)

    def blockdev_del(self, node_name: str) -> Any:
        """Remove a node that nothing uses."""
        return self._known("blockdev-del", {"node-name": node_name})

    def blockdev_reopen(self, props: Any) -> Any:
        """Open nodes anew with other options."""
        return self._known("blockdev-reopen", props)

    def x_blockdev_reopen(self, props: Any) -> Any:
        """Open a node anew with other options (QEMU 4.0 to 6.0)."""
        return self._known("x-blockdev-reopen", props)

    def query_named_block_nodes(self) -> Any:
        """All nodes."""
        return self._known("query-named-block-nodes")

    def get_backingfile(self, device: str) -> Any:
        """The backing file of a device; None where there is none."""
        for block in self.query("block"):
            if block["device"] == device:
                return block.get("inserted", {}).get("backing_file")
        return None

    def block_resize(self, device: Any, size: Any, node_name: Any = None) -> Any:
        """Resize a device, or a node; `size` in bytes."""
        args = self._build_args(device=device, node_name=node_name, size=size)
        return self.send_args_cmd("block_resize " + ",".join(f"{key}={value}" for key, value in args.items()))

    def eject_cdrom(self, device: str, force: bool = False) -> Any:
        """Take the medium out; `force` where the guest has locked it."""
        return self._known("eject", {"device": device, "force": force})

    def change_media(self, device: str, target: str) -> Any:
        """Put another medium in (QEMU before 6.0)."""
        return self._known("change", {"device": device, "target": target})

    def blockdev_open_tray(self, dev_id: str, force: Any = None) -> Any:
        """Open a tray; `force` where the guest has locked it."""
        return self._known("blockdev-open-tray", self._build_args(id=dev_id, force=force))

    def blockdev_close_tray(self, dev_id: str) -> Any:
        """Close a tray."""
        return self._known("blockdev-close-tray", {"id": dev_id})

    def blockdev_remove_medium(self, dev_id: str) -> Any:
        """Take the medium out of an open tray."""
        return self._known("blockdev-remove-medium", {"id": dev_id})

    def blockdev_insert_medium(self, dev_id: str, node_name: str) -> Any:
        """Put a node into an open tray."""
        return self._known("blockdev-insert-medium", {"id": dev_id, "node-name": node_name})

    def blockdev_change_medium(
        self, dev_id: str, filename: str, fmt: Any = None, mode: Any = None, force: Any = None
    ) -> Any:
        """Put an image in; `mode` says whether it is read-only."""
        more = self._build_args(format=fmt, read_only_mode=mode, force=force)
        return self._known("blockdev-change-medium", {"id": dev_id, "filename": filename, **more})

    # -- dirty bitmaps ---------------------------------------------------

    def operate_dirty_bitmap(self, operation: str, node: str, name: str, granularity: int = 65536) -> Any:
        """Do ``add``, ``remove`` or ``clear`` with a bitmap; each has a method of its own now."""
        cmd = self.get_workable_cmd(f"block-dirty-bitmap-{operation}")
        more = {"granularity": granularity} if operation == "add" else {}
        return self._operate_dirty_bitmap(cmd, node, name, **more)

    def _operate_dirty_bitmap(self, cmd: str, node: str, name: str, **kargs: Any) -> Any:
        return self._known(cmd, {"node": node, "name": name, **self._build_args(**kargs)})

    def block_dirty_bitmap_add(
        self, node: str, name: str, disabled: Any = None, granularity: Any = None, persistent: Any = None
    ) -> Any:
        """Make a bitmap."""
        cmd, args = "block-dirty-bitmap-add", {"granularity": granularity, "persistent": persistent}
        try:
            return self._operate_dirty_bitmap(cmd, node, name, disabled=disabled, **args)
        except QMPCmdError as error:
            if "'disabled' is unexpected" not in str(error):  # QEMU 3.0 had it with x-
                raise
        return self._operate_dirty_bitmap(cmd, node, name, x_disabled=disabled, **args)

    def block_dirty_bitmap_remove(self, node: str, name: str) -> Any:
        """Remove a bitmap."""
        return self._operate_dirty_bitmap("block-dirty-bitmap-remove", node, name)

    def block_dirty_bitmap_clear(self, node: str, name: str) -> Any:
        """Empty a bitmap."""
        return self._operate_dirty_bitmap("block-dirty-bitmap-clear", node, name)

    def block_dirty_bitmap_enable(self, node: str, name: str) -> Any:
        """Let a bitmap follow what is written."""
        return self._operate_dirty_bitmap("block-dirty-bitmap-enable", node, name)

    def x_block_dirty_bitmap_enable(self, node: str, name: str) -> Any:
        """The same in QEMU 3.0 and 3.1."""
        return self._operate_dirty_bitmap("x-block-dirty-bitmap-enable", node, name)

    def block_dirty_bitmap_disable(self, node: str, name: str) -> Any:
        """Let a bitmap stay as it is."""
        return self._operate_dirty_bitmap("block-dirty-bitmap-disable", node, name)

    def x_block_dirty_bitmap_disable(self, node: str, name: str) -> Any:
        """The same in QEMU 3.0 and 3.1."""
        return self._operate_dirty_bitmap("x-block-dirty-bitmap-disable", node, name)

    def block_dirty_bitmap_merge(self, node: str, src_bitmaps: Any, dst_bitmap: str) -> Any:
        """Add bitmaps to one."""
        args = {"node": node, "bitmaps": src_bitmaps, "target": dst_bitmap}
        return self._known("block-dirty-bitmap-merge", args)

    def x_block_dirty_bitmap_merge(self, node: str, src_bitmap: Any, dst_bitmap: str) -> Any:
        """Add a bitmap to another (QEMU 3.0 and 3.1)."""
        args = {"node": node, "src_name": src_bitmap, "dst_name": dst_bitmap}
        return self._known("x-block-dirty-bitmap-merge", args)

    def debug_block_dirty_bitmap_sha256(self, node: str, bitmap: str) -> Any:
        """The checksum of a bitmap."""
        return self._known("debug-block-dirty-bitmap-sha256", {"node": node, "name": bitmap})

    def x_debug_block_dirty_bitmap_sha256(self, node: str, bitmap: str) -> Any:
        """The checksum of a bitmap, where QEMU has it with ``x-``."""
        return self._known("x-debug-block-dirty-bitmap-sha256", {"node": node, "name": bitmap})

    # -- exports ---------------------------------------------------------

    def nbd_server_start(self, server: Any, tls_creds: Any = None, tls_authz: Any = None) -> Any:
        """Listen for NBD clients; `server` has the `type` of the address, and its members."""
        addr = {"type": server["type"], "data": {key: value for key, value in server.items() if key != "type"}}
        more = self._build_args(tls_creds=tls_creds or None, tls_authz=tls_authz or None)
        return self._known("nbd-server-start", {"addr": addr, **more})

    def nbd_server_add(self, device: str, export_name: Any = None, writable: Any = None, bitmap: Any = None) -> Any:
        """Export a node; `writable` is ``yes`` or ``no``."""
        more = self._build_args(name=export_name or None, bitmap=bitmap or None)
        if writable:
            more["writable"] = writable == "yes"
        return self._known("nbd-server-add", {"device": device, **more})

    def nbd_server_remove(self, export_name: str, remove_mode: Any = None) -> Any:
        """Remove an export; `remove_mode` is ``safe`` or ``hard``."""
        return self._known("nbd-server-remove", self._build_args(name=export_name, mode=remove_mode or None))

    def nbd_server_stop(self) -> Any:
        """Listen no more."""
        return self._known("nbd-server-stop")

    def block_export_add(
        self,
        uid: str,
        export_type: str,
        node_name: str,
        iothread: Any = None,
        fixed_iothread: Any = None,
        writable: Any = None,
        writethrough: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Export a node; `kwargs` are what exports of this type have."""
        more = self._build_args(
            writable=writable, writethrough=writethrough, iothread=iothread, fixed_iothread=fixed_iothread
        )
        args = {"type": export_type, "id": uid, "node-name": node_name, **more, **self._build_args(**kwargs)}
        return self._known("block-export-add", args)

    def block_export_del(self, uid: str, mode: Any = None) -> Any:
        """Remove an export; `mode` is ``safe`` or ``hard``."""
        return self._known("block-export-del", self._build_args(id=uid, mode=mode or None))

    def query_block_exports(self) -> Any:
        """All exports."""
        return self._known("query-block-exports")
