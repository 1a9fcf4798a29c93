"""The command `drover migrate`: an instance goes to another node while it runs."""

from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

from drover.cli.backend import daemon
from drover.cli.choice import configuration
from drover.cli.clerk import Clerk, no_wait_option
from drover.cli.complete import instance_argument
from drover.cli.failures import DONE, FAILED
from drover.cli.output import Size, answer, notice, output_option
from drover.cli.text import harmless
from drover.errors import CallFailed
from drover.migration.means import Means
from drover.node.client import Daemon

F = TypeVar("F", bound=Callable[..., Any])

_MEANS: Final = tuple(str(means) for means in Means)
_ANNOUNCE: Final = ("rounds", "initial", "step", "max")


def _numbers(__: click.Context, ___: click.Parameter, texts: tuple[str, ...]) -> dict[str, int]:
    told = {}
    for text in texts:
        name, _, value = text.partition("=")
        if name not in _ANNOUNCE or not value.isdecimal():
            raise click.BadParameter(f"{text!r} is none of {', '.join(f'{each}=NUMBER' for each in _ANNOUNCE)}")
        told[name] = int(value)
    return told


_GOING: Final = (
    click.option("--blackout", type=click.IntRange(1, 60_000), default=300, show_default=True, metavar="MS",
                 help="Milliseconds that the guest may stand still at most."),
    click.option("--deadline", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS",
                 help="When to give up; by default after a minute, and one more for each GiB."),
    click.option("--means", "means", type=click.Choice(_MEANS), multiple=True,
                 help="What may be done so that it comes to its end, in this order; may be repeated."),
    click.option("--postcopy", is_flag=True, help="If nothing else helps, run there before all memory is there. "
                 "Who loses a node or the network before the end loses the machine."),
    click.option("--postcopy-preempt/--no-postcopy-preempt", "preempt", default=None,
                 help="Whether in a postcopy pages that the guest waits for overtake others; by default where both "
                 "QEMUs are 8.0 or later."),
    click.option("--throttle", type=click.IntRange(1, 99), default=80, show_default=True, metavar="PERCENT",
                 help="Of the vCPUs' time, that auto-converge may take at most."),
    click.option("--bandwidth", type=Size(), metavar="SIZE", help="Bytes a second to begin with; by default no limit."),
    click.option("--ceiling", type=Size(), metavar="SIZE",
                 help="Up to which that may be raised; by default it is not."),
    click.option("--multifd", type=click.IntRange(1, 255), metavar="COUNT", help="Connections that memory goes over."),
    click.option("--compress", type=click.Choice(("zlib", "zstd")), help="What goes over several connections."),
    click.option("--zero-copy", is_flag=True, help="The kernel sends memory from where it lies, without a copy. Wants "
                 "--multifd and --no-tls, and no --compress."),
    click.option("--copy-disks", is_flag=True, help="Disks that are not there on the other node are copied."),
    click.option("--shared-disk", "shared", metavar="ID", multiple=True,
                 help="A disk that both nodes have, where they cannot see that themselves; may be repeated."),
    click.option("--announce", "announced", metavar="NAME=NUMBER", multiple=True, callback=_numbers,
                 help="How the switches are told where its cards are now: rounds (5), and in milliseconds initial "
                 "(50), step (100) and max (550); may be repeated."),
    click.option("--emulator", metavar="PATH", help="The QEMU there, where it is another one than here."),
    click.option("--no-tls", is_flag=True,
                 help="Memory and disks go over in the clear; else by TLS 1.3, each migration with certificates of its "
                 "own."),
)


def going_options(function: F) -> F:
    """How machines are to go."""
    for option in reversed(_GOING):
        function = option(function)
    return function


@click.command
@instance_argument()
@click.argument("node", required=False)
@going_options
@click.option("--check", is_flag=True, help="Only say what is in the way, all of it, and what to do about it.")
@click.option("--recover", is_flag=True, help="Of one that an alarm is told of: look again now how things are.")
@click.option("--target-is-dead", is_flag=True, help="Likewise; and the QEMU on the other node is dead for certain.")
@no_wait_option
@output_option
@click.pass_context
def migrate(
    context: click.Context, /, name: str, node: str | None, check: bool, recover: bool, target_is_dead: bool,
    output: str, **more: Any,
) -> None:  # fmt: skip
    """Move an instance to another node, while it runs.

    NODE is where that node's daemon answers, HOST or HOST:PORT, or the name of a context. Both nodes have certificates
    of one authority (`drover node init`, `drover node join`). The machine runs here until it stands there, complete; if
    that does not come about it runs on here. Disks are to be on storage that both nodes have, or are copied on the way.

    Where nobody can tell how things are, as when a node is gone, the machine stands still rather than twice, and an
    alarm says what to type next: `drover list`, `drover jobs` and `drover events` show it.

    Before anything is done both nodes look whether it can go, and if not it is refused with all that is in the way.
    --check does nothing but that, with the other options as for the move: the exit code is 0 where nothing is in the
    way, and 1 where something is.
    """
    there = daemon()
    if not there.answers():
        raise click.UsageError("only a node daemon moves machines, and none answers", context)
    if recover or target_is_dead:
        _recover(there, name, node, target_is_dead, output)
        return
    if node is None:
        raise click.UsageError("NODE is missing: where is it to go?", context)
    if check:
        asked = asked_for(node, **more) | {"check": True}
        found = Clerk(there, wait=True).call("POST", f"/v1/instances/{name}/migrate", asked)
        answer(output, in_the_way(name, found), {"name": name, **found})
        context.exit(FAILED if found["blockers"] else DONE)
    told: dict[str, Any] = Clerk(there, wait=not more["no_wait"]).call(
        "POST", f"/v1/instances/{name}/migrate", asked_for(node, **more)
    )
    for text in told.get("notices", ()):
        notice(text)
    for text in told["alarms"]:
        notice(f"on the way: {text}")
    answer(output, told_of(name, told), {"name": name, **told})


def asked_for(node: str, **chosen: Any) -> dict[str, Any]:
    """What is asked for, as the API has it.

    :param chosen: :func:`going_options`
    """
    from drover.node.contexts import Contexts

    contexts = Contexts(configuration())
    wanted: dict[str, Any] = {
        "node": contexts.get(node).addresses[0] if node in contexts.names else node,
        "blackout": chosen["blackout"] / 1000,
        "deadline": chosen["deadline"],
        "means": list(chosen["means"]) or None,
        "postcopy": chosen["postcopy"],
        "postcopy_preempt": chosen["preempt"],
        "throttle": chosen["throttle"],
        "bandwidth": chosen["bandwidth"],
        "ceiling": chosen["ceiling"],
        "multifd": chosen["multifd"],
        "compression": chosen["compress"],
        "zero_copy": chosen["zero_copy"],
        "copy_disks": chosen["copy_disks"],
        "shared_disks": list(chosen["shared"]),
        "emulator": chosen["emulator"],
        "tls": not chosen["no_tls"],
        "announce": chosen["announced"] or None,
    }
    return {name: value for name, value in wanted.items() if value is not None}


def _recover(there: Daemon, name: str, node: str | None, target_is_dead: bool, output: str) -> None:
    if node is not None:
        raise click.UsageError("NODE is known of one that is under way: leave it out", click.get_current_context())
    query = "?target-is-dead=true" if target_is_dead else ""
    try:
        there.call("POST", f"/v1/instances/{name}/migration/recover{query}")
    except CallFailed as error:
        if error.code != "on-no-way" or target_is_dead:
            raise
        # its job may have failed, as where somebody else had the machine when it was to be taken up
        told = Clerk(there, wait=True).call("POST", f"/v1/instances/{name}/migrate", {"node": name, "recover": True})
        answer(output, f"{name} has gone to {told['node']}.", {"name": name, **told})
        return
    answer(output, f"{name} is looked at again; drover jobs shows what comes of it.", {"name": name})


def in_the_way(name: str, found: dict[str, Any]) -> str:
    """Whether it can go, for people."""
    blockers = found["blockers"]
    notices = [f"But {harmless(text)}." for text in found["notices"]]
    if not blockers:
        return "\n".join([f"{name} can go to {found['node']}: nothing is in the way.", *notices])
    lines = [f"{name} cannot go to {found['node']}. In the way:"]
    for each in blockers:
        lines.append(f"- {harmless(each['what'])} ({each['code']}): {harmless(each['why'])}")
        lines.append(f"  What to do: {harmless(each['remedy'])}")
    return "\n".join([*lines, *notices])


def told_of(name: str, report: dict[str, Any]) -> str:
    """How it went, for people."""
    stands = "stands still" if report.get("paused") else "runs"
    text = f"{name} {stands} on {report['node']} now, after {report['seconds']:.1f} s"
    if "blackout_ms" in report:
        text += f"; it stood still for {report['blackout_ms']:.0f} ms"
    if not report.get("tls", True):
        text += "; it went in the clear"
    if report["helped"]:
        text += f". Helped on by: {'; '.join(report['helped'])}"
    return f"{text}."
