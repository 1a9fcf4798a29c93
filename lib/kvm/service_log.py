"""The log of a daemon of ours: lines for people on a terminal, a JSON object a line for everybody else."""

import logging
import sys
from typing import Any, Final

import msgspec

# What a record may carry besides its text.
_EXTRA: Final = ("instance", "caller", "operation", "outcome", "job", "request")


class JsonLines(logging.Formatter):
    """A record as one JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        """Time, level, logger, text and whatever it carries."""
        data: dict[str, Any] = {"at": record.created, "level": record.levelname.lower(), "logger": record.name}
        data["text"] = record.getMessage()
        data |= {name: value for name in _EXTRA if (value := getattr(record, name, None)) is not None}
        if record.exc_info:
            data["traceback"] = self.formatException(record.exc_info)
        return msgspec.json.encode(data).decode()


def begin(level: str) -> None:
    """Write to standard error from now on."""
    handler = logging.StreamHandler(sys.stderr)
    plain = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    handler.setFormatter(plain if sys.stderr.isatty() else JsonLines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
