"""Which node is meant: cheap to find out, for every command does."""

import os
from pathlib import Path
from typing import Final

import click

from drover.errors import ArgumentError

LOCAL: Final = "local"  # the context that is this host
# These work on what lies on this host, whatever else there is.
HERE_ONLY: Final = frozenset({"adopt", "daemon", "node", "run", "start-all", "stop-all", "watch"})


def chosen() -> str:
    """The context that is meant: by ``--context``, ``$DROVER_CONTEXT``, or ``drover context use``."""
    at_work = click.get_current_context(silent=True)
    said = at_work.find_root().params.get("context") if at_work is not None else None
    if name := said or os.environ.get("DROVER_CONTEXT"):
        return str(name)
    try:
        return (configuration() / "context").read_text().strip() or LOCAL
    except OSError:
        return LOCAL


def configuration() -> Path:
    """The folder of this user's configuration."""
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return Path(os.environ.get("DROVER_CONFIG_DIR") or home / "drover")


def must_be_local(what: str) -> None:
    """See that this host is meant, by a command that works here alone.

    :raises ArgumentError: another node is
    """
    if (name := chosen()) != LOCAL:
        allowed = f"{LOCAL}, for drover {what} works on this host: drover --context {LOCAL} {what}"
        raise ArgumentError("context", name, allowed)


def path_there(source: str) -> str:
    """An image as the node that is meant knows it: a URI, or a path of that host's.

    :raises ArgumentError: it is relative, and that host has no such folder of ours
    """
    if "://" in source or source.startswith("/"):
        return source
    if chosen() != LOCAL:
        raise ArgumentError("SOURCE", source, "an absolute path of that node's, or a URI")
    return str(Path(source).absolute())
