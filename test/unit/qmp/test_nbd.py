"""The client's side of an NBD handshake: on a model of a server, in any cut, and on what no server should say."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drover.errors import NbdError, NbdRefused
from drover.qmp.nbd import MAX_REPLIES, MAX_REPLY, NbdExport, NbdProbe
from drover.testing.nbd_model import NbdServerModel

GREETING = b"NBDMAGICIHAVEOPT\x00\x03"
DISK = {"disk": (4096, False), "": (512, True)}
ABORT, LIST, STARTTLS, INFO = 2, 3, 5, 6


def reply(option: int, kind: int, body: bytes = b"") -> bytes:
    return struct.pack(">QIII", 0x0003E889045565A9, option, kind, len(body)) + body


def talk(probe: NbdProbe, server: NbdServerModel, cut: int = 1 << 20) -> None:
    """Let the two talk, in pieces of `cut` bytes."""
    said = server.greeting()
    while not probe.done:
        answer = b"".join(probe.receive(said[at : at + cut]) for at in range(0, len(said), cut))
        said = server.receive(answer)
        assert said or probe.done, "both wait for the other"


@pytest.mark.parametrize("cut", [1, 2, 7, 19, 1000])
def test_facts_of_an_export_whatever_the_cut(cut: int) -> None:
    server = NbdServerModel(DISK)
    probe = NbdProbe("here", "disk")
    talk(probe, server, cut)
    assert probe.outcome() == NbdExport(
        name="disk", size=4096, read_only=False, description="a disk",
        min_block=1, preferred_block=4096, max_block=1 << 25,
    )  # fmt: skip
    assert server.asked == [INFO, ABORT], "it never enters transmission, and takes its leave"


def test_the_default_export_has_no_name() -> None:
    probe = NbdProbe("here")
    talk(probe, NbdServerModel(DISK))
    assert (probe.outcome().size, probe.outcome().read_only) == (512, True)


def test_an_export_that_is_not_there() -> None:
    server = NbdServerModel(DISK)
    probe = NbdProbe("here", "none")
    talk(probe, server)
    with pytest.raises(NbdRefused) as caught:
        probe.outcome()
    assert (caught.value.code, caught.value.export, caught.value.address) == ("unknown-export", "none", "here")
    assert "'none' not present" in caught.value.text
    assert server.asked == [INFO, ABORT]


def test_a_server_without_info_is_asked_for_its_list() -> None:
    server = NbdServerModel(DISK, knows=frozenset({ABORT, LIST}))
    probe = NbdProbe("here", "disk")
    talk(probe, server)
    assert probe.outcome() == NbdExport(name="disk")
    assert server.asked == [INFO, LIST, ABORT]
    missing = NbdProbe("here", "none")
    talk(missing, server)
    with pytest.raises(NbdRefused, match="unknown-export"):
        missing.outcome()
    default = NbdProbe("here")
    talk(default, server)
    assert default.outcome().size is None


def test_a_server_without_list_either_is_there_and_that_is_all() -> None:
    probe = NbdProbe("here", "disk")
    talk(probe, NbdServerModel(DISK, knows=frozenset({ABORT})))
    assert probe.outcome() == NbdExport(name="disk")


def test_tls() -> None:
    required = NbdServerModel(DISK, tls="required")
    plain = NbdProbe("here", "disk")
    talk(plain, required)
    with pytest.raises(NbdRefused, match="tls-required"):
        plain.outcome()
    for tls in ("required", "offered"):
        server = NbdServerModel(DISK, tls=tls)
        probe = NbdProbe("here", "disk", tls=True)
        talk(probe, server)
        assert probe.outcome() == NbdExport(name="disk", tls=True)
        assert server.asked == [STARTTLS], "what comes next would be TLS"
    probe = NbdProbe("here", "disk", tls=True)
    talk(probe, NbdServerModel(DISK))
    with pytest.raises(NbdRefused, match="no-tls"):
        probe.outcome()


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"SSH-2.0-OpenSSH_9.2p1\r\n", "does not speak NBD"),
        (b'{"QMP": {}}\n', "does not speak NBD"),
        (b"NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53", "old style"),
        (b"NBDMAGICIHAVEOPT\x00\x00", "before it was fixed"),
        (b"", "hung up"),
        (GREETING + b"\x00" * 20, "something else than a reply"),
        (GREETING + reply(LIST, 1), "something else than a reply"),
        (GREETING + struct.pack(">QIII", 0x0003E889045565A9, INFO, 3, MAX_REPLY + 1), "something else than a reply"),
        (GREETING + reply(INFO, 77), "type 77"),
        (GREETING + reply(INFO, 2), "type 2"),
        (GREETING + reply(INFO, 3, b"\x00\x00\x00"), "wrong length"),
    ],
)
def test_what_no_server_should_say(said: bytes, why: str) -> None:
    probe = NbdProbe("here", "disk")
    probe.receive(said)
    assert probe.done
    with pytest.raises(NbdError, match=why) as caught:
        probe.outcome()
    assert type(caught.value) is NbdError


def test_hanging_up_in_the_middle() -> None:
    probe = NbdProbe("here", "disk")
    probe.receive(GREETING + reply(INFO, 1)[:7])
    assert not probe.done
    probe.receive(b"")
    with pytest.raises(NbdError, match="after 7 bytes of an answer"):
        probe.outcome()


def test_unknown_facts_and_refusals_pass() -> None:
    probe = NbdProbe("here", "disk")
    probe.receive(GREETING + reply(INFO, 3, b"\x00\x63whatever") + reply(INFO, 1))
    assert probe.outcome() == NbdExport(name="disk")
    probe = NbdProbe("here", "disk")
    probe.receive(GREETING + reply(INFO, (1 << 31) + 99, b"\xff"))
    with pytest.raises(NbdRefused, match="error 99"):
        probe.outcome()


def test_an_endless_answer_comes_to_an_end() -> None:
    probe = NbdProbe("here", "disk")
    probe.receive(GREETING)
    piece = reply(INFO, 3, b"\x00\x63") * 1000
    for _ in range(MAX_REPLIES // 1000 + 1):
        probe.receive(piece)
    assert probe.done
    with pytest.raises(NbdError, match="does not come to an end"):
        probe.outcome()


@given(st.lists(st.binary(min_size=1, max_size=200), max_size=20), st.booleans())
def test_noise_never_raises_and_never_grows(pieces: list[bytes], greeted: bool) -> None:
    probe = NbdProbe("here", "disk")
    if greeted:
        probe.receive(GREETING)
    for piece in pieces:
        if probe.done:
            break
        probe.receive(piece)
        assert len(probe._buffer) < MAX_REPLY + 20
    probe.receive(b"")
    assert probe.done or not pieces
