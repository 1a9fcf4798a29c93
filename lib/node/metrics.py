"""Figures for Prometheus: of calls, machines and the way to their monitors. Read when asked, at no QEMU's cost."""

import os
from collections.abc import Iterable, Iterator
from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ..kvm.state import State
from .model import Model
from .summary import Summary

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_BUCKETS: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)  # s


class Metrics:
    """The figures of a daemon.

    :ivar calls: by operation and outcome
    :ivar seconds: that calls took, by operation
    """

    def __init__(self, model: Model) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Machines(model))
        labels = ("operation", "outcome")
        self.calls = Counter("drover_calls", "Changes that were asked for.", labels, registry=self._registry)
        self.seconds = Histogram(
            "drover_call_seconds", "How long they took.", labels[:1], buckets=_BUCKETS, registry=self._registry
        )

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self._registry)


class _Machines(Collector):
    """What the live picture knows, and the kernel of each QEMU's process."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def collect(self) -> Iterable[Metric]:
        """For each machine."""
        rows = self._model.summaries
        yield _states(rows)
        yield from _processes(rows)
        rtt = GaugeMetricFamily(
            "drover_monitor_seconds", "How long its QEMU took to answer the last question.", labels=("instance",)
        )
        for name, seconds in self._model.round_trips():
            rtt.add_metric((name,), seconds)
        yield rtt


def _states(rows: list[Summary]) -> Metric:
    gauge = GaugeMetricFamily("drover_instances", "How many instances are in a state.", labels=("state",))
    for state in State:
        gauge.add_metric((str(state),), sum(row.state is state for row in rows))
    return gauge


def _processes(rows: list[Summary]) -> Iterator[Metric]:
    label = ("instance",)
    cpu = GaugeMetricFamily("drover_instance_cpu_seconds", "CPU time that its QEMU has taken.", labels=label)
    resident = GaugeMetricFamily("drover_instance_resident_bytes", "Memory that its QEMU has.", labels=label)
    memory = GaugeMetricFamily("drover_instance_memory_bytes", "Memory that the guest is to have.", labels=label)
    vcpus = GaugeMetricFamily("drover_instance_vcpus", "How many vCPUs it has.", labels=label)
    since = GaugeMetricFamily("drover_instance_state_since", "Unix time of its last change of state.", labels=label)
    for row in rows:
        memory.add_metric((row.name,), row.memory)
        vcpus.add_metric((row.name,), row.vcpus)
        since.add_metric((row.name,), row.since)
        if row.pid and (usage := _usage(row.pid)):
            cpu.add_metric((row.name,), usage[0])
            resident.add_metric((row.name,), usage[1])
    yield from (cpu, resident, memory, vcpus, since)


def _usage(pid: int) -> tuple[float, int] | None:
    """CPU seconds and resident bytes of a process; None if it has ended."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
            fields = stat.read().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / _TICKS, int(fields[21]) * _PAGE
