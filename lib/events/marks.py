"""The file by which Ganeti knows that an instance's user has shut it down: ``NAME.shutdown``, beside its sockets.

It is there from that end until the next run begins, or the run has ended in another way.
"""

from ..kvm.ends import Stop
from ..kvm.paths import Paths
from .verdict import is_user_shutdown


def mark_begin(paths: Paths, name: str) -> None:
    """A run has begun."""
    (paths.shutdowns / f"{name}.shutdown").unlink(missing_ok=True)


def mark_end(paths: Paths, name: str, stop: Stop) -> None:
    """A run has ended."""
    path = paths.shutdowns / f"{name}.shutdown"
    if not is_user_shutdown(stop):
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    path.touch()
