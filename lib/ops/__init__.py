"""What to do with one QEMU, as port-neutral flows: short ``async def`` functions that await only their port.

The same flow runs on asyncio and on a caller's own thread (:mod:`drover.monitor`),
and in tests to any step, to fail or be cancelled there. No flow imports asyncio,
time, socket or threading.

- :mod:`.port`       :class:`~.port.Port`: all that a flow may await
- :mod:`.undo`       :class:`~.undo.Undo`: each step with its way back
- :mod:`.power`      run state: stop, cont, powerdown, reset, quit
- :mod:`.inventory`  what there is: PCI, block, CPUs, memory; :mod:`.qom`: QEMU's objects and their properties
- :mod:`.cpu_model`  what its CPUs are, with all their flags
- :mod:`.cpu`  :mod:`.memory`  :mod:`.usb`  :mod:`.balloon`   what else comes and goes while the machine runs
- :mod:`.counters`   what a guest has read, written and sent so far
- :mod:`.display`    the screen's picture, VNC and SPICE; :mod:`.input`: keyboard and mouse
- :mod:`.reaction`   what QEMU does when the guest ends, panics or hangs
- :mod:`.slots`      free PCI slots and SCSI targets (pure); :mod:`.topology` asks QEMU for them; :mod:`.reservations`
  what flows have chosen of them
- :mod:`.events`     waiting for events
- :mod:`.image`      what an image file says of itself (pure)
- :mod:`.unplug`     asking the guest to let go of a device, and observing the end
- :mod:`.nic`  :mod:`.disk`  :mod:`.vfio`   hotplug; :mod:`.virtio` what the guest's drivers make of it
- :mod:`.jobs`       background jobs: progress, steering, the end; :mod:`.blockjobs` those that copy
- :mod:`.snapshots`  of several disks at one moment; :mod:`.actions` what a transaction is made of (pure)
- :mod:`.bitmaps`    dirty bitmaps; :mod:`.throttle` I/O limits; :mod:`.nodes` block nodes as a tree
- :mod:`.nbd`        disks on an NBD server, which is asked before QEMU is; :mod:`.exports` QEMU as one
- :mod:`.mirrors`    disks on their way to another QEMU; :mod:`.blanks` that other one
- :mod:`.rescue`     out of band, for when QEMU's main loop hangs
- :mod:`.fdset`      descriptors that go to QEMU
- :mod:`.migration`  one side of a migration: start, watch, end; :mod:`.migration_settings` its knobs,
  :mod:`.migration_tls` its keys
- :mod:`.agent_port` :class:`~.agent_port.AgentPort`: a guest's agent; :mod:`.agent` :mod:`.agent_exec`
  :mod:`.agent_file` :mod:`.agent_freeze` what it does; :mod:`.agent_channel` what QEMU knows of it
"""
