"""Types that are read from JSON, made ready while their module is imported, which one thread does at a time.

msgspec looks at a type when it first reads one, and keeps what it has found while it still looks. Two threads that read
their first one at once crash the process (msgspec 0.22.0, with the interpreter's lock: a field whose type is not there
yet). Sixteen threads look at the instances of a host at once, and whoever uses this package may have as many.
"""

from typing import Any

from msgspec import json


def ready(*kinds: Any) -> None:
    """Have msgspec look at types now, and at all types in them. To be called where they are defined.

    :param kinds: types that JSON is read into
    """
    for kind in kinds:
        json.Decoder(kind)
