"""Colours for JSON, and for the line that is being typed. Loaded only where there is a terminal that shows them."""

import re
from collections.abc import Callable, Iterator
from typing import Final

from prompt_toolkit.document import Document
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.lexers import Lexer
from pygments import highlight
from pygments.formatters.terminal import TerminalFormatter
from pygments.lexers.data import JsonLexer

# Characters: beyond, colours are not worth the wait (0.3 s for a megabyte).
MAX_COLOURED: Final = 200_000

_lexer = JsonLexer(ensurenl=False, stripnl=False)
_formatter: TerminalFormatter[str] = TerminalFormatter(bg="dark")


def colour_json(text: str) -> str:
    """`text` with the escape sequences that colour it as JSON."""
    return text if len(text) > MAX_COLOURED else highlight(text, _lexer, _formatter)


# What a typed line is made of: text in quotes, a name before its =, a number or constant, what opens and closes.
_PARTS: Final = re.compile(
    r"""(?P<string>"(?:[^"\\]|\\.)*"?|'(?:[^'\\]|\\.)*'?)|(?P<name>[^\s=\"'{}\[\](),:]+(?:\[[0-9]+\])*)(?==)
    |(?P<value>(?<![^\s=\[{(,:])(?:-?[0-9]+(?:\.[0-9]+)?|[Tt]rue|[Ff]alse|[Nn]one|null)(?![^\s\]}),]))
    |(?P<bracket>[{}\[\](),;])""",
    re.VERBOSE,
)
_LINE_STYLES: Final = {"string": "ansigreen", "name": "ansicyan", "value": "ansimagenta", "bracket": "ansiyellow"}
_COMMAND: Final = re.compile(r"\s*(?:/oob\s+)?[^\s{]+")


class LineLexer(Lexer):
    """Colours a line while it is typed."""

    def lex_document(self, document: Document) -> Callable[[int], StyleAndTextTuples]:
        """The coloured parts of each line."""
        lines = document.lines

        def parts(number: int) -> StyleAndTextTuples:
            return list(_parts_of(lines[number], number == 0)) if number < len(lines) else []

        return parts


def _parts_of(line: str, first: bool) -> Iterator[tuple[str, str]]:
    position = 0
    command = _COMMAND.match(line) if first else None
    if command is not None:
        position = command.end()
        yield "bold", command[0]
    for found in _PARTS.finditer(line, position):
        yield "", line[position : found.start()]
        yield _LINE_STYLES[found.lastgroup or "bracket"], found[0]
        position = found.end()
    yield "", line[position:]
