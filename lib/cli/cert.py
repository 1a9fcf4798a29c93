"""`drover cert`: who has which certificate until when; made, renewed, revoked."""

import os
import time
from pathlib import Path
from typing import Any

import click

from drover.cli.choice import LOCAL, chosen, configuration, must_be_local
from drover.cli.node import PEOPLE_DAYS, folder, when
from drover.cli.output import answer, output_option, table
from drover.errors import ArgumentError, PkiError
from drover.node.contexts import Contexts
from drover.node.pki.folder import DAYS, write
from drover.node.pki.ledger import Issued, Ledger

_SHORT = 12  # digits of a number, for people: enough to tell one from another


@click.command("list")
@click.option("--all", "every", is_flag=True, help="Also those that hold no longer.")
@output_option
def list_(every: bool, output: str) -> None:
    """Show who has what until when, on the node that has the authority."""
    must_be_local("cert list")
    now = time.time()
    shown = [_row(each, now) for each in Ledger(folder()).all() if every or each.holds(now)]
    table(output, shown, ("name", "role", "number", "expires", "state"), ("hosts", "by", "serial"))


@click.command
@click.argument("what", required=False)
@output_option
def show(what: str | None, output: str) -> None:
    """Show a certificate: our own, or WHAT: a file, or the name or number of one that was made here."""
    from drover.node.pki.authority import card_of, fingerprint
    from drover.node.pki.own import own_card

    if what and not Path(what).is_file():
        must_be_local("cert show")
        found = Ledger(folder()).find(what)
        if not found:
            raise PkiError(f"no certificate is {what!r}'s, or has that number, and there is no such file")
        table(output, [_row(each, time.time()) for each in found],
              ("name", "role", "serial", "expires", "state", "hosts", "by"))  # fmt: skip
        return
    ours = folder() if chosen() == LOCAL else Contexts(configuration()).folder(chosen())
    card = card_of(Path(what).read_bytes()) if what else own_card(ours)
    pem = Path(what or ours.own).read_bytes()
    facts: dict[str, Any] = {
        "name": card.name, "role": card.role, "serial": card.serial, "hosts": ", ".join(card.hosts),
        "since": card.since, "until": card.until, "sha256": fingerprint(pem),
    }  # fmt: skip
    people = facts | {"since": when(card.since), "until": when(card.until)}
    answer(output, "\n".join(f"{key + ':':8} {value}" for key, value in people.items() if value), facts)


@click.command
@click.argument("name")
@click.option("--role", type=click.Choice(["viewer", "operator", "admin", "node"]), required=True)
@click.option("--host", "hosts", multiple=True, help="Where it answers, if it is a node; as often as there are.")
@click.option("--days", type=float, help=f"That it holds: a node's {DAYS:g}, others' {PEOPLE_DAYS:g} by default.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The folder to make, with key.pem, "
              "cert.pem and ca.pem.")  # fmt: skip
@output_option
def issue(name: str, role: str, hosts: tuple[str, ...], days: float | None, out: Path, output: str) -> None:
    """Make key and certificate for NAME: a program, which joins by no token. On the node that has the authority."""
    must_be_local("cert issue")
    from drover.node.pki.own import issue as made

    if out.exists():
        raise ArgumentError("--out", str(out), "a folder that is not there yet")
    key, certificate, card = made(
        folder(), role, name, days=days or (DAYS if role == "node" else PEOPLE_DAYS), hosts=hosts
    )
    out.mkdir(mode=0o700)
    for file, pem in (("key.pem", key), ("cert.pem", certificate), ("ca.pem", folder().trusted.read_bytes())):
        write(out / file, pem)
    facts = {"folder": os.fspath(out), "name": name, "role": role, "serial": card.serial, "until": card.until}
    answer(output, f"{out} has the certificate of {role} {name}, until {when(card.until)}.", facts)


@click.command
@output_option
def renew(output: str) -> None:
    """Get the next certificate of this node, or of the context that is meant, now. A daemon does so by itself in time.

    A daemon shows it to whoever connects next.
    """
    from drover.node.joining import renewed
    from drover.node.pki.own import about, renew_here

    if (name := chosen()) != LOCAL:
        found = Contexts(configuration())
        card = renewed(found.folder(name), found.get(name).addresses)
        found.renewed(name, card)
    elif folder().has_authority:
        card = renew_here(folder())
    else:
        card = renewed(folder(), about(folder()).issuer)
    answer(output, f"{card.name} has a certificate until {when(card.until)}.",
           {"name": card.name, "role": card.role, "serial": card.serial, "until": card.until})  # fmt: skip


@click.command
@click.argument("what")
@output_option
def revoke(what: str, output: str) -> None:
    """Have the certificates of a name, or the one of a number, hold no longer. On the node that has the authority.

    Its daemon lets nobody in by them from now on, those of other nodes within a minute or so.
    """
    must_be_local("cert revoke")
    kept = folder()
    with kept.changed():
        gone = Ledger(kept).revoke(what)
    said = ", ".join(f"{each.role} {each.name}'s ({each.serial[:_SHORT]})" for each in gone)
    answer(output, f"Revoked: {said}.", {"revoked": [each.serial for each in gone]})


def _row(issued: Issued, now: float) -> dict[str, Any]:
    state = "revoked" if issued.revoked is not None else "holds" if issued.holds(now) else "expired"
    return {"name": issued.name, "role": issued.role, "number": issued.serial[:_SHORT], "serial": issued.serial,
            "expires": when(issued.until), "until": issued.until, "state": state, "hosts": ", ".join(issued.hosts),
            "by": issued.by}  # fmt: skip
