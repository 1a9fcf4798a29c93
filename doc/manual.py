"""Writes the man pages of `drover` from its commands, so that they say what `--help` says.

    doc/manual.py           writes doc/man/drover.1 and a page for each command anew
    doc/manual.py --check   only says which ones are out of date, and fails
"""

import re
import sys
from collections.abc import Iterator, Sequence
from inspect import cleandoc
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "build" / "py"))

import click  # noqa: E402

from drover.cli.commands import COMMANDS  # noqa: E402
from drover.cli.completion import SHELLS, script  # noqa: E402
from drover.cli.failures import EXIT_STATUS  # noqa: E402
from drover.cli.lazy import Group, LazyGroup  # noqa: E402
from drover.cli.main import group  # noqa: E402
from drover.version import __version__  # noqa: E402

FOLDER = HERE / "man"
DATE = "2026-11"
# Written by hand: they have more to say than their options.
BY_HAND = {"drover-qmp-shell.1"}
SCRIPTS = {"bash": "bash/drover", "zsh": "zsh/_drover", "fish": "fish/drover.fish"}
ENVIRONMENT = {
    "DROVER_STATE_DIR, DROVER_RUN_DIR": "Where instances are kept, and where what runs of them has its sockets, "
    "instead of the folders below.",
    "DROVER_CONFIG_DIR": "Where contexts are, instead of ~/.config/drover.",
    "DROVER_CONTEXT": "The context that is meant, where --context does not say another one.",
    "NO_COLOR": "If it is not empty, nothing has colours.",
    "COLUMNS": "How wide a terminal is, if it is not as wide as it says.",
    "QMP_SOCKET": "The socket of qmp, hmp and qom, where none is said.",
}
FILES = {
    "/var/lib/drover/instances/NAME": "An instance: its document, its logs, its UEFI variables. Of a user who is not "
    "root ~/.local/state/drover/instances/NAME.",
    "/run/drover": "Sockets and locks; there noded.sock is the node daemon's. Of another user $XDG_RUNTIME_DIR/drover.",
    "~/.config/drover": "Contexts: the nodes that this user may call, with a certificate for each.",
}


def main() -> None:
    """Write the pages, or see whether they are as they would be written."""
    wanted = {FOLDER / name: text for name, text in pages()}
    wanted |= {HERE.parent / "daemons" / "completion" / SCRIPTS[shell]: script(shell) for shell in SHELLS}
    old = {path for path in FOLDER.glob("drover*.1") if path.name not in BY_HAND} - set(wanted)
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    if "--check" in sys.argv[1:]:
        for path in sorted([*stale, *old]):
            print(f"{path.relative_to(HERE.parent)} is out of date: doc/manual.py writes it anew")
        sys.exit(1 if stale or old else 0)
    for path in stale:
        path.write_text(wanted[path])
    for path in old:
        path.unlink()


def pages() -> Iterator[tuple[str, str]]:
    """Each page: its file's name, and its text."""
    context = click.Context(group, info_name="drover", help_option_names=["-h", "--help"])
    yield "drover.1", overview(context)
    for name in sorted(COMMANDS):
        command = group.get_command(context, name)
        assert command is not None
        yield f"drover-{name}.1", page(name, command, context)


def overview(context: click.Context) -> str:
    """The page of `drover` itself."""
    lines = [head("DROVER"), ".SH NAME", r"drover \- drive QEMU/KVM virtual machines"]
    lines += [".SH SYNOPSIS", r".B drover", ".RI [ options ]", ".I command", ".RI [ arguments ]"]
    lines += [".SH DESCRIPTION", *paragraphs(described(group))]
    lines += [".SH OPTIONS", *options(group, context)]
    lines += [".SH COMMANDS", "Each has a page of its own, such as", r".BR drover\-start (1)."]
    for name, entry in sorted(COMMANDS.items()):
        lines += [".TP", f".BR drover\\-{escaped(name)} (1)"]
        members = f" {', '.join(entry.entries)}." if isinstance(entry, Group) else ""
        lines += [escaped(entry.summary + members)]
    lines += [".SH ANSWERS", *paragraphs(ANSWERS)]
    lines += [".SH EXIT STATUS", *terms({str(status): text for status, text in EXIT_STATUS.items()})]
    lines += ["On standard error a line that starts with", ".B drover:", "says what is wrong, and often another one"]
    lines += ["what to do next.", ".SH ENVIRONMENT", *terms(ENVIRONMENT), ".SH FILES", *terms(FILES)]
    also = [r"drover\-" + escaped(name) for name in sorted(COMMANDS)]
    also += [r"drover\-qmp\-shell"]
    lines += [".SH SEE ALSO", *(f".BR {name} (1)," for name in also)]
    lines += [r".BR drover\-noded (8),", r".BR drover\-kvmd (8),", r".BR qemu\-system\-x86_64 (1)"]
    return "\n".join(lines) + "\n"


ANSWERS = """-o text is for people and the default: on a terminal a table is as wide as that, and states have
colours. -o wide has more columns, and cuts none. -o json and -o yaml are for programs, and have all of it.

Where something is destroyed, --dry-run says what would be done, or fails as that would. delete asks first; --yes
answers for you, and has to be said where there is no terminal.

Through the node daemon, what takes long is a job: a bar shows how far it is. Ctrl-C leaves it to go on, and a second
one within two seconds cancels it. --no-wait only has it begin, and prints its number; see drover-jobs(1)."""


def page(name: str, command: click.Command, above: click.Context) -> str:
    """The page of a command, or of a group with all of its commands."""
    context = click.Context(command, info_name=name, parent=above)
    summary = COMMANDS[name].summary.rstrip(".")
    lines = [head(f"DROVER-{name.upper()}"), ".SH NAME"]
    lines += [f"drover\\-{escaped(name)} \\- {escaped(summary[0].lower() + summary[1:])}"]
    if isinstance(command, click.Group):
        members = {each: command.get_command(context, each) for each in command.list_commands(context)}
        found = {each: member for each, member in members.items() if member is not None}
        inner = {each: click.Context(member, info_name=each, parent=context) for each, member in found.items()}
        lines += [".SH SYNOPSIS", *joined([synopsis(found[each], inner[each]) for each in found])]
        lines += [".SH DESCRIPTION", *paragraphs(described(command))]
        if not isinstance(command, LazyGroup):
            lines += options(command, context)
        lines += [".SH COMMANDS"]
        for each, member in found.items():
            lines += [f".SS {escaped(each)}", *paragraphs(described(member)), *options(member, inner[each])]
    else:
        lines += [".SH SYNOPSIS", *synopsis(command, context), ".SH DESCRIPTION", *paragraphs(described(command))]
        lines += [".SH OPTIONS", *options(command, context)]
    lines += [".SH EXIT STATUS", "As", r".BR drover (1)", "has it."]
    lines += [".SH SEE ALSO", r".BR drover (1)"]
    return "\n".join(lines) + "\n"


def described(command: click.Command) -> str:
    """What a command says of itself, also what is not in its ``--help``, behind a form feed."""
    text = command.callback.__doc__ if command.callback is not None else ""
    return cleandoc((text if text and "\f" in text else command.help or text or "").replace("\f", "\n\n"))


def head(title: str) -> str:
    """The first line of a page."""
    note = r'.\" Written by doc/manual.py from the commands: change those.'
    return f'{note}\n.TH {title} 1 "{DATE}" "Drover {__version__}" "User Commands"'


def joined(several: Sequence[Sequence[str]]) -> list[str]:
    """Synopses, each on a line of its own."""
    return [line for number, one in enumerate(several) for line in ([".br"] if number else []) + list(one)]


def synopsis(command: click.Command, context: click.Context) -> list[str]:
    """What is to be typed."""
    lines = [f".B {escaped(context.command_path)}"]
    if any(isinstance(each, click.Option) for each in command.params):
        lines += [".RI [ options ]"]
    arguments = [each for each in command.params if isinstance(each, click.Argument)]
    pieces = [piece for each in arguments for piece in each.get_usage_pieces(context)]
    return [*lines, *(f".I {escaped(piece)}" for piece in pieces)]


def options(command: click.Command, context: click.Context) -> list[str]:
    """Each option with its text."""
    lines: list[str] = []
    for each in command.get_params(context):
        record = each.get_help_record(context) if isinstance(each, click.Option) else None
        if record is not None:
            lines += [".TP", f".B {escaped(record[0])}", escaped(record[1])]
    return lines


def terms(table: dict[str, str]) -> list[str]:
    """Words, each with its text."""
    return [line for word, text in table.items() for line in (".TP", f".B {escaped(word)}", escaped(text))]


def paragraphs(text: str) -> list[str]:
    """Plain text as paragraphs; what is indented stays as it is."""
    lines: list[str] = []
    for number, paragraph in enumerate(re.split(r"\n\s*\n", text.replace("\b\n", "").strip())):
        lines += [".PP"] if number else []
        if paragraph.startswith("    "):
            lines += [".nf", *map(escaped, paragraph.splitlines()), ".fi"]
        else:
            lines += [escaped(" ".join(paragraph.split()))]
    return lines


def escaped(text: str) -> str:
    """Text that roff shows as it is."""
    text = text.replace("\\", r"\e").replace("-", r"\-")
    return re.sub(r"^([.'])", r"\\&\1", text)


if __name__ == "__main__":
    main()
