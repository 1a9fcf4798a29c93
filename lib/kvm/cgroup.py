"""Control groups, version 2: one for each instance."""

from pathlib import Path


class Cgroup:
    """A control group.

    :ivar path: its directory
    """

    def __init__(self, path: Path) -> None:
        self.path = path
