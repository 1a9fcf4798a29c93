"""`drover run`: from nothing, or a specification, to the console of a machine that boots."""

from pathlib import Path

import click

from drover.cli.backend import connected, daemon
from drover.cli.complete import what_to_run
from drover.cli.console import attach
from drover.cli.instances import read_spec
from drover.cli.output import notice
from drover.errors import ArgumentError
from drover.kvm.node import Node
from drover.kvm.spec import Spec, parse
from drover.node.client import Daemon
from drover.testing.image import guest_image
from drover.testing.machine import APPEND

DEMO = "demo"


@click.command
@what_to_run("what", metavar="demo|FILE|NAME")
@click.option("--detach", is_flag=True, help="Do not go to the console.")
@click.option("--no-daemon", is_flag=True, help="Start no node daemon where none runs.")
def run(what: str, detach: bool, no_daemon: bool) -> None:
    """Make an instance if it is not there, start it if it does not run, and be at its console.

    WHAT is a specification (a .toml or .json file), the name of an instance, or demo: a small Linux in memory,
    which needs no disk and is built from this distribution's packages at the first time.

    Where no node daemon runs, one is started for you, which restarts instances whose specification says so, and serves
    jobs, statistics and events. It runs until `drover daemon stop`, or the end of the host.
    """
    here = Node()
    name, spec = _meant(here, what)
    there = daemon()
    if not there.answers() and not no_daemon:
        _begin(there)
    node = connected()
    if spec is not None:
        node.create(spec)
    for text in node.instance(name).start():
        notice(text)
    if here.host.rootless:
        notice("not root: QEMU runs as you, without a user of its own and a control group; taps are out of reach")
    if not detach:
        attach(here.instance(name))
    click.echo(f"{name} runs on unless its guest has ended it: drover console|stop|delete {name}")


def _begin(there: Daemon) -> None:
    from drover.cli.daemon import begun

    if why := begun(there):
        notice(f"no node daemon came up, so drover does all itself: {why}")
    else:
        notice("a node daemon was started for you: drover daemon status says how it is, drover daemon stop ends it")


def _meant(node: Node, what: str) -> tuple[str, Spec | None]:
    """The name of what is to run, and its specification if it is to be made first."""
    names = node.names
    if what in names:
        return what, None
    if what == DEMO:
        return DEMO, demo_spec()
    path = Path(what)
    if path.suffix not in (".toml", ".json"):
        raise ArgumentError("WHAT", what, "demo, the name of an instance, or a file that ends with .toml or .json")
    if not path.exists():
        raise ArgumentError("WHAT", what, "a file that is there")
    spec = read_spec(path)
    return spec.name, None if spec.name in names else spec


def demo_spec() -> Spec:
    """A machine that boots a shell in memory."""
    image = guest_image()
    boot = {"kernel": str(image.kernel), "initrd": str(image.initrd), "cmdline": f"{APPEND} drover.shell"}
    return parse({"name": DEMO, "memory": {"size": "256MiB"}, "boot": boot, "nics": [{"mode": "user"}]})
