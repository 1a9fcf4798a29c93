"""What a machine's virtual CPUs really are: what its guest saw at its boot, and has to find wherever it goes on."""

from msgspec import Struct

from ..qmp.ready import ready
from .port import Port


class CpuModel(Struct, frozen=True, kw_only=True):
    """A machine's kind of CPU, with all that hangs on the host and the machine type.

    :ivar model: by QEMU's name of it
    :ivar flags: that the guest has, in QEMU's spelling
    :ivar vendor: as CPUID says it
    :ivar address_bits: of a physical address
    """

    model: str
    flags: frozenset[str]
    vendor: str = ""
    address_bits: int = 0


async def query_cpu_model(port: Port, model: str) -> CpuModel:
    """Return what the CPUs of this machine are (``query-cpu-model-expansion``, x86).

    A static expansion has the defaults of the machine type and what the command line switched on and off; what the host
    or TCG cannot do is only told by the CPU itself (tried on 7.2 and 10.0).

    :param model: that it was started with
    :raises CommandError: there is no such model, or this machine has no CPU
    """
    arguments = {"type": "static", "model": {"name": model}}
    expanded, cpus = await port.execute_many([("query-cpu-model-expansion", arguments), ("query-cpus-fast", None)])
    props, path = expanded["model"]["props"], cpus[0]["qom-path"]
    asked = ("unavailable-features", "phys-bits")
    lacks, bits = await port.execute_many([("qom-get", {"path": path, "property": name}) for name in asked])
    flags = {name for name, value in props.items() if value is True}
    return CpuModel(model=model, flags=frozenset(flags.difference(lacks)), vendor=props["vendor"], address_bits=bits)


ready(CpuModel)
