"""A guest of which a test knows what is in its memory, and that it runs on: whatever is done to it."""

import os
import signal
from collections.abc import Callable
from typing import Any

from drover.kvm.instance import Instance
from drover.kvm.node import Node
from drover.kvm.spec import parse
from drover.kvm.state import State
from drover.kvm.witness import Witness, watched_by
from instances import bootable, say, wait_for_shell

# In the guest: a file of 24 MiB, whose sum it knows, and a counter that runs on.
_BEGIN = (
    "mkdir -p /t; mount -t tmpfs t /t; dd if=/dev/urandom of=/t/x bs=1M count=24 2>/dev/null; md5sum /t/x > /t/sum; "
    "(while :; do usleep 10000; n=$((n+1)); echo $n > /t/m; mv /t/m /t/n; done) & true"
)


def made(node: Node, version: str, **more: Any) -> Instance:
    """A guest that has something in its memory."""
    vm = node.create(parse(bootable(version, **more)))
    vm.start()
    wait_for_shell(vm)
    say(vm, _BEGIN)
    return vm


def counted(vm: Instance) -> int:
    """What the guest's counter says; and its memory is what it was."""
    assert "x: OK" in say(vm, "md5sum -c /t/sum")
    return _counter(vm)


def _counter(vm: Instance) -> int:
    return int(next(line for line in say(vm, "cat /t/n").splitlines() if line.strip().isdecimal()))


def goes_on(vm: Instance, before: int) -> None:
    """It runs, with its memory, from where it was."""
    assert vm.show().state is State.RUNNING
    now = counted(vm)
    assert now >= before
    for _ in range(100):
        if _counter(vm) > now:
            return
    raise AssertionError("its counter stands still")


class Killed(Witness):
    """One that kills this process at a step."""

    def __init__(self, at: str) -> None:
        self._at = at

    def step(self, name: str) -> None:
        if name == self._at:
            os.kill(os.getpid(), signal.SIGKILL)


def killed_at(step: str, act: Callable[[], object]) -> None:
    """Do something in a process that is killed when it has written down that a step comes next."""
    if (pid := os.fork()) == 0:
        try:
            with watched_by(Killed(step)):
                act()
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
