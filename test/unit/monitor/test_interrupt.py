"""Ctrl-C in a blocking call: the flow is undone, and a second Ctrl-C does not reach the undo."""

import os
import signal
import threading
import time
from typing import Any

import pytest

from drover import QmpConnection
from drover.testing.fake import Do, FakeQemu


@pytest.mark.parametrize("command", ["getfd", "netdev_add", "device_add", "qom-get"])
def test_an_interrupted_hot_add_is_undone(command: str) -> None:
    held: list[str] = []

    def script(name: str, _: Any) -> Do | None:
        if name == command and not held:
            held.append(name)
            return Do.HOLD
        return None

    def press() -> None:
        while not held:
            time.sleep(0.001)
        for _ in range(3):
            time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)
        fake.release()

    before_handler = signal.getsignal(signal.SIGINT)
    with FakeQemu(script=script) as fake, QmpConnection(fake.path) as vm:
        before = fake.model.left()
        presser = threading.Thread(target=press)
        presser.start()
        interrupted = 0
        try:
            vm.hot_add_nic("n1", tap_fds=[0])
        except KeyboardInterrupt:
            interrupted += 1
        presser.join()
        assert interrupted == 1
        assert fake.model.left() == before
        assert signal.getsignal(signal.SIGINT) is before_handler
        assert vm.hot_add_nic("n1", tap_fds=[0]).id == "n1"


def test_a_wait_can_be_interrupted() -> None:
    with FakeQemu() as fake, QmpConnection(fake.path) as vm:
        timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            vm.wait_event("NEVER", timeout=30)
        timer.join()
        assert vm.query_status().running
