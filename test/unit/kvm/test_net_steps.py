"""A NIC's host side when we fail, or are killed, at whatever step of making it."""

import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType

import pytest

from drover.errors import NetworkError
from drover.kvm import net, netlink
from drover.kvm.net import plug, release, tap_name
from drover.kvm.spec import Nic
from netns import ip, own_network, traces
from vswitch import open_vswitch

pytestmark = pytest.mark.once  # what stays behind is the kernel's

UUID = "6e7e5d9c-9d6f-4c39-8a4e-0d8ff1d1a6a1"
NAME = tap_name(UUID, "nic0")
MAC = "52:54:00:12:34:56"
FOLDER = os.path.dirname(net.__file__)
FILES = {os.path.join(FOLDER, f"{name}.py") for name in ("net", "netlink", "links", "taps", "scripts", "ovs")}
# What only tidies up cannot fail, and what only looks is no step.
NO_STEP = {"plug", "_end", "close", "wrong", "_read", "_kind", "_family", "_flags", "_check", "_interface", "tap_name"}
DONE, FAILED, NO_SUCH_STEP, LEAKED, KILLED = 0, 1, 2, 3, -signal.SIGKILL
SYSTEM_CALLS = {"ioctl", "open", "fcntl", "fork_exec", "waitid"}
SLOW = ("ovs", "macvtap")
MODES = {
    "bridge": {"link": "br0", "queues": 2},
    "routed": {"link": "100", "ip": "10.9.0.5"},
    "macvtap": {"link": "up0", "queues": 2},
    "ovs": {"link": "ovs0"},
}
Remains = Callable[[], list[str]]


@pytest.fixture(autouse=True)
def network() -> Iterator[None]:
    """A network with a bridge, and a device that macvtap devices can stand on."""
    with own_network():
        ip("link add br0 type bridge")
        ip("link add up0 type veth peer up1")
        ip("link set up0 up")
        ip("link set up1 up")
        netlink.bridges()  # is loaded in this process, and so in all its children
        yield


# netlink and Open vSwitch take their time
@pytest.fixture(params=[pytest.param(mode, marks=[pytest.mark.slow] * (mode in SLOW)) for mode in MODES])
def nic(request: pytest.FixtureRequest, tmp_path: Path) -> Nic:
    """A NIC of each mode, with scripts that keep a file, as others keep a lease."""
    for name, text in (("up", f"touch {tmp_path}/lease"), ("down", f"rm -f {tmp_path}/lease")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    up, down = os.fspath(tmp_path / "up"), os.fspath(tmp_path / "down")
    return Nic(id="nic0", mode=request.param, mac=MAC, script_up=up, script_down=down, **MODES[request.param])


@pytest.fixture
def remains(nic: Nic, tmp_path: Path) -> Iterator[Remains]:
    """All that can be left behind."""

    def files() -> list[str]:
        return [path.name for path in tmp_path.iterdir()]

    if nic.mode != "ovs":
        yield lambda: [*traces(), *files()]
        return
    with open_vswitch(tmp_path / "ovs") as switch:
        switch.add_bridge("ovs0")
        yield lambda: [*traces(), *files(), *switch.vsctl("list-ports", "ovs0").split()]


class Steps:
    """Does something at the n-th step of a plug: a call of one of our functions or to the system, or its end.

    :ivar names: of the steps so far
    :ivar acted: whether there was an n-th one
    """

    def __init__(self, events: tuple[str, ...], number: int, act: Callable[[], None]) -> None:
        self.names: list[str] = []
        self._events = events
        self._number = number
        self._act = act
        self.acted = False

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        """As :func:`sys.setprofile` wants it."""
        if event not in self._events or frame.f_code.co_filename not in FILES:
            return
        name = str(getattr(argument, "__name__", "")) if event.startswith("c_") else frame.f_code.co_name
        if name in SYSTEM_CALLS if event.startswith("c_") else name not in NO_STEP:
            self.names.append(f"{event} {name}")
            if len(self.names) == self._number:
                self.acted = True
                self._act()


def in_child(work: Callable[[], int]) -> int:
    """Run something in a copy of this process; return its exit status, or minus the signal that ended it."""
    pid = os.fork()
    if not pid:
        try:
            os._exit(work())
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def plugged_with(nic: Nic, steps: Steps) -> int:
    """Plug it, with these steps; return one of the exit statuses below."""
    sys.setprofile(steps)
    try:
        plug(nic, "web1", uuid=UUID, index=0)
    except NetworkError:
        return FAILED
    finally:
        sys.setprofile(None)
    return DONE if steps.acted else NO_SUCH_STEP


def fail() -> None:
    """As the system does."""
    raise OSError(errno.EIO, "failed by the test")


def test_killed_after_whatever_step_nothing_is_left_after_release(nic: Nic, remains: Remains) -> None:
    before, number, status = remains(), 0, KILLED
    while status == KILLED:
        number += 1
        steps = Steps(("return", "c_return"), number, lambda: os.kill(os.getpid(), signal.SIGKILL))
        status = in_child(partial(plugged_with, nic, steps))
        release(nic, "web1", uuid=UUID, index=0, name=NAME)
        assert remains() == before, f"step {number}"
    assert status == NO_SUCH_STEP
    assert number > 20


def test_failed_at_whatever_step_nothing_is_left(nic: Nic, remains: Remains) -> None:
    before, fds = remains(), len(os.listdir("/proc/self/fd"))

    def work() -> int:
        status = plugged_with(nic, Steps(("call", "c_call"), number, fail))
        return LEAKED if status == FAILED and len(os.listdir("/proc/self/fd")) != fds else status

    number, status = 1, FAILED
    while status == FAILED:
        status = in_child(work)
        if status == FAILED:
            assert remains() == before, f"step {number}"
            number += 1
    assert status == NO_SUCH_STEP
    assert number > 15
    release(nic, "web1", uuid=UUID, index=0, name=NAME)
