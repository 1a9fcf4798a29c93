"""`drover run`: from nothing, or a specification, to the console of a machine that boots."""

from pathlib import Path

import click

from drover.cli.console import attach
from drover.cli.instances import read_spec
from drover.cli.output import notice
from drover.errors import ArgumentError
from drover.kvm.instance import Instance
from drover.kvm.node import Node
from drover.kvm.spec import Spec, parse
from drover.testing.image import guest_image
from drover.testing.machine import APPEND

DEMO = "demo"


@click.command
@click.argument("what", metavar="demo|FILE|NAME")
@click.option("--detach", is_flag=True, help="Do not go to the console.")
def run(what: str, detach: bool) -> None:
    """Make an instance if it is not there, start it if it does not run, and be at its console.

    WHAT is a specification (a .toml or .json file), the name of an instance, or demo: a small Linux in memory,
    which needs no disk and is built from this distribution's packages at the first time.
    """
    node = Node()
    instance = _found(node, what)
    for text in instance.start():
        notice(text)
    if node.host.rootless:
        notice("not root: QEMU runs as you, without a user of its own and a control group; taps are out of reach")
    if not detach:
        attach(instance)
    click.echo(f"{instance.name} runs on unless its guest has ended it: drover console|stop|delete {instance.name}")


def _found(node: Node, what: str) -> Instance:
    if what in node.names:
        return node.instance(what)
    if what == DEMO:
        return node.create(demo_spec())
    path = Path(what)
    if path.suffix not in (".toml", ".json"):
        raise ArgumentError("WHAT", what, "demo, the name of an instance, or a file that ends with .toml or .json")
    if not path.exists():
        raise ArgumentError("WHAT", what, "a file that is there")
    spec = read_spec(path)
    return node.instance(spec.name) if spec.name in node.names else node.create(spec)


def demo_spec() -> Spec:
    """A machine that boots a shell in memory."""
    image = guest_image()
    boot = {"kernel": str(image.kernel), "initrd": str(image.initrd), "cmdline": f"{APPEND} drover.shell"}
    return parse({"name": DEMO, "memory": {"size": "256MiB"}, "boot": boot, "nics": [{"mode": "user"}]})
