"""`drover vnc NAME`: a port of this host that is the instance's VNC, wherever it runs."""

import asyncio
import contextlib

import click

from drover.cli.backend import connected, remote_daemon
from drover.cli.choice import LOCAL, chosen
from drover.cli.complete import instance_argument
from drover.cli.output import answer, notice, output_option
from drover.errors import DroverError, WrongState
from drover.kvm.paths import default_paths
from drover.kvm.record import Document
from drover.kvm.state import State

_FIRST = 5900  # the port of VNC's display 0


@click.command
@instance_argument()
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Of this host; one that is free by default.")
@output_option
def vnc(name: str, port: int, output: str) -> None:
    """Have an instance's VNC at a port of this host, 127.0.0.1, until Ctrl-C; for any viewer.

    Every user of this host can connect to it. Whether a password is asked for, the specification says.
    """
    from drover.cli.streams import local_stream, pass_on, remote_stream  # aiohttp takes 150 ms to load

    _has_vnc(name, connected().instance(name).show().document)

    def serving(at: int) -> None:
        display = f", which viewers call display 127.0.0.1:{at - _FIRST}" if at >= _FIRST else ""
        text = f"The VNC of {name} is at 127.0.0.1:{at}{display}; Ctrl-C ends that."
        answer(output, text, {"name": name, "host": "127.0.0.1", "port": at})

    def failed(error: DroverError) -> None:
        notice(str(error))

    path = default_paths().instance(name).private / "vnc"
    here = chosen() == LOCAL
    there = None if here else remote_daemon()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(
            pass_on(
                lambda: local_stream(path) if there is None else remote_stream(there, name, "vnc"),
                port,
                serving,
                failed,
            )
        )


def _has_vnc(name: str, document: Document) -> None:
    """See that it runs, and has one.

    :raises WrongState: it does not
    """
    if document.runtime is None:
        raise WrongState(name, State.STOPPED, State.RUNNING)
    if document.runtime.spec.vnc is None:
        raise WrongState(name, "without VNC", "with vnc in its specification")
