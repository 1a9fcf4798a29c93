"""What runs in the test guest, and what it says.

::

    init       PID 1, a busybox shell script: mounts, loads modules, starts the helper
    helper.c   beats, reports, commands, dirtying of memory: whatever a shell cannot do exactly or cheaply enough
    agent      runs the guest's agent, in an image that has one; shutdown, chpasswd, hwclock: what the agent runs
    wire.py    the lines that the helper writes on the two serial ports, parsed: pure, no socket, no clock

``drover.testing.image`` packs the first two, ``drover.testing.agent_image`` the agent's, and
``drover.testing.console`` listens with ``wire.py``.
"""
