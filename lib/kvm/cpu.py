"""What a machine's CPUs would be on this host: asked of a QEMU that is started for it, then read from a cache.

Under one name QEMUs of two versions, and two hosts, mean CPUs that differ: what it comes to is only told by a CPU that
was made of it.
"""

import hashlib
from pathlib import Path
from typing import Final

from msgspec import DecodeError, Struct, json

from ..ops.cpu_model import CpuModel
from ..qmp.ready import ready
from .argv.board import cpu_model, cpu_words
from .binary import Binary
from .cache import alone, cache_file, replace
from .spec import CpuSpec
from .trial import Trial

TIMEOUT: Final = 10.0  # s; it takes 0.1 s
FORMAT: Final = 1  # of the cache's documents


class _Document(Struct, frozen=True):
    format: int
    key: str
    boot_id: str
    model: CpuModel


def probe_cpu(
    binary: Binary, machine: str, accelerator: str, cpu: CpuSpec, cache_dir: Path, boot_id: str
) -> CpuModel:
    """What the CPUs of such a machine are here.

    :param machine: its versioned type, which the binary has
    :param accelerator: ``kvm`` or ``tcg``
    :param cache_dir: as for :func:`.binary.probe_binary`
    :param boot_id: of this boot: after another one the host's CPU may do other things
    :raises BinaryError: it knows no such model, or does not come up with it
    :raises BinarySlow: it does not answer in time
    """
    words = ["-machine", machine, "-accel", accelerator, "-cpu", cpu_words(cpu, accelerator)]
    named = hashlib.sha256(" ".join(words).encode()).hexdigest()[:16]
    file = cache_file(cache_dir, binary.path, f".cpu-{named}.json")
    if (known := _read(file, binary, boot_id)) is not None:
        return known
    with alone(file, TIMEOUT):
        if (known := _read(file, binary, boot_id)) is not None:  # somebody else asked it meanwhile
            return known
        with Trial(Path(binary.path), [*words, "-m", "16M"], timeout=TIMEOUT) as trial:
            model = trial.cpu_model(cpu_model(cpu, accelerator))
        replace(file, json.encode(_Document(FORMAT, binary.key, boot_id, model)))
    return model


def _read(file: Path, binary: Binary, boot_id: str) -> CpuModel | None:
    try:
        known = json.decode(file.read_bytes(), type=_Document)
    except (OSError, DecodeError, UnicodeDecodeError):
        return None
    return known.model if (known.format, known.key, known.boot_id) == (FORMAT, binary.key, boot_id) else None


ready(_Document)
