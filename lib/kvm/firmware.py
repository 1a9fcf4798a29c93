"""Which UEFI firmware the host has for a machine, by the descriptions that its packages install.

They are QEMU's own format (``docs/interop/firmware.json``): each file says for which machines a firmware is and what
it can do. The first one in the order of their names that fits is taken; one in ``/etc`` hides its namesake.
"""

import platform
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from msgspec import DecodeError, Struct, ValidationError, json

from ..errors import NotSupported
from ..qmp.ready import ready
from .spec import FirmwareSpec

FOLDERS: Final = (Path("/etc/qemu/firmware"), Path("/usr/share/qemu/firmware"))
# What a machine with secure boot has to have, and one without does not take: it would need the one's chipset.
_SECURE: Final = frozenset({"secure-boot", "requires-smm", "enrolled-keys"})


class Firmware(Struct, frozen=True, kw_only=True):
    """A firmware.

    :ivar code: the firmware itself, which all machines share
    :ivar vars_template: what each machine gets a copy of, for its variables
    """

    code: str
    vars_template: str


class _File(Struct):
    filename: str
    format: str = "raw"


class _Mapping(Struct, rename="kebab"):
    device: str
    executable: _File | None = None
    nvram_template: _File | None = None
    mode: str = "split"


class _Target(Struct):
    architecture: str
    machines: list[str]


class _Description(Struct, rename="kebab"):
    interface_types: list[str]
    mapping: _Mapping
    targets: list[_Target]
    features: list[str]

    def found(self) -> Firmware | None:
        """The two files, where it is of this kind: in flash, apart from its variables, to be read as it is."""
        code, template = self.mapping.executable, self.mapping.nvram_template
        split = self.mapping.device == "flash" and self.mapping.mode == "split"
        if not split or code is None or template is None or {code.format, template.format} != {"raw"}:
            return None
        return Firmware(code=code.filename, vars_template=template.filename)

    def fits(self, machine: str, architecture: str, secure: bool) -> bool:
        """Whether it is a UEFI for this machine."""
        machines = [name for target in self.targets if target.architecture == architecture for name in target.machines]
        has = _SECURE & set(self.features)
        return (
            "uefi" in self.interface_types
            and any(fnmatchcase(machine, name) for name in machines)
            and (has == _SECURE if secure else not has)
        )


def find_firmware(
    spec: FirmwareSpec, machine: str, folders: Sequence[Path] = FOLDERS, architecture: str = platform.machine()
) -> Firmware:
    """The UEFI for a machine: the one that its specification names, or the first of the host's that fits.

    :param spec: of type ``uefi``
    :param machine: its versioned type
    :param folders: where descriptions are, the most important first
    :param architecture: the guest's
    :raises NotSupported: the host has none
    """
    if spec.code:
        return Firmware(code=spec.code, vars_template=spec.vars_template)
    for description in _descriptions(folders):
        found = description.found()
        if found and description.fits(machine, architecture, spec.secure_boot):
            return found
    what = "UEFI with secure boot" if spec.secure_boot else "UEFI"
    raise NotSupported(f"{what} for {machine}", "a package such as ovmf, or firmware.code", by="this host")


def _descriptions(folders: Sequence[Path]) -> Iterator[_Description]:
    files: dict[str, Path] = {}
    for folder in reversed(folders):
        files |= {path.name: path for path in folder.glob("*.json")}
    for _, path in sorted(files.items()):
        try:
            yield json.decode(path.read_bytes(), type=_Description)
        except (OSError, DecodeError, ValidationError):
            continue  # an empty file in /etc takes one out, and those of newer kinds are not for us


ready(_Description)
