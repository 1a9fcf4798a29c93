"""vCPUs and memory that were plugged into a machine that arrives: they are there from the start, at their places."""

from .board import memory_backend
from .launch import Writer
from .places import Places


def write_vcpus(out: Writer) -> None:
    """vCPUs beyond those that it was booted with."""
    for vcpu in out.given.board.plugged_vcpus if out.given.board else ():
        place = {name.replace("-", "_"): number for name, number in vcpu.place.items()}
        out.device(vcpu.driver, id=vcpu.id, **place)
        out.note("cpu", vcpu.id)


def write_sticks(out: Writer, places: Places) -> None:
    """DIMMs and virtio-mem. How much the guest has of that comes with its state."""
    for stick in out.given.board.sticks if out.given.board else ():
        memory = f"{stick.id}-mem"
        backend, made_of = memory_backend(out.spec.memory)
        if stick.kind == "dimm":
            out.object(backend, memory, size=stick.size, **made_of)
            out.device("pc-dimm", id=stick.id, memdev=memory, node=stick.node, slot=stick.slot, addr=stick.at)
        else:
            out.object(backend, memory, size=stick.size, reserve=False, **made_of)
            out.device(
                "virtio-mem-pci", id=stick.id, memdev=memory, node=stick.node, memaddr=stick.at, **places.of(stick.id)
            )
        out.note("memory", stick.id, size=stick.used)
