"""What runs in the test guest, and what it says.

::

    init       PID 1, a busybox shell script: mounts, loads modules, starts the helper
    helper.c   beats, reports, commands, dirtying of memory: whatever a shell cannot do exactly or cheaply enough
    wire.py    the lines that the helper writes on the two serial ports, parsed: pure, no socket, no clock

``drover.testing.image`` packs the first two, ``drover.testing.console`` listens with the third.
"""
