"""The build of `kvm-drover`: the folder `lib` becomes the package `drover`."""

import re
from pathlib import Path

from setuptools import setup

TOP = Path(__file__).resolve().parent
LIB = TOP / "lib"

# What each one is for: doc/dependencies.md
RUNTIME = [
    "msgspec>=0.19,<1",
    "bitarray>=3,<4",
    "cryptography>=44,<52",
    "click>=8.1,<9",
    "rich>=13.7,<16",
    "PyYAML>=6,<7",
    "prompt_toolkit>=3.0.48,<4",
    "pygments>=2.18,<3",
    "pyroute2>=0.9.2,<0.10",
    "pycdlib>=1.14,<2",
    "aiohttp>=3.12,<4",
    "prometheus-client>=0.20,<1",
    "jeepney>=0.8,<1",
    "pyinotify>=0.9.6,<0.10",
    'pyasyncore>=1.0.2,<2; python_version >= "3.12"',
]
TEST = [
    "pytest>=8.2,<10",
    "pytest-timeout>=2.3,<3",
    "pytest-xdist>=3.6,<4",
    "hypothesis>=6.100,<7",
    "schemathesis>=4.32,<5",
    "uvloop>=0.21,<1",
    "atheris>=3,<4",
    # a newer linter or type checker finds new faults in old code: moved on purpose, not by a release day
    "ruff>=0.17.5,<0.18",
    "mypy>=2.4,<2.5",
]
TOP_TABLE = ["textual>=8,<9"]
BENCH = ["qemu.qmp>=0.0.6,<0.1", "avocado-framework-plugin-vt>=113,<114"]
# The launchers of `make install` are their like: daemons/*.in
PROGRAMS = [
    "drover = drover.cli.main:main",
    "drover-kvmd = drover.events.daemon:main",
    "drover-noded = drover.node.daemon:main",
    "drover-qmp-shell = drover.shell.qmp:main",
    "drover-qmp-shell-wrap = drover.shell.qmp:main_wrap",
]


def version() -> str:
    """The version, read from `lib/version.py` without importing anything."""
    found = re.search(r'^__version__ = "(.+)"$', (LIB / "version.py").read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise SystemExit("lib/version.py: no line __version__ = \"…\"")
    return found[1]


def packages() -> dict[str, Path]:
    """Every folder under lib/ that has an `__init__.py`, by the name it is imported by."""
    folders = sorted(init.parent for init in LIB.rglob("__init__.py"))
    return {".".join(("drover", *folder.relative_to(LIB).parts)): folder for folder in folders}


def data_files() -> dict[str, list[str]]:
    """What is not Python under lib/, by the package nearest above it: no pattern to forget, whatever its kind."""
    owners = {folder: name for name, folder in packages().items()}
    data: dict[str, list[str]] = {}
    for path in sorted(LIB.rglob("*")):
        inside = path.relative_to(LIB).parts
        if not path.is_file() or path.suffix == ".py" or any(p == "__pycache__" or p.startswith(".") for p in inside):
            continue
        owner = next(folder for folder in path.parents if folder in owners)
        data.setdefault(owners[owner], []).append(path.relative_to(owner).as_posix())
    return data


setup(
    name="kvm-drover",
    version=version(),
    description="Drives QEMU/KVM virtual machines: monitors, hotplug, live migration",
    long_description=(TOP / "README").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="BSD-2-Clause",
    author="The Drover authors",
    python_requires=">=3.11",
    package_dir={"drover": "lib"},
    packages=list(packages()),
    package_data=data_files(),
    install_requires=RUNTIME,
    extras_require={"test": [*TEST, *TOP_TABLE], "bench": BENCH, "top": TOP_TABLE},
    entry_points={"console_scripts": PROGRAMS},
    zip_safe=False,
)
