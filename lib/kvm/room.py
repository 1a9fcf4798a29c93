"""How much memory the host has for machines that arrive, and what of it is promised to those that are on their way.

A machine that arrives, from another node or at a second QEMU of its own, takes its memory page by page, so what is free
says nothing of what is already spoken for. Its document is the promise: whoever lets another one in counts those that
arrive, under one lock, before its own document says that it does.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from msgspec import Struct

from ..errors import NoRoom, RecordError
from .lock import locked
from .paths import Paths
from .record import UPGRADE, Document, Runtime, has_switched, load, runtime_of
from .spec import Spec
from .usage import process_usage

# Bytes that a QEMU takes beside its guest's memory: 60 to 110 MiB for the small ones, screens and many disks more.
BESIDE: Final = 128 << 20
PLAIN: Final = "off"  # as a specification says it: of no huge pages
PAGES: Final = {"2MiB": 2 << 20, "1GiB": 1 << 30}
_HUGEPAGES: Final = Path("/sys/kernel/mm/hugepages")
_LOCK: Final = ".arrivals"  # no instance's name begins so


class Lack(Struct, frozen=True, kw_only=True):
    """Memory that there is not enough of. Bytes.

    :ivar pages: ``off`` for ordinary memory, or the size of huge pages
    :ivar promised: to those that arrive, by their names
    """

    pages: str
    wanted: int
    free: int
    promised: dict[str, int]


class Room(Struct, frozen=True, kw_only=True):
    """A host's memory. Bytes, by the size of pages: ``off`` is ordinary memory.

    :ivar free: what a program could have now
    :ivar promised: to instances that arrive, by their names: what they have not taken yet
    """

    free: dict[str, int]
    promised: dict[str, dict[str, int]] = {}

    def lacks(self, wanted: dict[str, int]) -> list[Lack]:
        """What there is not enough of."""
        lacks = []
        for pages, size in wanted.items():
            promised = {name: of[pages] for name, of in self.promised.items() if of.get(pages)}
            free = self.free.get(pages, 0)
            if size > free - sum(promised.values()):
                lacks.append(Lack(pages=pages, wanted=size, free=free, promised=promised))
        return lacks


def wanted(spec: Spec) -> dict[str, int]:
    """The memory that an instance takes, by the size of its pages."""
    memory = spec.memory
    if memory.hugepages == PLAIN:
        return {PLAIN: memory.size + BESIDE}
    return {PLAIN: BESIDE, memory.hugepages: memory.size}


def look(paths: Paths, *, but: str = "") -> Room:
    """What there is.

    :param but: the instance that is not counted
    """
    promised = {}
    for name in paths.names:
        with suppress(RecordError, OSError):  # one that cannot be read is not let run either
            document = load(paths.instance(name).document)
            if name != but and (still := _still_to_take(document)) is not None:
                promised[name] = still
    return Room(free={PLAIN: _available()} | {name: _free_pages(size) for name, size in PAGES.items()},
                promised=promised)  # fmt: skip


@contextmanager
def let_in(paths: Paths, spec: Spec) -> Iterator[None]:
    """See that there is room for one that arrives, whose document says so after the block. One comes after another.

    :raises NoRoom: there is none, or it is promised
    """
    with locked(paths.locks, _LOCK, f"accept {spec.name}"):
        if lacks := look(paths, but=spec.name).lacks(wanted(spec)):
            first = lacks[0]
            raise NoRoom(spec.name, first.pages, first.wanted, first.free, first.promised)
        yield


def _still_to_take(document: Document) -> dict[str, int] | None:
    """What a machine that arrives has not taken yet; None: it does not."""
    if document.passage is not None and document.passage.way == "in":
        return _left(document.spec, document.runtime)
    pending = document.pending
    if pending is not None and pending.operation == UPGRADE and not has_switched(document):
        second = document.other
        return _left(runtime_of(document).spec if second is None else second.spec, second)
    return None


def _left(spec: Spec, runtime: Runtime | None) -> dict[str, int]:
    """What a QEMU has not taken yet.

    :param runtime: of it; None: it is to be started
    """
    takes = wanted(spec)
    usage = process_usage(runtime.pid) if runtime is not None and runtime.pid else None
    if runtime is None or usage is None or usage.start_time != runtime.start_time:
        return takes
    has: dict[str, int] = {spec.memory.hugepages: _huge(runtime.pid), PLAIN: usage.resident}
    return {pages: max(0, size - has.get(pages, 0)) for pages, size in takes.items()}


def _huge(pid: int) -> int:
    """Bytes of huge pages that a process has."""
    with suppress(OSError), open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as status:
        return next((int(line.split()[1]) << 10 for line in status if line.startswith("HugetlbPages:")), 0)
    return 0


def _available() -> int:
    with open("/proc/meminfo", encoding="ascii") as lines:
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))


def _free_pages(size: int) -> int:
    folder = _HUGEPAGES / f"hugepages-{size >> 10}kB"
    try:
        free, held = (int((folder / name).read_text()) for name in ("free_hugepages", "resv_hugepages"))
    except FileNotFoundError:  # this kernel has none of that size
        return 0
    return (free - held) * size
