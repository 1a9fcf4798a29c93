"""Old names of others' interfaces, over Drover: switch by changing an import.

Each face has the names, signatures and behaviour of what it stands in for, and its page
in ``doc/`` says what differs on purpose. None of them implements a protocol, a session or
a socket again: they stand on :mod:`drover.monitor` and below, and nobody imports them.

- :mod:`.qmp`     for ``qemu.qmp`` and ``qemu.qmp.legacy`` (``doc/switch-from-qemu-qmp.md``)
- :mod:`.ganeti`  for Ganeti's KVM monitor module
- :mod:`.autotest`  for avocado-vt's ``virttest.qemu_monitor`` (``doc/switch-from-avocado-vt.md``)
"""
