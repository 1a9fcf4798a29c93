"""`drover context`: the nodes that commands may speak to, and which one they do."""

import getpass

import click

from drover.cli.choice import LOCAL, chosen, configuration
from drover.cli.node import secret_argument, when
from drover.cli.output import answer, output_option, table
from drover.node.contexts import Contexts
from drover.node.pki.folder import Folder, this_host
from drover.node.pki.token import read_token


def _contexts() -> Contexts:
    return Contexts(configuration())


@click.command
@click.argument("name")
@click.option("--token", required=True, help="That drover node token printed; - for standard input.")
@click.option("--as", "person", default="", help="Who you are, where the token does not say; USER@HOST by default.")
@click.option("--use", "use_it", is_flag=True, help="Mean it from now on where no context is said.")
@output_option
def add(name: str, token: str, person: str, use_it: bool, output: str) -> None:
    """Join a node by a token, and call it NAME. What answers is checked before the token's secret is said."""
    from drover.node.joining import Asked, join_person

    said = read_token(secret_argument(token))
    asked = Asked(name=person or f"{getpass.getuser()}@{this_host()}"[:64])
    found = _contexts()
    found.add(name, said.addresses, lambda folder: join_person(folder, said, asked))
    if use_it:
        found.use(name)
    facts = _facts(found, name)
    answer(output, f"{name} is {', '.join(said.addresses)}, where you are {facts['role']} {facts['who']}.", facts)


@click.command("list")
@output_option
def list_(output: str) -> None:
    """Show all contexts. The one with a star is meant where none is said."""
    found = _contexts()
    at = chosen()
    rows = [{"current": "*" if name == at else "", "name": name,
             "addresses": "this host" if name == LOCAL else ", ".join(found.get(name).addresses)}
            for name in (LOCAL, *found.names)]  # fmt: skip
    table(output, rows, ("current", "name", "addresses"))


@click.command
@click.argument("name")
@output_option
def use(name: str, output: str) -> None:
    """Mean NAME where no context is said; local is this host."""
    _contexts().use(name)
    answer(output, f"{name} is meant from now on.", {"name": name})


@click.command
@click.argument("name", required=False)
@output_option
def show(name: str | None, output: str) -> None:
    """Show a context, by default the one that is meant: where it is, and who you are there until when."""
    name = name or chosen()
    if name == LOCAL:
        answer(output, "local is this host.", {"name": LOCAL})
        return
    facts = _facts(_contexts(), name)
    lines = [f"{key + ':':11} {value}" for key, value in facts.items() if key != "until"]
    answer(output, "\n".join([*lines, f"{'until:':11} {when(float(str(facts['until'])))}"]), facts)


@click.command
@click.argument("name")
@output_option
def remove(name: str, output: str) -> None:
    """Forget a context, with its key. Its certificate holds on: drover cert revoke, on that node, ends it."""
    _contexts().remove(name)
    answer(output, f"{name} is forgotten.", {"name": name})


def _facts(found: Contexts, name: str) -> dict[str, object]:
    from drover.node.pki.own import own_card

    context, folder = found.get(name), Folder(found.folder(name).path)
    card = own_card(folder)
    return {"name": name, "addresses": ", ".join(context.addresses), "who": card.name, "role": card.role,
            "serial": card.serial, "until": card.until}  # fmt: skip
