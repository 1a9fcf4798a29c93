"""`drover top`: all instances of a node and what they use, live, on the whole screen."""

import click

from drover.cli.backend import daemon
from drover.errors import CallFailed

EXTRA = "pip install 'kvm-drover[top]'"


@click.command("top")
@click.option("--every", type=click.FloatRange(0.5, 60), default=2.0, show_default=True, help="Seconds between looks.")
@click.option("--sort", type=click.Choice(["name", "state", "cpu", "memory", "disk", "net", "events"]), default="cpu",
              show_default=True, help="By which column at first.")  # fmt: skip
def top(every: float, sort: str) -> None:
    """Show all instances of a node and what they use, live: state, CPU, memory, I/O, events, migrations.

    Keys: n, s, c, m, d, w, e sort by name, state, CPU, memory, disk, network and events; the same one again turns the
    order round. / filters by name, state or detail; Enter shows an instance; q leaves. Events are those since it began.

    It needs the package textual: pip install 'kvm-drover[top]'
    """
    try:
        from drover.cli.top_screen import Top
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "textual":
            raise
        raise click.ClickException(f"drover top needs the package textual, which is not here: {EXTRA}") from error
    there = daemon()
    if not there.answers():
        raise CallFailed("no-daemon", f"no node daemon answers at {there.where}, which keeps what is to be shown")
    Top(there, every=every, sort=sort).run()
