"""Whom a command speaks to: the node that was chosen, else the node daemon here, else the instances themselves."""

import time
from typing import TYPE_CHECKING

import click

from drover.cli.choice import LOCAL, chosen, configuration
from drover.cli.output import notice
from drover.kvm.paths import default_paths
from drover.node.client import SOCKET, Daemon, RemoteNode
from drover.node.summary import Summary, summarised, unreadable

if TYPE_CHECKING:
    from drover.kvm.node import Node, Report
    from drover.node.link import RemoteDaemon


def daemon() -> Daemon:
    """The daemon of the context that is meant; :meth:`~drover.node.client.Daemon.answers` says whether one is there.

    :raises NotJoined: there is no such context
    """
    if chosen() == LOCAL:
        return Daemon(default_paths().run / SOCKET)
    return remote_daemon()


def remote_daemon() -> "RemoteDaemon":
    """The daemon of the context that is meant, which is another node's.

    :raises NotJoined: there is no such context
    """
    from drover.node.contexts import Contexts

    found, name = Contexts(configuration()), chosen()
    context, now = found.get(name), time.time()
    at_work = click.get_current_context(silent=True)  # none where a shell asks what could be typed
    if at_work is not None and not at_work.resilient_parsing and context.due and context.due < now < context.until:
        end = time.strftime("%Y-%m-%d %H:%M", time.localtime(context.until))
        notice(f"our certificate there ends at {end}: drover --context {name} cert renew gets the next one")
    return found.daemon(name)


def connected(*, no_wait: bool | None = None) -> "Node | RemoteNode":
    """The daemon's instances if it runs and lets us in, else those of this user's own folders, in this process.

    Where another node's context is meant, that node's, or an error.

    :param no_wait: of what may take long: whether not to wait for a daemon's job
    :raises click.UsageError: there is no daemon, which alone could go on
    """
    there = daemon()
    if there.answers():
        if no_wait is None:
            return RemoteNode(there)
        from drover.cli.clerk import Clerk

        return RemoteNode(Clerk(there, wait=not no_wait))
    if no_wait:
        raise click.UsageError("--no-wait needs the node daemon, and none answers", click.get_current_context())
    from drover.kvm.node import Node  # what a daemon does for us takes as long to load as all the rest

    return Node()


def rows(node: "Node | RemoteNode", timeout: float) -> list[Summary]:
    """A row for each instance.

    :param timeout: seconds for each QEMU to answer, where there is no daemon that knows
    """
    if isinstance(node, RemoteNode):
        return node.rows()
    return [row_of(report) for report in node.survey(timeout=timeout)]


def row_of(report: "Report") -> Summary:
    """The row of an instance that was looked at here."""
    condition = report.condition
    if condition is None:
        return unreadable(report.name, str(report.error), 0)
    return summarised(report.name, condition.document, condition.state, 0, condition.detail)
