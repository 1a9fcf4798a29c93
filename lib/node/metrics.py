"""Figures for Prometheus: of machines, calls and the way to their monitors. Read when asked, at no QEMU's cost.

Labels are names of instances, of their devices and of operations: there are as many as there are of those.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ..kvm.state import State
from .member import Timing
from .model import Model
from .sampler import Sampler
from .stats import DiskStats, MigrationStats, NicStats, Stats
from .summary import Summary
from .work import Worker

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
_TIMED: Final = {Timing.ROUND_TRIP: "monitor_round_trip", Timing.EVENT_LAG: "event_lag"}
_BUCKETS: Final = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)  # s

# One figure: its name, what it is, and how it is read; those whose name ends in _total only grow.
_Table = Sequence[tuple[str, str, Callable[[Any], float | None]]]

_ROWS: Final[_Table] = (
    ("memory_bytes", "Memory that the guest is to have.", lambda of: of.memory),
    ("vcpus", "How many vCPUs it has.", lambda of: of.vcpus),
    ("state_timestamp_seconds", "Unix time of its last change of state.", lambda of: of.since),
)
_MACHINES: Final[_Table] = (
    ("cpu_seconds_total", "CPU time that its QEMU has taken.", lambda of: of.cpu_seconds),
    ("resident_bytes", "Memory that its QEMU has.", lambda of: of.resident),
    ("balloon_bytes", "Memory that the guest has, the balloon taken off.", lambda of: of.balloon),
    ("sample_timestamp_seconds", "Unix time when the kernel's figures of it were read.", lambda of: of.at),
    ("told_timestamp_seconds", "Unix time when its QEMU told its own.", lambda of: of.told_at or None),
)
_GUESTS: Final[_Table] = (
    ("total_bytes", "Memory that the guest sees.", lambda of: of.total_memory),
    ("free_bytes", "Memory that nothing in the guest uses.", lambda of: of.free_memory),
    ("available_bytes", "Memory that the guest's programs could get.", lambda of: of.available_memory),
    ("cache_bytes", "Memory that the guest keeps of disks.", lambda of: of.disk_caches),
    ("swapped_in_bytes_total", "What the guest read from its swap.", lambda of: of.swap_in),
    ("swapped_out_bytes_total", "What the guest wrote to its swap.", lambda of: of.swap_out),
    ("major_faults_total", "Page faults of the guest that took a disk.", lambda of: of.major_faults),
    ("timestamp_seconds", "Unix time when the guest told these.", lambda of: of.last_update),
)
_DISKS: Final[_Table] = (
    ("read_bytes_total", "What the guest read.", lambda of: of.read_bytes),
    ("written_bytes_total", "What the guest wrote.", lambda of: of.written_bytes),
    ("discarded_bytes_total", "What the guest discarded.", lambda of: of.discarded_bytes),
    ("reads_total", "Reads that have ended.", lambda of: of.read_ops),
    ("writes_total", "Writes that have ended.", lambda of: of.write_ops),
    ("flushes_total", "Flushes that have ended.", lambda of: of.flush_ops),
    ("discards_total", "Discards that have ended.", lambda of: of.discard_ops),
    ("failures_total", "Requests that failed, or made no sense.", lambda of: of.failed_ops),
    ("read_seconds_total", "What reads took together.", lambda of: of.read_seconds),
    ("write_seconds_total", "What writes took together.", lambda of: of.write_seconds),
    ("flush_seconds_total", "What flushes took together.", lambda of: of.flush_seconds),
)
_NICS: Final[_Table] = (
    ("received_bytes_total", "What the guest received.", lambda of: of.received_bytes),
    ("sent_bytes_total", "What the guest sent.", lambda of: of.sent_bytes),
    ("received_packets_total", "Packets that the guest received.", lambda of: of.received_packets),
    ("sent_packets_total", "Packets that the guest sent.", lambda of: of.sent_packets),
    ("received_errors_total", "Packets for the guest that were broken.", lambda of: of.received_errors),
    ("sent_errors_total", "Packets of the guest's that were broken.", lambda of: of.sent_errors),
    ("received_dropped_total", "Packets for the guest that it was too slow for.", lambda of: of.received_dropped),
    ("sent_dropped_total", "Packets of the guest's that were dropped.", lambda of: of.sent_dropped),
)
_MIGRATIONS: Final[_Table] = (
    ("transferred_bytes", "What the last migration has sent of the memory.", lambda of: of.transferred),
    ("remaining_bytes", "What it has still to send.", lambda of: of.remaining),
    ("memory_bytes", "How much memory there is to send.", lambda of: of.total),
    ("rate_bytes_per_second", "How fast it sends.", lambda of: of.rate),
    ("seconds", "How long it has taken.", lambda of: of.seconds),
    ("downtime_seconds", "How long the guest stood still, or would.", lambda of: of.downtime),
)


class Metrics:
    """The figures of a daemon.

    :ivar calls: by operation and outcome
    :ivar seconds: that calls took, by operation
    :ivar requests: seconds that requests took, by method and route
    """

    def __init__(self, worker: Worker, model: Model, sampler: Sampler) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Machines(model, sampler))
        labels = ("operation", "outcome")
        self.calls = Counter("drover_calls", "Changes that were asked for.", labels, registry=self._registry)
        self.seconds = self._histogram("drover_call_seconds", "How long they took.", labels[:1])
        self.requests = self._histogram("drover_request_seconds", "How long requests took.", ("method", "route"))
        texts = {Timing.ROUND_TRIP: "From a question to a QEMU to its answer.",
                 Timing.EVENT_LAG: "From QEMU's stamp on an event to what the list says of it."}  # fmt: skip
        timings = {of: self._histogram(f"drover_{_TIMED[of]}_seconds", text) for of, text in texts.items()}
        model.on_timing(lambda of, seconds: timings[of].observe(seconds))
        self.watch("drover_work_threads_busy", "Threads that do something.", lambda: worker.at_work)
        self.watch("drover_work_queued_calls", "Calls that wait for a thread.", lambda: worker.queued)
        self.watch("drover_work_waiting_calls", "Calls that wait for their turn.", lambda: worker.waiting)
        ProcessCollector(registry=self._registry)

    def watch(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Have a gauge.

        :param name: of it, with its unit
        :param text: what it is
        :param read: called in a thread when somebody reads
        """
        Gauge(name, text, registry=self._registry).set_function(read)

    def _histogram(self, name: str, text: str, labels: Sequence[str] = ()) -> Histogram:
        return Histogram(name, text, labels, buckets=_BUCKETS, registry=self._registry)

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self._registry)


class _Machines(Collector):
    """What the live picture knows."""

    def __init__(self, model: Model, sampler: Sampler) -> None:
        self._model = model
        self._sampler = sampler

    def collect(self) -> Iterable[Metric]:
        """For each machine."""
        rows, stats = self._model.summaries, self._sampler.known()
        yield _states(rows)
        yield from _families("instance", _ROWS, ("instance",), (((row.name,), row) for row in rows))
        yield from _families("instance", _MACHINES, ("instance",), (((of.name,), of) for of in stats))
        yield _vcpus(stats)
        guests = (((of.name,), of.guest) for of in stats if of.guest)
        yield from _families("guest_memory", _GUESTS, ("instance",), guests)
        disks: Iterator[tuple[tuple[str, ...], DiskStats]]
        disks = (((of.name, disk.id), disk) for of in stats for disk in of.disks)
        yield from _families("disk", _DISKS, ("instance", "disk"), disks)
        nics: Iterator[tuple[tuple[str, ...], NicStats]] = (((of.name, nic.id), nic) for of in stats for nic in of.nics)
        yield from _families("nic", _NICS, ("instance", "nic"), nics)
        yield from _migrations({of.name: of.migration for of in stats if of.migration})
        yield _round_trips(self._model)


def _families(
    what: str, table: _Table, labels: Sequence[str], rows: Iterable[tuple[tuple[str, ...], Any]]
) -> Iterator[Metric]:
    """The figures of a table, each of all rows; what is not known is left out."""
    kept = list(rows)
    for name, summary, read in table:
        total = name.endswith("_total")
        kind = CounterMetricFamily if total else GaugeMetricFamily
        family = kind(f"drover_{what}_{name.removesuffix('_total')}", summary, labels=labels)
        for values, of in kept:
            if (value := read(of)) is not None:
                family.add_metric(values, value)
        yield family


def _states(rows: list[Summary]) -> Metric:
    gauge = GaugeMetricFamily("drover_instances", "How many instances are in a state.", labels=("state",))
    for state in State:
        gauge.add_metric((str(state),), sum(row.state is state for row in rows))
    return gauge


def _vcpus(stats: list[Stats]) -> Metric:
    labels = ("instance", "vcpu")
    family = CounterMetricFamily("drover_vcpu_seconds", "CPU time that the vCPU's thread has taken.", labels=labels)
    for of in stats:
        for vcpu in of.vcpus:
            family.add_metric((of.name, str(vcpu.index)), vcpu.cpu_seconds)
    return family


def _migrations(of: dict[str, MigrationStats]) -> Iterator[Metric]:
    labels = ("instance", "status")
    status = GaugeMetricFamily("drover_migration_status", "1 for the status of its last migration.", labels=labels)
    for name, migration in of.items():
        status.add_metric((name, migration.status), 1)
    yield status
    yield from _families("migration", _MIGRATIONS, ("instance",), (((name,), it) for name, it in of.items()))


def _round_trips(model: Model) -> Metric:
    text = "How long its QEMU took to answer the last question."
    gauge = GaugeMetricFamily("drover_monitor_seconds", text, labels=("instance",))
    for name, seconds in model.round_trips():
        gauge.add_metric((name,), seconds)
    return gauge
