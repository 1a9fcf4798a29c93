"""`drover node`: this node's certificates, and how others come to theirs."""

import re
import sys
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import click

from drover.cli.output import answer, for_people, notice, output_option, table
from drover.errors import ArgumentError
from drover.kvm.paths import default_paths
from drover.node.pki.folder import DAYS, Folder, this_host
from drover.node.pki.token import HOUR, Tokens, read_token

_UNITS: Final = {"s": 1.0, "m": 60.0, "h": HOUR, "d": 24 * HOUR}
PEOPLE_DAYS: Final = 365.0
_MONTH: Final = 30 * 24 * HOUR
_addresses = click.option("--address", "addresses", metavar="HOST[:PORT]", multiple=True,
                          help="Where it is reached, as often as there are; its name by default.")  # fmt: skip


if TYPE_CHECKING:
    _FloatType = click.ParamType[float]
else:
    _FloatType = click.ParamType  # which click before 8.4 says nothing more of


class Duration(_FloatType):
    """A time such as ``15m``, in seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds of a text such as ``15m``."""
        if isinstance(value, float):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", str(value))
        if found is None:
            self.fail(f"{value!r} is no time: a number and s, m, h or d, such as 15m", param, ctx)
        return float(found[1]) * _UNITS[found[2]]


def folder() -> Folder:
    """Of this node's certificates."""
    return Folder(default_paths().pki)


def when(at: float) -> str:
    """A time, for people."""
    return f"{datetime.fromtimestamp(at).astimezone():%Y-%m-%d %H:%M}"


def secret_argument(text: str) -> str:
    """A token as it was given; for ``-`` what standard input says, which no list of processes shows."""
    return sys.stdin.readline() if text == "-" else text


@click.command
@click.option("--name", default="", help="Of this node; the host's by default.")
@_addresses
@click.option("--days", type=float, help=f"That its certificate holds, which it renews itself; {DAYS:g} by default.")
@output_option
def init(name: str, addresses: tuple[str, ...], days: float | None, output: str) -> None:
    """Make an authority, and this node's certificate by it.

    From then on drover-noded --listen takes those who have a certificate of that authority's, and other nodes join by
    a token. Said again, it changes nothing, unless another name or address is given.
    """
    from drover.node.pki.own import begin

    card = begin(folder(), name, addresses, days)
    text = f"{card.name} has a certificate until {when(card.until)}, for {', '.join(card.hosts)}."
    answer(output, text, {"name": card.name, "hosts": card.hosts, "until": card.until, "serial": card.serial})


@click.command
@click.option("--role", type=click.Choice(["node", "viewer", "operator", "admin"]), default="node", show_default=True)
@click.option("--name", default="", help="Of whoever joins; they say it themselves by default.")
@click.option("--expires", type=Duration(), default=HOUR, metavar="TIME", help="Such as 15m; 1h by default.")
@click.option("--days", type=float, help=f"That the certificate holds: a node's {DAYS:g}, others' {PEOPLE_DAYS:g}.")
@_addresses
@output_option
def token(role: str, name: str, expires: float, days: float | None, addresses: tuple[str, ...], output: str) -> None:
    """Let somebody join once. The token is a secret: whoever has it becomes what its role says.

    A node joins by drover node join, a person by drover context add.
    """
    from drover.node.pki.own import token_for

    if not 0 < expires <= _MONTH:
        raise ArgumentError("--expires", f"{expires:g}s", "30d at most")
    days = days or (DAYS if role == "node" else PEOPLE_DAYS)
    made, until = token_for(folder(), role, name=name, days=days, seconds=expires, addresses=addresses)
    if for_people(output):
        notice(f"for one {role}, until {when(until)}; it is reached at {', '.join(made.addresses)}")
    answer(output, made.text(), {"token": made.text(), "id": made.id, "until": until, "addresses": made.addresses})


@click.command
@click.option("--drop", metavar="ID", help="Have nobody join by this one any more.")
@output_option
def tokens(drop: str | None, output: str) -> None:
    """Show the tokens that nobody has used yet. Their secrets are not kept."""
    found = Tokens(folder())
    if drop:
        found.drop(drop)
    rows = [{"id": each.id, "role": each.kept.role, "name": each.kept.name, "until": when(each.until)}
            for each in found.all()]  # fmt: skip
    table(output, rows, ("id", "role", "name", "until"))


@click.command
@click.argument("token")
@click.option("--name", default="", help="Of this node; the host's by default.")
@_addresses
@output_option
def join(token: str, name: str, addresses: tuple[str, ...], output: str) -> None:
    """Get this node's certificate, by a token that drover node token printed on the node that has the authority.

    TOKEN is it, or - for standard input. What answers at its address is checked before the secret is said.
    """
    from drover.node.joining import Asked, join_node

    begun = time.time()
    card = join_node(folder(), read_token(secret_argument(token)), Asked(name=name or this_host(), addresses=addresses))
    if card.since > begun:
        notice(f"this host's clock is behind: the certificate holds from {when(card.since)} on")
    text = f"{card.name} has a certificate until {when(card.until)}, for {', '.join(card.hosts)}."
    answer(output, text, {"name": card.name, "hosts": card.hosts, "until": card.until, "serial": card.serial})
