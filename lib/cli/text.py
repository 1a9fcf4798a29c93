"""Texts as a terminal may have them."""

from typing import Final

# What a terminal would obey: in texts that come from guests, their logs, and other people.
_OBEYED: Final = dict.fromkeys((*range(32), 127, *range(128, 160)), "�")


def harmless(text: str) -> str:
    """A text in one line that a terminal shows, whatever is in it."""
    return " ".join(text.split()).translate(_OBEYED)
