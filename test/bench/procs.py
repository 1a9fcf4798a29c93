"""What the kernel says of a process."""

from pathlib import Path


def cpu_of(pid: int) -> float:
    """Seconds of CPU that its threads have had, to the nanosecond; of those that have ended nothing."""
    return sum(_ran(thread) for thread in Path(f"/proc/{pid}/task").iterdir()) / 1e9


def _ran(thread: Path) -> int:
    try:
        return int((thread / "schedstat").read_text().split()[0])
    except OSError:
        return 0  # it has ended


def sleeps_of(pid: int) -> int:
    """How often any of its threads has gone to sleep: as often as it was woken."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(_field(thread / "status", "voluntary_ctxt_switches") for thread in threads)


def memory_of(pid: int, kind: str = "VmRSS") -> int:
    """Bytes of memory.

    :param kind: ``VmRSS`` is all that is resident; ``RssAnon``, what is its alone
    """
    return _field(Path(f"/proc/{pid}/status"), kind) << 10


def _field(status: Path, name: str) -> int:
    lines = status.read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])
