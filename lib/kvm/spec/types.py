"""The kinds of values in a specification: each says in its description what may stand there."""

import re
from typing import Annotated, Any, Final

from msgspec import Meta, Struct

# Of a node name, QEMU takes 31 characters, and its file's node has "-file" more.
ID_LENGTH: Final = 26


class Secret(Struct, frozen=True, forbid_unknown_fields=True):
    """A text that does not print: not in a log, a traceback, or an error. In a document it may stand as a plain text.

    :ivar secret: the text itself, for the one place that needs it
    """

    secret: str

    def __repr__(self) -> str:
        return "Secret('***')"


Name = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9.-]{0,62}$",
        description="a name: a letter or digit, then at most 62 letters, digits, '.' or '-'",
    ),
]
Id = Annotated[
    str,
    Meta(
        pattern=r"^([A-Za-z][A-Za-z0-9._-]{0,25})?$",
        description=f"an id: a letter, then letters, digits, '.', '_' or '-', {ID_LENGTH} at most",
    ),
]
Uuid = Annotated[
    str,
    Meta(
        pattern=r"^([0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12})?$",
        description="a UUID such as 3f0b1c9e-52d7-4c1e-9a55-0d6c1f1e8a01",
    ),
]
Mac = Annotated[
    str,
    Meta(
        pattern=r"^([0-9a-fA-F][02468aceACE](:[0-9a-fA-F]{2}){5})?$",
        description="a unicast MAC address such as 52:54:00:12:34:56",
    ),
]
Path = Annotated[str, Meta(pattern=r"^(/[^\x00\n]*)?$", description="an absolute path")]
Line = Annotated[str, Meta(pattern=r"^[^\x00\n]*$", description="a text of one line")]
Text = Annotated[str, Meta(pattern=r"^[^\x00]*$", description="a text")]
Word = Annotated[
    str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="a word of letters, digits, '.', '_' and '-'")
]
Cpus = Annotated[
    str,
    Meta(pattern=r"^\d+(-\d+)?(,\d+(-\d+)?)*$", description="numbers of host CPUs such as '0-3' or '0,2,4-7'"),
]
PciAddress = Annotated[
    str,
    Meta(
        pattern=r"^([0-9a-fA-F]{4}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-7])?$",
        description="a PCI address such as 0000:01:00.0",
    ),
]
MAX_SIZE: Final = 1 << 60  # bytes: of more no QEMU knows
# Bytes; in a document also a text such as "512MiB".
Size = Annotated[
    int,
    Meta(ge=0, le=MAX_SIZE, extra={"size": True}, description="a size: bytes, or a text such as '512MiB' or '4GiB'"),
]
Count = Annotated[int, Meta(ge=1, le=4096)]
BootIndex = Annotated[int, Meta(ge=0, le=999)]

_UNITS: Final = {"": 1, "B": 1, **{f"{letter}iB": 1 << 10 * (n + 1) for n, letter in enumerate("KMGTP")}}
_SIZE: Final = re.compile(r"(\d{1,19})\s*([A-Za-z]*)")


def size_of(value: Any) -> int | None:
    """Bytes of a size as a document has it; None where it is none: units are binary and said so (``MiB``)."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    found = _SIZE.fullmatch(value) if isinstance(value, str) else None
    return None if found is None or found[2] not in _UNITS else int(found[1]) * _UNITS[found[2]]
