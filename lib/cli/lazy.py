"""Groups of commands that know their members by a table, and import one only when it is typed."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


class Entry(NamedTuple):
    """A sub-command as the table knows it: the module, its line in the group's ``--help``, and its name there."""

    module: str
    summary: str
    name: str = "command"


class Group(NamedTuple):
    """A group of sub-commands: its line in ``drover --help``, and the table of them.

    :ivar default: which one is meant where none is said
    :ivar text: more about it, for its own ``--help``
    """

    summary: str
    entries: Mapping[str, Entry]
    default: str = ""
    text: str = ""


Table = Mapping[str, Entry | Group]


class LazyGroup(click.Group):
    """A group that imports a sub-command only to run it or to show its own help.

    :param table: its sub-commands
    :param default: which is meant where none is said
    """

    def __init__(self, *args: object, table: Table, default: str = "", **more: object) -> None:
        super().__init__(*args, **more)  # type: ignore[arg-type]  # click's own, whatever they are
        self.table = table
        self.default = default

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Where no sub-command is said, the one that is meant then."""
        helps = self.get_help_option_names(ctx)
        if self.default and not (args and (args[0] in helps or not args[0].startswith("-"))):
            args = [self.default, *args]
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names in the table, sorted as click sorts them."""
        return sorted(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, its module imported now; None if the table has no such name."""
        entry = self.table.get(cmd_name)
        if entry is None:
            return None
        if isinstance(entry, Group):
            without = f"Without a command: {entry.default}." if entry.default else ""
            text = "\n\n".join(filter(None, (entry.summary, entry.text, without)))
            bare = not entry.default
            return LazyGroup(cmd_name, table=entry.entries, default=entry.default, help=text, no_args_is_help=bare)
        command: click.Command = getattr(import_module(entry.module), entry.name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that was typed.

        :raises click.UsageError: there is none; names those that are spelt alike
        """
        name = args[0]
        if not ctx.resilient_parsing and not name.startswith("-") and name not in self.table:
            from difflib import get_close_matches  # 3 ms, for those who mistype

            near = get_close_matches(name, self.table, 3)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            raise click.UsageError(f"There is no command {name!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Sub-commands and options that begin so, from the table alone."""
        if incomplete.startswith("-"):
            return super(click.Group, self).shell_complete(ctx, incomplete)
        from click.shell_completion import CompletionItem  # 2 ms, for shells that ask

        names = [name for name in self.list_commands(ctx) if name.startswith(incomplete)]
        return [CompletionItem(name, help=self.table[name].summary) for name in names]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands from the table alone: click's own way would import every one of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, self.table[name].summary) for name in self.list_commands(ctx)])
