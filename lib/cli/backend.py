"""Whom a command speaks to: the node daemon where one runs, else the instances themselves."""

from typing import TYPE_CHECKING

from drover.kvm.paths import default_paths
from drover.node.client import SOCKET, Daemon, RemoteNode
from drover.node.summary import Summary, summarised, unreadable

if TYPE_CHECKING:
    from drover.kvm.node import Node, Report


def connected() -> "Node | RemoteNode":
    """The daemon's instances if it runs and lets us in, else those of this user's own folders, in this process."""
    daemon = Daemon(default_paths().run / SOCKET)
    if daemon.answers():
        return RemoteNode(daemon)
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
