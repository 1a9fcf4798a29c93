"""What people look at through the node daemon, on a guest that has booted."""

import asyncio

import aiohttp

from drover.kvm.node import Node
from instances import bare, bootable, wait_for_shell
from noded import Noded, UnixConnection


async def typed(noded: Noded, line: bytes, until: bytes) -> bytes:
    """What the console prints after a line was typed, up to some words."""
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(noded.socket))) as session:
        async with session.ws_connect("http://localhost/v1/instances/a/console") as console:
            await console.send_bytes(line)
            text = b""
            async with asyncio.timeout(30):
                while until not in text:
                    text += await console.receive_bytes()
    return text


def test_console_and_screen(node: Node, noded: Noded, version: str) -> None:
    noded.create(bootable(version, "a", vnc={}))
    noded.do("start", "a")
    wait_for_shell(node.instance("a"))
    for number in (6, 7):  # the next one gets it when the last one has left
        answer = asyncio.run(typed(noded, b"echo n=$((%d*7))\n" % number, b"n=%d" % (number * 7)))
        assert b"guest# " in answer or b"echo" in answer
    status, picture = get(noded, "/v1/instances/a/screenshot")
    assert (status, picture[:8]) == (200, b"\x89PNG\r\n\x1a\n")
    assert asyncio.run(greeting(noded)) == b"RFB 003.008\n"


async def greeting(noded: Noded) -> bytes:
    """How VNC begins."""
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(noded.socket))) as session:
        async with session.ws_connect("http://localhost/v1/instances/a/vnc", protocols=("binary",)) as vnc:
            return await vnc.receive_bytes(timeout=10)


def get(noded: Noded, path: str) -> tuple[int, bytes]:
    connection = UnixConnection(noded.socket, 20)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def test_one_that_does_not_run(noded: Noded) -> None:
    noded.create(bare("7.2", "a"))
    for what in ("console", "vnc", "screenshot"):
        status, told = noded.call("GET", f"/v1/instances/a/{what}")
        assert (status, told["code"]) == (409, "wrong-state"), told
        assert noded.call("GET", f"/v1/instances/b/{what}")[1]["code"] == "instance-not-found"
