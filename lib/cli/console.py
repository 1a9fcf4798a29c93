"""`drover console NAME`: the terminal becomes the instance's serial console."""

import asyncio
import os
import select
import socket
import sys
from pathlib import Path
from typing import Final

import click

from drover.cli.backend import remote_daemon
from drover.cli.choice import LOCAL, chosen
from drover.cli.complete import instance_argument
from drover.cli.raw import ESCAPE, raw_terminal, write_out
from drover.errors import WrongState
from drover.kvm.instance import Instance
from drover.kvm.node import Node
from drover.kvm.state import State

_CHUNK: Final = 4096


@click.command
@instance_argument()
def console(name: str) -> None:
    """Be at an instance's serial console. Ctrl-] leaves it; the machine runs on.

    What somebody else has at the console has to be left first: it serves one at a time.
    """
    if chosen() == LOCAL:
        attach(Node().instance(name))
        return
    from drover.cli.streams import at_console, remote_stream  # aiohttp takes 150 ms to load

    there = remote_daemon()

    def begun() -> None:
        click.echo(f"At the console of {name}; Ctrl-] leaves it.", err=True)

    left = asyncio.run(at_console(lambda: remote_stream(there, name, "console"), begun))
    click.echo("" if left else f"\r\nThe console of {name} has ended.", err=True)


def attach(instance: Instance) -> None:
    """Connect this terminal with the console, until Ctrl-] or the end of the machine.

    :raises WrongState: the instance does not run
    """
    if instance.show().state in (State.STOPPED, State.SAVED, State.ENDED):
        raise WrongState(instance.name, State.STOPPED, State.RUNNING)
    with socket.socket(socket.AF_UNIX) as sock:
        _connect(sock, instance.host.paths.instance(instance.name).socket("serial"), instance.name)
        click.echo(f"At the console of {instance.name}; Ctrl-] leaves it.", err=True)
        with raw_terminal():
            left = _pass_on(sock)
        click.echo("" if left else f"\r\nThe console of {instance.name} has ended.", err=True)


def _connect(sock: socket.socket, path: Path, name: str) -> None:
    try:
        sock.connect(str(path))
    except OSError as error:
        raise WrongState(name, f"without a console ({error.strerror})", State.RUNNING) from error


def _pass_on(sock: socket.socket) -> bool:
    """Carry bytes both ways. True: the user has left; False: the machine has ended."""
    sources: list[int] = [sock.fileno(), sys.stdin.fileno()]
    while True:
        ready, _, _ = select.select(sources, [], [])
        if sock.fileno() in ready:
            data = sock.recv(_CHUNK)
            if not data:
                return False
            write_out(data)
        if sys.stdin.fileno() in ready:
            typed = os.read(sys.stdin.fileno(), _CHUNK)
            before, escape, _ = typed.partition(ESCAPE)
            sock.sendall(before)
            if escape:
                return True
            if not typed:
                sources.remove(sys.stdin.fileno())  # a script has said all it had to; what comes is still shown
