"""The agent's shell on an agent that is made up: it freezes, which the one on this host must not."""

import asyncio
import json
import socket
import threading

from drover.monitor.agent import AsyncGuestAgent
from drover.shell.qga_talk import QgaTalker
from drover.shell.view import View


def serve(sock: socket.socket) -> None:
    """Answer each command as qemu-ga does: syncs by their id, freezes by a count."""
    names = ["guest-fsfreeze-freeze", "guest-fsfreeze-thaw", "guest-ping", "guest-fsfreeze-status"]
    info = {"version": "9.9", "supported_commands": [{"name": name, "enabled": True} for name in names]}
    replies = {"guest-info": info, "guest-fsfreeze-freeze": 1, "guest-fsfreeze-thaw": 1}
    with sock, sock.makefile("rb") as lines:
        for line in lines:
            if not line.strip(b"\xff\n"):
                continue
            message = json.loads(line.strip(b"\xff\n"))
            name = message["execute"]
            value = message["arguments"]["id"] if "sync" in name else replies.get(name, {})
            head = b"\xff" if name == "guest-sync-delimited" else b""
            sock.sendall(head + json.dumps({"return": value}).encode() + b"\n")


def test_a_frozen_guest_is_shown() -> None:
    """By the prompt, and to who leaves it so."""
    out: list[str] = []
    told: list[str] = []
    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=serve, args=(theirs,))
    thread.start()

    async def talk() -> list[str]:
        shell = QgaTalker(AsyncGuestAgent(ours, timeout=30), View(out.append, told.append))
        prompts = [await shell.connect()]
        for line in ("guest-fsfreeze-freeze", "guest-fsfreeze-thaw", "guest-fsfreeze-freeze"):
            await shell.run(line)
            prompts.append(shell.prompt)
        await shell.close()
        return [*prompts, shell.prompt]

    assert asyncio.run(talk()) == ["Connected to qemu-ga 9.9", "(QGA frozen) ", "(QGA) ", "(QGA frozen) ", "(QGA) "]
    thread.join()
    assert out == ['{"return": 1}'] * 3
    assert len(told) == 1
    assert "guest-fsfreeze-thaw" in told[0]
