"""The host's side of the test guest's serial ports: commands with their results, beats, disks and NICs as it sees them.

One thread a console reads both ports, so that a beat is stamped when it comes
and not when somebody looks. A live migration moves the guest to the sockets of
another QEMU: :meth:`Console.follow` takes these in before it starts, and the
console goes on as if nothing had happened, with a command in flight too.

::

    console.wait_ready()
    console.run("dd if=/dev/urandom of=/dev/vda bs=1M count=8 conv=fsync")
    before = console.run("sha256sum /dev/vda")
    console.wait_until(lambda view: "eth0" in view.nics)
    console.blackout(since=start)
"""

import selectors
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import count

from drover.errors import DroverError
from drover.testing.guest.wire import Answer, Beat, BeatPort, Blackout, CommandPort, Ready, View, blackout

__all__ = ["Beat", "Blackout", "Console", "GuestError", "GuestTimeout", "Link", "View", "blackout"]

# Seconds. A boot takes 3 s on an idle machine; two guests on one busy core took 20 s.
READY_TIMEOUT = 90.0
COMMAND_TIMEOUT = 60.0
VIEW_TIMEOUT = 30.0
# Bytes: what helper.c takes as one line (COMMAND_MAX), with room for the id.
COMMAND_LIMIT = 65_000
RECEIVE = 1 << 16
EXCERPT = 4000  # characters of the console in an error: a panic with its trace


class GuestError(DroverError):
    """The guest did not do what was asked.

    :ivar rc: the command's exit code, ``None`` where the problem is another
    :ivar output: what the command printed, or the end of the console's text
    """

    def __init__(self, problem: str, rc: int | None = None, output: str = "") -> None:
        super().__init__(f"{problem}: {output.strip()}" if output.strip() else problem)
        self.rc = rc
        self.output = output


class GuestTimeout(GuestError, TimeoutError):
    """The guest did not get there in time. What it does meanwhile is unknown."""


class Link:
    """The two serial sockets of one QEMU, connected.

    :param commands: of ttyS0
    :param beats: of ttyS1
    """

    def __init__(self, commands: socket.socket, beats: socket.socket) -> None:
        self.commands = commands
        self.beats = beats
        self.open = {commands, beats}

    def close(self) -> None:
        """Close both sockets."""
        self.open.clear()
        self.commands.close()
        self.beats.close()


class Console:
    """One guest, over the serial sockets of the QEMU, or the two of them, that may run it.

    Safe to use from several threads: commands take their turn.

    :param link: the sockets of the QEMU that runs the guest
    :param name: of the guest, for errors
    :param obituary: asked, when the last socket closes, what happened to QEMU
    """

    def __init__(self, link: Link, name: str = "guest", obituary: Callable[[], str] = lambda: "") -> None:
        self.name = name
        self._obituary = obituary
        self._links = [link]
        self._active = link  # the one that spoke last
        self._commands, self._beats = CommandPort(), BeatPort()
        self._view = View()
        self._ids = count(time.time_ns() // 1000)  # never again the id of an earlier console of the same guest
        self._pending: tuple[int, bytes] | None = None
        self._answer: Answer | str | None = None  # a text: why there will be none
        self._turn = threading.Lock()
        self._changed = threading.Condition()
        self._wiring = threading.Lock()
        self._reader: tuple[threading.Thread, socket.socket] | None = None
        self._start()

    # -- what the guest says -----------------------------------------------------------------------------------------

    @property
    def view(self) -> View:
        """What is known of the guest now."""
        with self._changed:
            return self._view

    @property
    def text(self) -> str:
        """The end of what came on ttyS0, as it came."""
        with self._changed:
            return self._commands.text.decode(errors="replace")

    def beats(self, since: float = 0.0) -> list[Beat]:
        """Return the beats of this boot that arrived after a time (``time.monotonic()``); five minutes are kept."""
        with self._changed:
            return [beat for beat in self._beats.beats if beat.at >= since]

    def blackout(self, since: float = 0.0) -> Blackout:
        """Return the longest silence between beats after a time (``time.monotonic()``), over all sockets.

        :raise ValueError: fewer than two beats came since
        """
        return blackout(self.beats(since))

    def wait_until(
        self, condition: Callable[[View], bool], timeout: float = VIEW_TIMEOUT, what: str = "what was waited for"
    ) -> View:
        """Wait until the view fulfils a condition, and return that view.

        :param condition: called at each change, under a lock: it must not call the console
        :param timeout: in seconds
        :param what: for the error
        :raise GuestTimeout: it did not come in time
        :raise GuestError: the guest panicked, or QEMU went
        """
        with self._changed:
            self._wait(lambda: condition(self._view), timeout, what)
            return self._view

    def wait_ready(self, timeout: float = READY_TIMEOUT, boot: int = 1) -> View:
        """Wait until the guest takes commands for the ``boot``-th time, and beats. Timeout in seconds.

        :raise GuestTimeout: it did not in time
        :raise GuestError: the guest panicked, or QEMU went
        """

        def ready(view: View) -> bool:
            return min(view.boots, view.starts) >= boot and view.beat > 0

        return self.wait_until(ready, timeout, f"ready (boot {boot})")

    def wait_for_disk(self, name: str, timeout: float = VIEW_TIMEOUT, present: bool = True) -> View:
        """Wait until the guest sees a disk such as ``vda``, or no longer does. Timeout in seconds.

        :raise GuestTimeout: it did not in time
        :raise GuestError: the guest panicked, or QEMU went
        """
        return self.wait_until(lambda view: (name in view.disks) is present, timeout, f"disk {name} present={present}")

    def wait_for_nic(self, address: str, timeout: float = VIEW_TIMEOUT, present: bool = True) -> str:
        """Wait until the guest sees a NIC with a MAC address, or no longer does; return its name, or "".

        :param timeout: in seconds
        :raise GuestTimeout: it did not in time
        :raise GuestError: the guest panicked, or QEMU went
        """

        def names(view: View) -> list[str]:
            return [name for name, nic in view.nics.items() if nic.address == address.lower()]

        view = self.wait_until(lambda view: bool(names(view)) is present, timeout, f"NIC {address} present={present}")
        return "".join(names(view)[:1])

    # -- what it is told ---------------------------------------------------------------------------------------------

    def run(self, command: str, timeout: float = COMMAND_TIMEOUT) -> str:
        """Run a shell line in the guest and return what it printed (both streams).

        A background process that it leaves is not waited for. A line that does
        not end in time is killed when the next one comes.

        :param timeout: in seconds
        :raise ValueError: the line holds a newline, or nothing, or is too long
        :raise GuestError: the exit code is not 0 (``rc``, ``output``); the output exceeded 128 KiB or was mixed with
            kernel messages; the guest rebooted, panicked, or QEMU went
        :raise GuestTimeout: it did not end in time
        """
        with self._turn:
            answer = self._ask(command, timeout)
        output = answer.output.decode(errors="replace")
        if not answer.intact:
            problem = "its output is too long, or mixed with kernel messages"
            raise GuestError(f"{command}: {problem}", None, output[-EXCERPT:])
        if answer.rc:
            raise GuestError(f"{command}: exit code {answer.rc}", answer.rc, output)
        return output

    def reboot(self, timeout: float = READY_TIMEOUT) -> View:
        """Have the guest reboot, and wait until it is ready again. Timeout in seconds.

        :raise GuestTimeout: it did not in time
        :raise GuestError: the guest panicked, or QEMU went
        """
        boots = self.view.boots
        self.run("(sleep 0.1; reboot -f) &")
        return self.wait_ready(timeout, boots + 1)

    def poweroff(self) -> None:
        """Have the guest power off. Returns when it has begun: QEMU's end is the machine's to watch."""
        self.run("(sleep 0.1; poweroff -f) &")

    def dirty(self, rate: int, size: int) -> None:
        """Have the guest dirty memory in the background, page by page, until :meth:`dirty_stop`.

        :param rate: MiB a second; 0: as fast as it can
        :param size: MiB of memory that it goes through, again and again
        :raise GuestError: there is not that much memory, or it dirties already
        """
        self.run(f"helper dirty {rate} {size}")

    def dirty_stop(self) -> float:
        """Stop dirtying; return the rate that was reached, in MiB a second of guest time.

        :raise GuestError: nothing was dirtying
        """
        amount, seconds = self.run("helper dirty-stop").split()
        return float(amount) / float(seconds)

    # -- the QEMUs behind it -----------------------------------------------------------------------------------------

    def follow(self, other: "Console") -> None:
        """Take over the sockets of the QEMU that the guest will be migrated to. The other console is then over.

        To be called before the migration starts; more than two QEMUs one after another are fine.
        """
        links = other._rewire(lambda links: [])
        self._rewire(lambda mine: [*mine, *links])

    def drop(self, link: Link) -> None:
        """Close the sockets of one QEMU, which the guest has left or which has ended. The last one ends the console."""
        self._rewire(lambda links: [other for other in links if other is not link])
        link.close()

    def close(self) -> None:
        """Close all sockets. Waiting threads get a :exc:`GuestError`."""
        for link in self._rewire(lambda links: []):
            link.close()

    def _rewire(self, change: Callable[[list[Link]], list[Link]]) -> list[Link]:
        """Change the links while nobody reads: the sockets keep what comes meanwhile. Return the old ones."""
        with self._wiring:
            self._stop()
            with self._changed:
                old, self._links = self._links, change(self._links)
                self._prefer_open()
                self._changed.notify_all()
            self._start()
        return old

    # -- waiting, with the lock held ---------------------------------------------------------------------------------

    def _wait(self, done: Callable[[], bool], timeout: float, what: str) -> None:
        if not self._changed.wait_for(lambda: done() or self._over(), timeout):
            raise GuestTimeout(f"{self.name}: {what}: not within {timeout:g} s; {self._view}", None, self._excerpt())
        if not done():
            problem = "the kernel panicked" if self._view.panicked else f"the console is closed. {self._obituary()}"
            raise GuestError(f"{self.name}: {what}: {problem}", None, self._excerpt())

    def _over(self) -> bool:
        return self._view.panicked or not any(link.open for link in self._links)

    def _excerpt(self) -> str:
        return self._commands.text[-EXCERPT:].decode(errors="replace")

    def _ask(self, command: str, timeout: float) -> Answer:
        line = command.strip().encode()
        if not line or b"\n" in line or len(line) > COMMAND_LIMIT:
            raise ValueError(f"not one shell line of 1 to {COMMAND_LIMIT} bytes: {command[:80]!r}")
        with self._changed:
            number = next(self._ids)
            # The newline before it ends whatever half a line stands in the guest's buffer.
            self._answer, self._pending = None, (number, b"\n#%d %d %s\n" % (number, len(line), line))
            try:
                self._send()
                self._wait(lambda: self._answer is not None, timeout, command)
                return self._settled(command)
            finally:
                self._pending = None

    def _send(self) -> None:
        """Send the command in flight, if there is one, to where the guest is now. It takes it only once."""
        if not self._pending or not self._active.open:
            return  # closed: the wait for its answer ends by that
        line = self._pending[1]
        try:
            sent = self._active.commands.send(line, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            sent = 0
        except OSError:
            return  # the reader is about to see the end of that socket
        if sent < len(line):
            self._settle("the guest does not read its console")

    def _settle(self, answer: Answer | str) -> None:
        self._answer, self._pending = answer, None
        self._changed.notify_all()

    def _settled(self, command: str) -> Answer:
        assert self._answer is not None
        if isinstance(self._answer, str):
            raise GuestError(f"{self.name}: {command}: {self._answer}", None, self._excerpt())
        return self._answer

    def _prefer_open(self) -> None:
        """Leave a closed or dropped link for one that may still speak."""
        if self._active.open and self._active in self._links:
            return
        for link in self._links:
            if link.open:
                self._active = link
        self._send()

    # -- the reader --------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        if not any(link.open for link in self._links):
            return
        stop, stopped = socket.socketpair()
        thread = threading.Thread(target=self._read, args=(stopped,), name=f"console of {self.name}", daemon=True)
        self._reader = thread, stop
        thread.start()

    def _stop(self) -> None:
        if self._reader:
            thread, stop = self._reader
            stop.close()
            thread.join()
            self._reader = None

    def _read(self, stopped: socket.socket) -> None:
        with stopped, selectors.DefaultSelector() as selector:
            selector.register(stopped, selectors.EVENT_READ)
            for link in self._links:
                for sock in link.open:
                    selector.register(sock, selectors.EVENT_READ, link)
            while True:
                ready = [key for key, _ in selector.select()]
                if any(key.fileobj is stopped for key in ready):
                    return
                # What the guest said where it was came before what it says where it is now, so that is read first,
                # and to its end: when a link speaks up, the other one's last words are in its sockets.
                for link in sorted({self._active, *(key.data for key in ready)}, key=self._elsewhere):
                    self._drain(link, selector)

    def _elsewhere(self, link: Link) -> bool:
        return link is not self._active

    def _drain(self, link: Link, selector: selectors.BaseSelector) -> None:
        for sock in list(link.open):
            while (data := _receive(sock)) is not None:
                at = time.monotonic()
                if data:
                    self._take(link, sock, data, at)
                    continue
                selector.unregister(sock)
                with self._changed:
                    link.open.discard(sock)
                    self._prefer_open()
                    self._changed.notify_all()
                break

    def _take(self, link: Link, sock: socket.socket, data: bytes, at: float) -> None:
        with self._changed:
            if link is not self._active:
                self._active = link
                self._send()
            if sock is link.beats:
                self._view = self._beats.feed(data, at, self._view)
            else:
                self._hear(data)
            self._changed.notify_all()

    def _hear(self, data: bytes) -> None:
        for said in self._commands.feed(data):
            if isinstance(said, Ready):
                self._view = replace(self._view, boots=self._view.boots + 1)
                if self._pending:
                    self._settle("the guest rebooted meanwhile")
            elif self._pending and said.id == self._pending[0]:
                self._settle(said)
        self._view = replace(self._view, panicked=self._commands.panicked)


def _receive(sock: socket.socket) -> bytes | None:
    """Return what came, nothing at the end, ``None`` when there is nothing yet."""
    try:
        return sock.recv(RECEIVE, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return None
    except OSError:
        return b""
