"""On which of the host's CPUs each virtual one runs."""

import os

from ..monitor.connection import QmpConnection
from .spec import Spec


def pin_vcpus(vm: QmpConnection, spec: Spec) -> None:
    """Pin all vCPUs that there are to the host's CPUs that a specification names; may be repeated.

    :raises OSError: the host has none of them
    """
    pinning = spec.cpu.pinning
    for cpu in vm.query_cpus() if pinning else ():
        os.sched_setaffinity(cpu.thread_id, cpu_set(pinning[min(cpu.cpu_index, len(pinning) - 1)]))


def cpu_set(text: str) -> set[int]:
    """The host's CPUs that a text such as ``0-3,8`` names."""
    ends = [part.partition("-") for part in text.split(",")]
    return {number for first, dash, last in ends for number in range(int(first), int(last if dash else first) + 1)}
