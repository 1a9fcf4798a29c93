"""The specifications of test/data/argv, each with the command lines that it becomes.

``NAME.toml`` is the specification; lines that begin with ``#:`` are TOML too, of what else a command line depends on
(the fields of ``Given``), and ``not_started`` says why a machine of it cannot be started on every host. The words for
each QEMU are in ``NAME.7.2.argv`` and ``NAME.10.0.argv``, one a line.
"""

import tomllib
from pathlib import Path
from typing import Any, Final, NamedTuple

from drover.kvm.argv import Given
from drover.kvm.spec import Spec, load

FOLDER: Final = Path(__file__).parent / "data" / "argv"
VERSIONS: Final = ("7.2", "10.0")
_FIRMWARE: Final = {"firmware_code": "/usr/share/OVMF/OVMF_CODE_4M.fd", "firmware_vars": "/var/lib/drover/nvram.fd"}


class Case(NamedTuple):
    """One specification, as it is before the instance is made, and what else is said in its file."""

    name: str
    spec: Spec
    said: dict[str, Any]

    @property
    def not_started(self) -> str:
        """Why it is compared only; empty where it is started as well."""
        return str(self.said.get("not_started", ""))

    def argv_file(self, version: str) -> Path:
        """Where its words for this QEMU are."""
        return FOLDER / f"{self.name}.{version}.argv"

    def given(self, version: str, **other: Any) -> Given:
        """What its command line depends on, for this QEMU."""
        newest = {"q35": f"pc-q35-{version}", "pc": f"pc-i440fx-{version}"}
        machine = self.spec.machine.type
        fields = {
            "machine": newest.get(machine, machine),
            "accelerator": "tcg",
            "private": Path("/run/drover/qemu/web1"),
            "seed": "/var/lib/drover/seed",
            **(_FIRMWARE if self.spec.firmware.type == "uefi" else {}),
            **{name: value for name, value in self.said.items() if name != "not_started"},
            **other,
        }
        fields["block_devices"] = frozenset(fields.get("block_devices", ()))
        fields["places"] = {name: (bus, addr) for name, (bus, addr) in fields.get("places", {}).items()}
        return Given(**fields)


def _read(path: Path) -> Case:
    text = path.read_text(encoding="utf-8")
    said = "\n".join(line.removeprefix("#:") for line in text.splitlines() if line.startswith("#:"))
    return Case(path.stem, load(text, "toml"), tomllib.loads(said))


CASES: Final = [_read(path) for path in sorted(FOLDER.glob("*.toml"))]
