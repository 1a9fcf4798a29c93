"""Networks of our own, in which tests make what they like."""

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator

_CLONE_NEWNET = 0x40000000
_BURST = 64 << 10  # bytes that may go at once
_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def own_network() -> Iterator[None]:
    """A network namespace for this thread, and for whatever it starts; gone afterwards with all that is in it."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _call("unshare", _CLONE_NEWNET)
        try:
            ip("link set lo up")
            yield
        finally:
            _call("setns", before, _CLONE_NEWNET)
    finally:
        os.close(before)


class Network:
    """A network namespace that stays until it is closed and nobody is in it any more.

    :ivar path: by which the kernel knows it, for iproute2
    """

    def __init__(self) -> None:
        with own_network():
            self._fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self.path = f"/proc/{os.getpid()}/fd/{self._fd}"

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """This thread is in it, and whatever it starts."""
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _call("setns", self._fd, _CLONE_NEWNET)
            try:
                yield
            finally:
                _call("setns", before, _CLONE_NEWNET)
        finally:
            os.close(before)

    def ip(self, words: str) -> str:
        """Run iproute2's `ip` in it."""
        with self.entered():
            return ip(words)

    def close(self) -> None:
        os.close(self._fd)


class Cable:
    """Two networks that are joined by a cable with an end in each, called `wire`.

    :ivar ends: the networks
    :ivar addresses: of the ends
    :ivar addresses6: likewise, by IPv6
    """

    def __init__(self, here: Network, there: Network) -> None:
        self.ends = here, there
        self.addresses = "10.77.0.1", "10.77.0.2"
        self.addresses6 = "fd77::1", "fd77::2"
        here.ip(f"link add wire type veth peer name wire netns {there.path}")
        for end, *addresses in zip(self.ends, self.addresses, self.addresses6, strict=True):
            end.ip(f"address add {addresses[0]}/24 dev wire")
            end.ip(f"-6 address add {addresses[1]}/64 dev wire nodad")
            end.ip("link set wire up")

    def limit(self, mbit: int) -> None:
        """From now on no more goes over it in a second, each way (tc tbf): what is too much waits, or is lost."""
        for end in self.ends:
            with end.entered():
                rule = f"tc qdisc replace dev wire root tbf rate {mbit}mbit burst {_BURST} latency 100ms"
                subprocess.run(rule.split(), check=True)

    def pull(self) -> None:
        """Pull it out: both ends know at once that they have no link."""
        self.ends[0].ip("link set wire down")

    def lose(self, end: int) -> None:
        """From now on nothing that this end sends arrives, and nobody is told: its neighbour has another address."""
        self.ends[end].ip(f"neigh replace {self.addresses[1 - end]} lladdr 02:00:00:00:00:77 dev wire nud permanent")

    def mend(self) -> None:
        """As new."""
        self.ends[0].ip("link set wire up")
        for end in self.ends:
            end.ip("neigh flush dev wire nud all")


class Star:
    """Networks that are joined by a switch with a cable to each, whose end there is called `wire`.

    :ivar ends: the networks
    :ivar addresses: of the ends
    :param middle: a network for the switch
    """

    def __init__(self, middle: Network, *ends: Network) -> None:
        self.ends = ends
        self.addresses = tuple(f"10.77.0.{number}" for number in range(1, len(ends) + 1))
        self._middle = middle
        middle.ip("link add switch type bridge")
        middle.ip("link set switch up")
        for number, (end, address) in enumerate(zip(ends, self.addresses, strict=True)):
            end.ip(f"link add wire type veth peer name port{number} netns {middle.path}")
            end.ip(f"address add {address}/24 dev wire")
            end.ip("link set wire up")
            middle.ip(f"link set port{number} master switch up")

    def silence(self, end: int) -> None:
        """From now on nothing passes between this end and the others, and no link is down."""
        self._middle.ip(f"link set port{end} nomaster")

    def mend(self, end: int) -> None:
        """As new."""
        self._middle.ip(f"link set port{end} master switch")


def ip(words: str) -> str:
    """Run iproute2's `ip` with these words."""
    return subprocess.run(["ip", *words.split()], check=True, capture_output=True, text=True).stdout


def traces() -> list[str]:
    """All that somebody may leave behind in a network: devices, rules, and routes in whatever table."""
    devices = [line.split()[0] for line in ip("-brief link").splitlines()]
    routes = [ip(f"{family} route show table all").splitlines() for family in ("-4", "-6")]
    rules = [ip(f"{family} rule").splitlines() for family in ("-4", "-6")]
    # what the kernel makes by itself comes and goes
    kept = [line for lines in routes for line in lines if "proto kernel" not in line and "multicast" not in line]
    return sorted([*devices, *kept, *(line for lines in rules for line in lines)])


def _call(name: str, *arguments: int) -> None:
    if getattr(_libc, name)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
