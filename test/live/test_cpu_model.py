"""What QEMU says of its CPUs is what a guest that runs on them sees."""

import pytest

from drover import QmpConnection
from drover.errors import CommandError
from drover.testing.machine import Machine
from faces import Face
from machines import qemu_of

# As QEMU and as Linux spells them; the last five are not in both versions, or in none under TCG.
FLAGS = {
    "sse2": "sse2", "sse4.2": "sse4_2", "avx2": "avx2", "aes": "aes", "nx": "nx", "lm": "lm", "rdrand": "rdrand",
    "xsave": "xsave", "rdseed": "rdseed", "sha-ni": "sha_ni", "rdpid": "rdpid", "avx512f": "avx512f",
    "invpcid": "invpcid",
}  # fmt: skip


@pytest.mark.machines("q35")
def test_the_flags_are_those_of_the_guest(booted: Machine, face: Face) -> None:
    with face.open(booted.qmp) as vm:
        found = vm.query_cpu_model("max")
    said = booted.console.run("cat /proc/cpuinfo")
    seen = next(line for line in said.splitlines() if line.startswith("flags")).split()
    assert {name for name in FLAGS if name in found.flags} == {name for name, linux in FLAGS.items() if linux in seen}
    assert found.vendor in said
    assert f"{found.address_bits} bits physical" in said


@pytest.mark.parametrize("version", ["7.2", "10.0"])
def test_what_the_host_cannot_do_is_not_among_them(version: str) -> None:
    """A model is told with all that it should have, and what was switched off on the command line."""
    extra = ["-cpu", "Skylake-Server,aes=off"]
    with Machine(qemu=qemu_of(version), machine="q35", extra=extra, paused=True) as machine:
        with QmpConnection(machine.qmp) as vm:
            found = vm.query_cpu_model("Skylake-Server")
            with pytest.raises(CommandError):
                vm.query_cpu_model("Skylake-Serving")
    assert {"sse4.2", "avx2"} <= found.flags
    assert not {"aes", "avx512f", "hle"} & found.flags
    assert found.vendor == "GenuineIntel"
