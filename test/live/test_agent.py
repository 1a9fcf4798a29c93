"""A real agent in a real guest, over virtio-serial, on QEMU 7.2 and 10.0: what it is asked, and what befalls it."""

import asyncio
import io
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from drover import AsyncGuestAgent, GuestAgent, QmpConnection
from drover.errors import (
    AgentError,
    AgentFrozen,
    AgentNotThere,
    AgentSlow,
    ArgumentError,
    CommandError,
    FreezeBroken,
    MonitorTimeout,
    NotSupported,
)
from drover.testing.machine import Machine
from machines import qemu_of

pytestmark = pytest.mark.live

KINDS = ["7.2-q35", "10.0-pc"]


class Face:
    """A connected agent of either face, used without await."""

    def __init__(self, machine: Machine, name: str) -> None:
        self.machine = machine
        self.loop = asyncio.new_event_loop() if name == "asyncio" else None
        self.agent: Any = AsyncGuestAgent(machine.qga) if self.loop else GuestAgent(machine.qga)
        self("connect")

    def __call__(self, verb: str, *args: Any, **kwargs: Any) -> Any:
        result = getattr(self.agent, verb)(*args, **kwargs)
        return self.loop.run_until_complete(result) if self.loop else result

    @contextmanager
    def frozen(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """Freeze, and thaw."""
        block = self.agent.frozen(*args, **kwargs)
        if self.loop is None:
            with block as freeze:
                yield freeze
            return
        freeze = self.loop.run_until_complete(block.__aenter__())
        try:
            yield freeze
        except BaseException as error:
            self.loop.run_until_complete(block.__aexit__(type(error), error, error.__traceback__))
            raise
        self.loop.run_until_complete(block.__aexit__(None, None, None))

    def run(self, command: str) -> str:
        """Run a command on the guest's console."""
        return str(self.machine.console.run(command))

    def close(self) -> None:
        self("close")
        if self.loop is not None:
            self.loop.close()


@pytest.fixture(scope="module")
def guests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Machine]]:
    disk = tmp_path_factory.mktemp("disk") / "ext4"
    disk.touch()
    subprocess.run(["truncate", "-s", "32M", disk], check=True)
    subprocess.run(["mkfs.ext4", "-q", disk], check=True)
    drive = ["-drive", f"file={disk},format=raw,if=virtio,snapshot=on"]
    nic = ["-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0,mac=52:54:00:00:00:07"]
    with ExitStack() as stack:
        machines = {}
        for kind in KINDS:
            machine = Machine(
                qemu=qemu_of(kind), machine=kind.split("-")[1], name=kind, smp=2, agent=True, extra=[*drive, *nic]
            )
            machines[kind] = stack.enter_context(machine)
        yield machines


def booted(machine: Machine) -> Machine:
    machine.wait_ready()
    machine.console.run("mount | grep -q /mnt || mount -t ext4 /dev/vda /mnt")
    return machine


@pytest.fixture(params=KINDS)
def guest(request: pytest.FixtureRequest, guests: dict[str, Machine]) -> Machine:
    return booted(guests[request.param])


@pytest.fixture(params=zip(KINDS, ["blocking", "asyncio"], strict=True), ids=["7.2-blocking", "10.0-asyncio"])
def agent(request: pytest.FixtureRequest, guests: dict[str, Machine]) -> Iterator[Face]:
    kind, name = request.param
    face = Face(booted(guests[kind]), name)
    face("sync", timeout=60)
    yield face
    face.close()


@contextmanager
def stopped(agent: Face) -> Iterator[None]:
    """The agent's process stands still."""
    agent.run("kill -STOP $(pidof qemu-ga)")
    try:
        yield
    finally:
        agent.run("kill -CONT $(pidof qemu-ga)")


def start(agent: Face) -> None:
    agent.run("(agent >/dev/null 2>&1 &)")


def end(agent: Face) -> None:
    """End the agent, so that it stays away."""
    agent.run("rm /run/agent; kill -9 $(pidof qemu-ga); while pidof qemu-ga; do usleep 10000; done")


# -- what it is asked --------------------------------------------------------


def test_who_it_is(agent: Face) -> None:
    agent("ping")
    info = agent("info")
    assert info.can("guest-exec")
    assert not info.can("guest-nosuch")
    assert agent("osinfo").id == "drover"
    assert agent("hostname") == "(none)"
    assert agent("timezone").offset == 0
    assert agent("users") == []
    assert [cpu.online for cpu in agent("vcpus")] == [True, True]
    assert all(block.online for block in agent("memory_blocks"))
    assert agent("memory_block_size") >= 1 << 20
    assert {"/dev/vda"} <= {disk.name for disk in agent("disks")}
    (root,) = agent("fsinfo")
    assert (root.mountpoint, root.type) == ("/mnt", "ext4")
    assert 0 < root.used_bytes < root.total_bytes
    (trimmed,) = agent("fstrim")
    assert (trimmed.path, trimmed.error) == ("/mnt", "")


def test_network(agent: Face) -> None:
    agent.run("ip addr replace 10.0.2.15/24 dev eth0; ip link set eth0 up")
    by_name = {interface.name: interface for interface in agent("network_interfaces")}
    eth0 = by_name["eth0"]
    assert eth0.hardware_address == "52:54:00:00:00:07"
    assert ("10.0.2.15", "ipv4", 24) in [(a.address, a.type, a.prefix) for a in eth0.ip_addresses]
    assert eth0.statistics.rx_errs == 0


def test_time_and_cpus(agent: Face) -> None:
    agent("set_time", 1e9)
    assert 1e9 <= agent("get_time") < 1e9 + 60
    agent("set_time")  # from the machine's clock, which that has set, too
    agent("set_time", time.time())
    assert abs(agent("get_time") - time.time()) < 60
    agent("set_vcpus", {1: False})
    assert [cpu.online for cpu in agent("vcpus")].count(True) == 1
    agent("set_vcpus", {1: True})
    with pytest.raises(CommandError):
        agent("set_vcpus", {7: True})
    with pytest.raises(ArgumentError):
        agent("set_time", -1)


def test_what_it_lacks(agent: Face) -> None:
    with pytest.raises(NotSupported, match="guest-nosuch"):
        agent("execute", "guest-nosuch")
    with pytest.raises(NotSupported, match="told to refuse"):
        agent("execute", "guest-get-devices")  # there is one on Windows only


# -- programs ----------------------------------------------------------------


def test_exec(agent: Face) -> None:
    done = agent("exec", "/bin/sh", ["-c", 'cat; echo "$A $1" >&2; exit 3', "sh", "b c"], input=b"\0in", env={"A": "a"})
    assert (done.exit_code, done.signal, done.stdout, done.stderr) == (3, None, b"\0in", b"a b c\n")
    assert not done.ok
    killed = agent("exec", "sh", ["-c", "kill -TERM $$"])
    assert (killed.exit_code, killed.signal) == (None, 15)
    with pytest.raises(CommandError):
        agent("exec", "/nosuch")
    with pytest.raises(ArgumentError):
        agent("exec", "/bin/ls", "-l")
    with pytest.raises(MonitorTimeout, match="sleep"):
        agent("exec", "sleep", ["1000"], timeout=0.3)
    assert "sleep 1000" not in agent.run("ps")


def test_exec_more_than_the_agent_keeps(guests: dict[str, Machine]) -> None:
    with GuestAgent(booted(guests[KINDS[0]]).qga) as agent:
        big = agent.exec("sh", ["-c", "head -c 17000000 /dev/zero; echo err >&2"])
        assert (len(big.stdout), big.stdout_truncated) == (16 << 20, True)
        assert (big.stderr, big.stderr_truncated) == (b"err\n", False)


def test_stream(agent: Face) -> None:
    came: list[tuple[str, bytes, float]] = []
    script = "echo one; while [ ! -e /run/go ]; do usleep 10000; done; echo two; echo err >&2; exit 5"

    def on_output(stream: str, data: bytes) -> None:
        if not came:  # it runs on only after its first words have reached us
            agent.run("touch /run/go")
        came.append((stream, data, time.monotonic()))

    done = agent("exec_stream", "sh", ["-c", script], on_output=on_output, timeout=60)
    assert done.exit_code == 5
    assert [data for stream, data, _ in came if stream == "stdout"] == [b"one\n", b"two\n"]
    assert [data for stream, data, _ in came if stream == "stderr"] == [b"err\n"]
    agent.run("rm /run/go")
    merged = io.BytesIO()
    done = agent(
        "exec_stream",
        "sh",
        ["-c", "echo a; echo b >&2; cat"],
        on_output=lambda _, data: merged.write(data),
        merge=True,
        input=b"c",
    )
    assert (done.ok, merged.getvalue()) == (True, b"a\nb\nc")
    assert agent("exec_stream", "nosuch", on_output=lambda *_: None).exit_code == 127
    assert agent.run("ls /tmp") == ""


def test_stream_much(agent: Face) -> None:
    """Nothing is lost, and nothing comes twice."""
    sink = io.BytesIO()
    done = agent("exec_stream", "sh", ["-c", "seq 1 150000"], on_output=lambda _, data: sink.write(data), timeout=120)
    assert done.ok
    assert sink.getvalue() == b"".join(b"%d\n" % number for number in range(1, 150001))


def test_stream_has_ends(agent: Face) -> None:
    """It ends with all that it started: past the limit, at the time-out, at an error of the caller."""
    sink = io.BytesIO()
    done = agent("exec_stream", "yes", on_output=lambda _, data: sink.write(data), limit=100_000)
    assert (done.signal, done.stdout_truncated, len(sink.getvalue())) == (9, True, 100_000)
    with pytest.raises(MonitorTimeout):
        agent("exec_stream", "sh", ["-c", "sleep 2000 & sleep 1000"], on_output=lambda *_: None, timeout=0.5)

    def fail(*_: object) -> None:
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        agent("exec_stream", "sh", ["-c", "sleep 2000 & yes"], on_output=fail)
    processes = agent.run("ps")
    assert "sleep" not in processes
    assert "yes" not in processes
    assert agent.run("ls /tmp") == ""


def test_cancelled_programs_are_killed(guest: Machine) -> None:
    async def main() -> None:
        async with AsyncGuestAgent(guest.qga) as agent:
            script = ["-c", "sleep 2000 & sleep 1000"]
            for number in range(8):
                stream = number % 2
                task = asyncio.create_task(
                    agent.exec_stream("sh", script, on_output=lambda *_: None)
                    if stream
                    else agent.exec("sleep", ["1000"])
                )
                if number < 2:
                    while "sleep 1000" not in await asyncio.to_thread(guest.console.run, "ps"):
                        await asyncio.sleep(0.05)
                else:  # anywhere in its start
                    await asyncio.sleep(0.02 * (number - 2))
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert "sleep" not in guest.console.run("ps")
            await agent.ping()

    asyncio.run(main())
    assert guest.console.run("ls /tmp") == ""


# -- files -------------------------------------------------------------------


def test_files(agent: Face, tmp_path: Path) -> None:
    opened = agent.run("ls /proc/$(pidof qemu-ga)/fd | wc -l")
    data = bytes(range(256)) * 1200
    seen: list[int] = []
    assert agent("write_file", "/mnt/file", data, progress=seen.append) == len(data)
    assert seen[-1] == len(data)
    assert len(seen) > 1
    agent("write_file", "/mnt/file", b"end", append=True)
    assert agent("read_file", "/mnt/file") == data + b"end"
    assert agent.run("stat -c %s /mnt/file") == f"{len(data) + 3}\n"
    with (tmp_path / "copy").open("w+b") as file:
        assert agent("download", "/mnt/file", file) == len(data) + 3
        file.seek(len(data))
        assert agent("upload", file, "/mnt/end") == 3
    assert agent("read_file", "/mnt/end") == b"end"
    assert agent("write_file", "/mnt/none", b"") == 0
    assert agent("read_file", "/mnt/none") == b""
    assert b"Linux" in agent("read_file", "/proc/version")
    with pytest.raises(AgentError, match="limit of 1000"):
        agent("read_file", "/mnt/file", limit=1000)
    with pytest.raises(CommandError):
        agent("write_file", "/dev/full", data)
    with pytest.raises(CommandError):
        agent("read_file", "/nosuch")
    with pytest.raises(ArgumentError):
        agent("write_file", "/mnt/text", "text")
    assert agent.run("ls /proc/$(pidof qemu-ga)/fd | wc -l") == opened


# -- frozen file systems -----------------------------------------------------


@contextmanager
def writing(agent: Face) -> Iterator[None]:
    """Something in the guest writes meanwhile: it hangs until the thaw, and is through afterwards."""
    agent.run("rm -f /run/written; (echo x >/mnt/y; sync; touch /run/written) >/dev/null 2>&1 &")
    agent.run("usleep 100000")
    assert agent.run("[ -e /run/written ] && echo it did not hang || true") == ""
    yield


def assert_thawed(agent: Face) -> None:
    assert agent("fsfreeze_status") == "thawed"
    agent.run("echo x >/mnt/z; sync; rm /mnt/z")
    agent("osinfo")  # and every command is taken again


def test_freeze(agent: Face) -> None:
    with agent.frozen() as freeze, writing(agent):
        assert freeze.count == 1
        assert agent("fsfreeze_status") == "frozen"
        agent("ping")
        with pytest.raises(AgentFrozen):
            agent("osinfo")
        with pytest.raises(AgentFrozen):
            with agent.frozen():
                pytest.fail("twice")
    assert_thawed(agent)
    agent.run("while [ ! -e /run/written ]; do usleep 10000; done")
    with agent.frozen(["/mnt"]) as freeze:
        assert freeze.count == 1
    assert_thawed(agent)


def test_thawed_when_the_block_fails(agent: Face) -> None:
    with pytest.raises(LookupError):
        with agent.frozen(), writing(agent):
            raise LookupError
    assert_thawed(agent)


def test_thawed_when_the_freeze_is_given_up(agent: Face) -> None:
    """Its reply did not come in time, so whether it happened is not known."""
    late = 0
    for _ in range(5):
        try:
            with agent.frozen(timeout=0):
                pass
        except AgentSlow as error:
            late += error.what == "guest-fsfreeze-freeze"
        assert_thawed(agent)
    assert late


def test_thawed_by_the_deadline(agent: Face) -> None:
    block = agent.frozen(deadline=0.5)
    block.__enter__()
    if agent.loop is not None:
        agent.loop.run_until_complete(asyncio.sleep(2))
    else:
        time.sleep(2)  # the caller is stuck; nobody else drives its connection
    assert "y" in agent.run("echo y >/mnt/y; cat /mnt/y")
    with pytest.raises(FreezeBroken, match="after 0.5 s"):
        block.__exit__(None, None, None)
    assert_thawed(agent)


def test_thawed_by_somebody(agent: Face) -> None:
    with pytest.raises(FreezeBroken, match="somebody"):
        with agent.frozen():
            agent("execute", "guest-fsfreeze-thaw")
    assert_thawed(agent)


def test_frozen_by_somebody(agent: Face) -> None:
    """It stays so, and why a command is refused is told."""
    agent("execute", "guest-fsfreeze-freeze")
    with pytest.raises(AgentFrozen):
        with agent.frozen():
            pytest.fail("twice")
    with pytest.raises(AgentFrozen):
        agent("osinfo")
    assert agent("fsfreeze_status") == "frozen"
    assert agent("fsfreeze_thaw") == 1
    assert_thawed(agent)


def test_thawed_by_an_agent_that_was_started_anew(agent: Face) -> None:
    with agent.frozen(), writing(agent):
        agent.run("kill -9 $(pidof qemu-ga)")
    assert_thawed(agent)


def test_thawed_over_a_new_connection(agent: Face) -> None:
    with agent.frozen(), writing(agent):
        agent("close")
    assert not agent.agent.is_connected()
    agent("connect")
    assert_thawed(agent)


def test_thawed_when_cancelled(guest: Machine) -> None:
    async def main() -> None:
        async with AsyncGuestAgent(guest.qga) as agent:
            inside = asyncio.Event()

            async def snapshot() -> None:
                async with agent.frozen():
                    inside.set()
                    await asyncio.sleep(1000)

            task = asyncio.create_task(snapshot())
            await inside.wait()
            task.cancel()
            await asyncio.sleep(0)
            task.cancel()  # once more does not reach the thaw
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await agent.fsfreeze_status() == "thawed"
            for after in (0, 0, 0.005, 0.02):  # in the freeze itself, wherever that is
                task = asyncio.create_task(snapshot())
                await asyncio.sleep(after)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert await agent.fsfreeze_status() == "thawed"

    asyncio.run(main())
    guest.console.run("echo x >/mnt/z; sync")


def test_frozen_without_a_connection(guest: Machine) -> None:
    agent = GuestAgent(guest.qga)
    with agent.frozen():
        assert agent.fsfreeze_status() == "frozen"
    assert not agent.is_connected()
    assert agent.fsfreeze_status() == "thawed"


# -- an agent on the host, of which only what does nothing there is asked ----


def test_on_the_host(tmp_path: Path) -> None:
    path = tmp_path / "s"
    command = ["qemu-ga", "-m", "unix-listen", "-p", path, "-t", tmp_path, "-f", tmp_path / "pid"]
    with subprocess.Popen(command) as process:
        try:
            agent = GuestAgent(path)  # connects for each call: every time a channel that another one has used
            for _ in range(3):
                agent.ping(timeout=30)
            with agent:
                agent.sync()
                assert agent.info().can("guest-ping")

            async def main() -> None:
                async with AsyncGuestAgent(path) as agent:
                    await asyncio.gather(*(agent.ping() for _ in range(100)))
                    assert (await agent.info()).can("guest-info")

            agent.close()
            asyncio.run(main())
        finally:
            process.kill()


# -- what befalls it ---------------------------------------------------------


def test_a_late_reply_answers_nothing(agent: Face) -> None:
    late = 0
    for _ in range(20):
        try:
            agent("execute", "guest-get-vcpus", timeout=0)
        except AgentSlow:
            late += 1  # nearly always: the host would have to pause us for as long as the guest takes
        assert agent("hostname") == "(none)"
    assert late


def test_stopped_and_not_there(agent: Face) -> None:
    """An agent that hangs is told from one that is gone: by itself where it was in step, else with QEMU's help."""
    with QmpConnection(agent.machine.qmp) as vm:
        with stopped(agent):
            with pytest.raises(AgentSlow, match="guest-ping"):
                agent("ping", timeout=0.5)
            with pytest.raises(AgentSlow, match="not sent: it is at guest-ping"):
                agent("execute", "guest-info", timeout=0.5)
            assert vm.agent_connected("qga")
            agent("close")
            agent("connect")
            with pytest.raises(AgentNotThere, match="nothing was sent"):
                agent("ping", timeout=0.5)
        assert agent("hostname") == "(none)"
        end(agent)
        vm.wait_agent("qga", connected=False, timeout=30)
        assert not vm.agent_connected("qga")
        agent("close")
        agent("connect")
        with pytest.raises(AgentNotThere):
            agent("ping", timeout=0.5)
        start(agent)
        agent("sync", timeout=60)
        vm.wait_agent("qga", timeout=30)
        with pytest.raises(ArgumentError, match="serial0"):
            vm.agent_connected("nosuch")
        with pytest.raises(MonitorTimeout):
            vm.wait_agent("qga", connected=False, timeout=0.1)


def test_started_anew(agent: Face) -> None:
    """An agent that ends takes what it had read along; what comes next is in step with its successor."""
    for _ in range(3):
        agent.run("kill -9 $(pidof qemu-ga)")
        try:
            agent("ping", timeout=2)
        except AgentSlow:
            pass  # the old one had it
        agent("sync", timeout=60)
        assert agent("hostname") == "(none)"


def test_half_a_reply(agent: Face) -> None:
    """It is killed while it sends a long one."""
    # a guest on a busy host may need long to send the first of it
    if not any(killed_in_the_middle(agent, timeout) for timeout in (8, 30, 90)):
        pytest.fail("the agent has sent nothing of its reply, or all of it, each time")
    agent("sync", timeout=60)
    assert agent("hostname") == "(none)"


def killed_in_the_middle(agent: Face, timeout: float) -> bool:
    """Whether the agent had sent a part of its reply when the time was over, and so was killed."""
    session = agent.agent._port.link.session
    over, killed = threading.Event(), threading.Event()

    def kill() -> None:
        while not over.wait(0.01):
            if session._input:
                agent.run("kill -9 $(pidof qemu-ga)")
                killed.set()
                return

    agent("sync", timeout=60)
    handle = agent("execute", "guest-file-open", {"path": "/dev/zero"})
    killer = threading.Thread(target=kill)
    killer.start()
    cut = False
    try:
        agent("execute", "guest-file-read", {"handle": handle, "count": 10 << 20}, timeout=timeout)
    except AgentSlow:
        cut = True  # or, on a busy host, all of it came before we had killed anybody
    finally:
        over.set()
        killer.join()
    return cut and killed.is_set()


def test_what_was_not_read_goes_with_the_connection(agent: Face) -> None:
    """A command to an agent that has ended is not run by the next one, if the connection is closed before."""
    end(agent)
    with pytest.raises(AgentSlow):
        agent("execute", "guest-exec", {"path": "touch", "arg": ["/stale"]}, timeout=0.5)
    agent("close")
    start(agent)
    agent("connect")
    agent("sync", timeout=60)
    assert agent.run("[ -e /stale ] && echo it was run || true") == ""


# -- who may come in, and the end --------------------------------------------


def test_password(agent: Face) -> None:
    def stored() -> str:
        return agent.run("grep ^guest: /etc/shadow").split(":")[1]

    agent("set_user_password", "guest", "s3cret pass")
    salt = stored().split("$")[2]
    assert stored() == agent.run(f"mkpasswd -m sha512 -S {salt} 's3cret pass'").strip()
    agent("set_user_password", "guest", "$6$abc$def", crypted=True)
    assert stored() == "$6$abc$def"
    with pytest.raises(CommandError) as caught:
        agent("set_user_password", "nosuch", "s3cret")
    assert "s3cret" not in str(caught.value)


def test_ssh_keys(agent: Face) -> None:
    agent("add_ssh_keys", "guest", ["ssh-ed25519 AAAA a", "ssh-ed25519 BBBB b"], replace=True)
    agent("add_ssh_keys", "guest", ["ssh-ed25519 CCCC c"])
    agent("remove_ssh_keys", "guest", ["ssh-ed25519 AAAA a", "ssh-ed25519 XXXX x"])
    assert sorted(agent("ssh_keys", "guest")) == ["ssh-ed25519 BBBB b", "ssh-ed25519 CCCC c"]
    for keys in ("ssh-ed25519 AAAA", ["one\ntwo"]):
        with pytest.raises(ArgumentError):
            agent("add_ssh_keys", "guest", keys)


def test_refused_end(agent: Face) -> None:
    agent.run("mv /sbin/shutdown /sbin/not")
    try:
        with pytest.raises(CommandError, match="guest-shutdown"):
            agent("shutdown")
    finally:
        agent.run("mv /sbin/not /sbin/shutdown")
    with pytest.raises(ArgumentError, match="powerdown"):
        agent("shutdown", "off")
    with pytest.raises(ArgumentError, match="hybrid"):
        agent("suspend", "swap")
    with pytest.raises(CommandError, match="guest-suspend-hybrid"):
        agent("suspend", "hybrid")
    agent("ping")


def test_suspend(guest: Machine) -> None:
    with QmpConnection(guest.qmp) as vm, GuestAgent(guest.qga) as agent:
        mark = vm.event_mark()
        agent.suspend(timeout=1)
        vm.wait_event("SUSPEND", since=mark, timeout=30)
        vm.execute("system_wakeup")
        agent.sync(timeout=60)
        assert agent.hostname() == "(none)"


def test_reboot(guest: Machine) -> None:
    with QmpConnection(guest.qmp) as vm, GuestAgent(guest.qga) as agent:
        mark = vm.event_mark()
        agent.shutdown("reboot")
        vm.wait_event("RESET", since=mark, timeout=60)
        agent.sync(timeout=60)
        assert agent.hostname() == "(none)"


@pytest.mark.parametrize("kind", KINDS)
def test_powerdown(kind: str, guests: dict[str, Machine]) -> None:
    """The last one: the machines are gone afterwards."""
    guest = guests[kind]
    with QmpConnection(guest.qmp) as vm, GuestAgent(guest.qga) as agent:
        agent.sync(timeout=60)
        mark = vm.event_mark()
        agent.shutdown()
        assert vm.wait_event("SHUTDOWN", since=mark, timeout=60).data["reason"] == "guest-shutdown"
    assert guest.wait() == 0
