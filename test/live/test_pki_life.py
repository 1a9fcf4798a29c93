"""Certificates as time goes by: renewed under load, revoked, lost answers, other nodes; and what they are for."""

import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from drover.kvm.node import Node
from drover.kvm.paths import Paths
from drover.monitor.certificates import new_key
from drover.node.link import TlsConnection, calling, trusting
from drover.node.pki.authority import card_of, request_for
from drover.node.pki.folder import Folder
from drover.node.pki.ledger import Ledger
from drover.node.pki.token import Token, Tokens, read_token
from instances import bare, bootable
from noded import Noded, running
from people import REFUSED, Line, Member, Person, call, joined
from ports import free_port
from terminal import terminal

_HALF_MINUTE = 1 / 2880  # days


@pytest.fixture
def members(node: Node, tmp_path: Path) -> Iterator[Callable[..., Member]]:
    """Makes nodes, the first of which has the authority; ends their daemons."""
    made: list[Member] = []

    def member(name: str, *words: str) -> Member:
        top = tmp_path / name
        top.mkdir()
        first = not made
        # the one that has machines is where QEMU's own user may pass
        paths = node.host.paths if first else Paths(top / "state", top / "run")
        new = Member(paths, top)
        if first:
            new.root("node", "init", "--name", name, "--address", new.address, *words)
        else:
            token = made[0].token(*words)
            new.root("node", "join", "-", "--name", name, "--address", new.address, stdin=token)
        new.daemon.start()
        made.append(new)
        return new

    yield member
    for each in made:
        if each.daemon.runs:
            each.daemon.end()


def asking(token: Token) -> dict[str, Any]:
    """What somebody says who joins by it."""
    return {"token": token.id, "secret": token.secret, "csr": request_for(new_key())}


class Joining:
    """A node that is joined.

    :ivar safe: what to call it with
    :ivar seconds: that a join takes
    """

    def __init__(self, first: Member) -> None:
        self.first = first
        self.safe = trusting((first.pki / "ca.pem").read_text())
        token = read_token(first.token("--role", "viewer", "--name", "warm"))
        line = Line(first.address, self.safe)
        line.call("GET", "/v1/join")
        body, begun = asking(token), time.monotonic()
        assert line.call("POST", "/v1/join", body)[0] == 200
        self.seconds = time.monotonic() - begun
        line.close()


@pytest.fixture(scope="module")
def joining(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Joining]:
    """One for all moments."""
    top = tmp_path_factory.mktemp("joining")
    first = Member(Paths(top / "state", top / "run"), top)
    first.root("node", "init", "--address", first.address)
    first.daemon.start()
    yield Joining(first)
    first.daemon.end()


def serial_of(address: str, ca: Path) -> int:
    """Of the certificate that a daemon shows."""
    connection = TlsConnection([address], trusting(ca.read_text()), 20)
    try:
        connection.connect()
        found: dict[str, Any] = connection.sock.getpeercert()
        return int(found["serialNumber"], 16)
    finally:
        connection.close()


def until(true: Callable[[], Any], what: str, seconds: float = 40) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def test_renewal_while_connections_are_in_use(members: Callable[..., Member], tmp_path: Path) -> None:
    """A certificate that holds for half a minute, and 20 callers who stay connected all the time."""
    first = members("first", "--days", str(_HALF_MINUTE))
    person = joined(first, tmp_path / "me", "viewer", "alice")
    ca = first.pki / "ca.pem"
    lines = [Line(first.address, person.folder()) for _ in range(20)]
    failed: list[object] = []
    calls = [0] * len(lines)
    over = threading.Event()

    def use(number: int) -> None:
        while not over.wait(0.05):
            try:
                status, _ = lines[number].call("GET", "/v1/instances")
            except Exception as error:
                failed.append(error)
                return
            if status != 200:
                failed.append(status)
            calls[number] += 1

    threads = [threading.Thread(target=use, args=(number,)) for number in range(len(lines))]
    for thread in threads:
        thread.start()
    try:
        before = serial_of(first.address, ca)
        until(lambda: serial_of(first.address, ca) != before, "it is not renewed")
        ends = [card_of((first.pki / "node.pem").read_bytes()).until]
        # and the one after that, when the first one has ended: all callers are still there
        until(lambda: card_of((first.pki / "node.pem").read_bytes()).until > ends[0], "it is not renewed again", 60)
        time.sleep(0.5)
    finally:
        over.set()
        for thread in threads:
            thread.join()
        for line in lines:
            line.close()
    assert not failed
    assert min(calls) > 20
    assert json.loads(person("list", "-o", "json")) == []
    assert first.daemon.pid  # it is the same one
    renewals = [line for line in first.log if "was renewed" in line["text"]]
    assert len(renewals) >= 2
    assert (first.pki / "node.pem").stat().st_mode & 0o777 == 0o600


def stream(address: str, folder: Folder | ssl.SSLContext) -> TlsConnection:
    """Events, which last; never waits for one."""
    context = folder if isinstance(folder, ssl.SSLContext) else calling(folder)
    connection = TlsConnection([address], context, 20)
    connection.request("GET", "/v1/events")
    assert connection.getresponse().status == 200
    connection.sock.settimeout(0.05)
    return connection


def over(stream: TlsConnection) -> bool:
    try:
        return stream.sock.recv(4096) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def test_revocation(members: Callable[..., Member], tmp_path: Path) -> None:
    """Whoever is connected already is out as well; whoever is not revoked stays; the other node hears of it."""
    first = members("first")
    second = members("second", "--days", str(_HALF_MINUTE))
    alice, bob = (joined(first, tmp_path / name, "admin", name) for name in ("alice", "bob"))
    open_line = Line(first.address, alice.folder())
    streams = [stream(first.address, who.folder()) for who in (alice, bob)]
    assert open_line.call("GET", "/v1/instances")[0] == 200
    assert call(second.address, alice.folder(), "GET", "/v1/instances")[0] == 200
    revoked = json.loads(first.root("cert", "revoke", "alice", "-o", "json"))["revoked"]
    assert len(revoked) == 1
    with contextlib.suppress(*REFUSED):  # it may have been cut off already
        assert open_line.call("GET", "/v1/instances")[0] == 403
    for connect in (
        lambda: call(first.address, alice.folder(), "GET", "/v1/instances"),
        lambda: call(first.address, alice.folder(), "POST", "/v1/renew", {"csr": request_for(new_key())}),
    ):
        status, told = connect()
        assert (status, told["code"]) == (403, "revoked")
    open_line.close()
    assert "was revoked" in alice.refused("list")
    assert json.loads(bob("list", "-o", "json")) == []
    until(lambda: call(second.address, alice.folder(), "GET", "/v1/instances")[0] == 403, "the other does not hear it")
    assert call(second.address, bob.folder(), "GET", "/v1/instances")[0] == 200
    rows = {row["name"]: row for row in json.loads(first.root("cert", "list", "--all", "-o", "json"))}
    assert (rows["alice"]["state"], rows["bob"]["state"]) == ("revoked", "holds")
    assert rows["second"]["role"] == "node"
    # who was in the middle of something is out, too
    until(lambda: over(streams[0]), "her stream goes on")
    assert not over(streams[1])
    for each in streams:
        each.close()
    # the name is free again
    joined(first, tmp_path / "again", "viewer", "alice")


def test_whoever_expires_while_connected(members: Callable[..., Member], tmp_path: Path) -> None:
    first = members("first")
    out = tmp_path / "made"
    first.root("cert", "issue", "short", "--role", "admin", "--days", str(5 / 86400), "--out", str(out))
    context = trusting((out / "ca.pem").read_text())
    context.load_cert_chain(out / "cert.pem", out / "key.pem")
    line, events = Line(first.address, context), stream(first.address, context)
    assert line.call("GET", "/v1/instances")[0] == 200
    assert events.sock.session is None or not events.sock.session.has_ticket  # by which it could come back
    until(lambda: over(events), "the stream goes on")
    with contextlib.suppress(*REFUSED):
        assert line.call("GET", "/v1/instances")[1]["code"] == "expired"
    line.close()
    events.close()
    with pytest.raises(REFUSED):
        call(first.address, context, "GET", "/v1/instances")


def test_a_node_that_joined_renews_where_the_authority_is(members: Callable[..., Member], tmp_path: Path) -> None:
    first = members("first")
    second = members("second", "--days", str(_HALF_MINUTE))
    begun = serial_of(second.address, first.pki / "ca.pem")
    assert not (second.pki / "authority.pem").exists()
    # where the authority is not to be reached when it is time, that is told, and tried again
    first.daemon.end()
    until(lambda: [line for line in second.log if "renewal" in line["text"] and line["level"] == "error"], "not told")
    first.daemon.start()
    until(lambda: serial_of(second.address, first.pki / "ca.pem") != begun, "it is not renewed")
    renewed = [each for each in Ledger(Folder(first.pki)).all() if each.by == f"renewal of {begun:x}"]
    assert [each.name for each in renewed] == ["second"]
    assert {"second", "127.0.0.1"} <= set(renewed[0].hosts)
    assert "no authority: it is on" in second.root.refused("node", "token")
    # a certificate of the authority's is not overwritten by another's
    other = Person(tmp_path / "other")
    other("node", "init", "--name", "other")
    assert "of another authority already" in other.refused("node", "join", first.token())
    assert "of another authority already" in second.root.refused("node", "join", other("node", "token").strip())
    assert "of another node's authority" in second.root.refused("node", "init")


def test_what_is_renewed_by_hand(members: Callable[..., Member], tmp_path: Path) -> None:
    first = members("first")
    person = joined(first, tmp_path / "me", "operator", "alice")
    before = json.loads(person("cert", "show", "-o", "json"))
    known = person.config / "contexts" / "first" / "context.json"
    assert person.run("list").stderr == ""
    known.write_text(json.dumps(json.loads(known.read_text()) | {"due": 1}))  # as when a third of its life is left
    assert "drover --context first cert renew" in person.run("list").stderr
    after = json.loads(person("cert", "renew", "-o", "json"))
    shown = json.loads(person("cert", "show", "-o", "json"))
    assert person.run("list").stderr == ""
    assert before["serial"] != after["serial"] == shown["serial"]
    assert (shown["name"], shown["role"]) == ("alice", "operator")
    assert json.loads(person("list", "-o", "json")) == []
    served = serial_of(first.address, first.pki / "ca.pem")
    mine = json.loads(first.root("cert", "renew", "-o", "json"))["serial"]
    assert serial_of(first.address, first.pki / "ca.pem") == int(mine, 16) != served
    for _ in range(7):
        call(first.address, person.folder(), "POST", "/v1/renew", {"csr": request_for(new_key())})
    status, told = call(first.address, person.folder(), "POST", "/v1/renew", {"csr": request_for(new_key())})
    assert status == 200
    status, told = call(first.address, person.folder(), "POST", "/v1/renew", {"csr": request_for(new_key())})
    assert (status, told["code"]) == (409, "pki-error")  # one certificate begets no more than that


@pytest.mark.parametrize("moment", ["before", *range(10), "after"])
def test_killed_between_a_token_and_its_answer(joining: "Joining", moment: int | str) -> None:
    """At whatever moment the daemon dies: afterwards the token is as good as new, or used up; never good for two."""
    first, name = joining.first, f"v{moment}"
    token = read_token(first.token("--role", "viewer", "--name", name))
    line = Line(first.address, joining.safe)
    line.call("GET", "/v1/join")
    if moment == "before":
        first.daemon.kill()
    # the others in the time that an answer takes
    delay = joining.seconds * moment / 8 if isinstance(moment, int) else 60
    killer = threading.Timer(delay, os.kill, (first.daemon.pid, signal.SIGKILL))
    if isinstance(moment, int):
        killer.start()
    answered = False
    with contextlib.suppress(OSError, ValueError):
        answered = line.call("POST", "/v1/join", asking(token))[0] == 200
    line.close()
    if isinstance(moment, int):
        killer.join()
    if first.daemon.runs:
        first.daemon.kill()
    first.daemon.start()
    given = [each for each in Ledger(Folder(first.pki)).all() if each.name == name]
    unused = [each for each in Tokens(Folder(first.pki)).all() if each.id == token.id]
    assert len(given) <= 1
    assert not (given and unused)
    assert not (answered and not given)
    assert (answered, bool(unused)) == {"before": (False, True), "after": (True, False)}.get(
        str(moment), (answered, bool(unused))
    )
    if unused:
        assert call(first.address, joining.safe, "POST", "/v1/join", asking(token))[0] == 200
    first.token()  # so that somebody is expected
    status, told = call(first.address, joining.safe, "POST", "/v1/join", asking(token))
    assert (status, told["code"]) == (403, "token-refused")
    for each in Tokens(Folder(first.pki)).all():
        Tokens(Folder(first.pki)).drop(each.id)


def test_many_use_one_token_at_once(members: Callable[..., Member]) -> None:
    first = members("first")
    safe = trusting((first.pki / "ca.pem").read_text())
    token = read_token(first.token("--role", "viewer", "--name", "v"))
    first.token()
    statuses: list[int] = []
    ready = threading.Barrier(12)

    def use() -> None:
        line = Line(first.address, safe)
        ready.wait(20)
        statuses.append(line.call("POST", "/v1/join", asking(token))[0])
        line.close()

    threads = [threading.Thread(target=use) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200] + [403] * 11


def test_a_machine_by_its_context(members: Callable[..., Member], tmp_path: Path) -> None:
    """Made, started, at its console and its screen, stopped: on another node."""
    first = members("first")
    person = joined(first, tmp_path / "me", "operator", "alice")
    spec = tmp_path / "vm.json"
    spec.write_text(json.dumps(bootable("10.0", "vm", vnc={})))
    person("create", str(spec))
    assert "this needs it running" in person.run("console", "vm").stderr
    assert "there is no such instance" in person.run("console", "nosuch").stderr
    assert "stopped" in person.run("vnc", "vm").stderr
    person("start", "vm")
    assert json.loads(person("list", "-o", "json"))[0]["state"] == "running"
    with terminal(["console", "vm"], tmp_path, **person.env) as screen:
        screen.see("At the console of vm")
        screen.press("Enter")
        screen.see("guest#")
        screen.enter("echo $((6*7))")
        screen.see("\n42")
        screen.press("C-c")  # the guest's, not ours
        screen.enter("echo $((7*7))")
        screen.see("\n49")
        screen.press("C-]")
        screen.see("EXIT 0")
    done = person.run("console", "vm", stdin="echo $((8*8))\npoweroff -f\n")  # a script, which sees the guest's end
    assert "64" in done.stdout
    assert "has ended" in done.stderr
    person("start", "vm")
    viewer = subprocess.Popen(
        [person.program, "vnc", "vm", "-o", "json"], env=os.environ | person.env, stdout=subprocess.PIPE, text=True
    )
    assert viewer.stdout is not None
    try:
        where = json.loads(viewer.stdout.readline())
        for _ in range(2):  # one after the other
            with socket.create_connection((where["host"], where["port"]), 20) as sock:
                assert sock.recv(12) == b"RFB 003.008\n"
    finally:
        viewer.send_signal(signal.SIGINT)
        assert viewer.wait(20) in (0, 130)
        viewer.stdout.close()
    assert "has stopped" in person("stop", "vm", "--timeout", "1")
    status, told = call(first.address, person.folder(), "POST", "/v1/instances/vm/qmp", {"execute": "stop"})
    assert (status, told["code"]) == (403, "not-allowed")


def test_whoever_is_meant_and_nobody_else(members: Callable[..., Member], tmp_path: Path) -> None:
    """A node that does not answer is an error: nothing is done on this host instead, though a daemon runs here, too."""
    first = members("first")
    person = joined(first, tmp_path / "me", "admin", "alice")
    with running(person.paths, tmp_path / "me" / "log") as here:
        here.create(bare("7.2", "vm"))
        assert json.loads(person("list", "-o", "json")) == []
        first.daemon.end()
        for words in (["list"], ["start", "vm"], ["console", "vm"], ["vnc", "vm"], ["cert", "renew"]):
            done = person.run(*words)
            assert "is not to be reached" in done.stderr, words
            assert "nothing was done" in done.stderr
            assert done.returncode == 1
        for words in (["run", "demo"], ["node", "init"], ["cert", "list"], ["start-all"]):
            assert "on this host" in person.refused(*words)
        assert "there is no context 'nosuch'" in person.refused("--context", "nosuch", "list")
        assert here.rows()["vm"]["state"] == "stopped"
        assert [row["name"] for row in json.loads(person("--context", "local", "list", "-o", "json"))] == ["vm"]
        assert person.run("list", DROVER_CONTEXT="local").returncode == 0
        person("context", "use", "local")
        assert [row["name"] for row in json.loads(person("list", "-o", "json"))] == ["vm"]
        assert person.run("list", DROVER_CONTEXT="first").returncode == 1
        person("context", "remove", "first")
        assert not list(person.config.rglob("*.pem"))


def test_of_several_addresses_one_is_enough(members: Callable[..., Member], tmp_path: Path) -> None:
    """And IPv6 is as good as any other."""
    first = members("first")
    port = free_port()
    first.root("node", "init", "--address", first.address, "--address", f"[::1]:{port}")
    token = first.token("--role", "viewer", "--address", f"127.0.0.1:{port}", "--address", first.address)
    person = Person(tmp_path / "me")
    person("context", "add", "x", "--token", token, "--as", "alice", "--use")
    assert json.loads(person("list", "-o", "json")) == []
    first.daemon.end()
    first.daemon = Noded(first.paths, tmp_path / "log6", ["--listen", f"[::1]:{port}"])
    first.daemon.start()
    six = Person(tmp_path / "six")
    six("context", "add", "x", "--token", first.token("--role", "operator"), "--use")
    assert json.loads(six("context", "show", "-o", "json"))["role"] == "operator"
    assert json.loads(six("list", "-o", "json")) == []
    assert "there is no such instance" in six.run("console", "nosuch").stderr
