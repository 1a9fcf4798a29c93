"""Public test equipment: fakes for tests that need no QEMU, and a real guest for those that do.

::

    model.py      a strict model of one QEMU: its devices; migration_model.py: its migration; block_model.py: its disks;
                  nbd_model.py: its exports, and an NBD server of another; memory_model.py: its vCPUs and memory
    scripted.py   a port on that model, to run flows step by step; recorded.py: schemas of real QEMUs to check arguments
    fake.py       a QMP server on a real socket that misbehaves on demand

    image.py      guest_image(): kernel + initramfs of the test guest, built in seconds from the distribution's packages
                  agent_image.py: with a guest agent in it; archive.py: how they are packed
    guest/        what runs in that guest: init (PID 1), helper.c (beats, reports, commands, dirtying of memory)
    console.py    Console: the host's side of the guest's two serial ports; blackout() between its beats
    machine.py    Machine: one QEMU process with that guest, gone without trace when the ``with`` ends

Nothing in the package imports this room, except the faces that show the guest (``drover demo``).
"""
